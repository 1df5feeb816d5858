"""Results of a data set depend neither on kills nor on the number of processes."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dcn_det.config import Config
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.sample import make_sample
from dcn_det.distributed import Processes
from dcn_det.errors import UserError
from dcn_det.evaluation.results import Result
from dcn_det.inference.build import build_predictor
from dcn_det.inference.dataset import detect_dataset
from dcn_det.inference.predictor import Predictor
from dcn_det.structures import Batch, Detections
from tests.data.helpers import load_coco
from tests.inference.detectors import CATEGORIES, tiny_detector
from tests.messages import says

IMAGES = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    root = make_sample(tmp_path_factory.mktemp("data") / "sample", train_images=1, val_images=IMAGES)
    return DetectionDataset(load_coco(root / "annotations" / "val.json", root / "val"), 64, 64, with_targets=False)


def predictor(**test: object) -> Predictor:
    scales = [{"short_side": 48, "max_side": 64}, {"short_side": 64, "max_side": 80}]
    settings = {"score_threshold": 0.05, "scales": scales, "flip": True, "box_average": {}, **test}
    return build_predictor(tiny_detector(score_threshold=0.05), CATEGORIES, Config.model_validate({"test": settings}))


def detect(
    dataset: DetectionDataset,
    folder: Path,
    rank: int = 0,
    world: int = 1,
    said: list[str] | None = None,
    **test: object,
) -> list[Result]:
    folder.mkdir(exist_ok=True)
    data = Config.model_validate({"data": {"workers": 0}}).data
    say = (said if said is not None else []).append
    return detect_dataset(predictor(**test), dataset, data, 2, folder, say, Processes(rank, world, rank))


class Killed(BaseException):
    pass


def kill_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Predictor.predict
    left = [batches]

    def predict(self: Predictor, shown: Sequence[Batch]) -> list[Detections]:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return original(self, shown)

    monkeypatch.setattr(Predictor, "predict", predict)


def test_every_image_is_tested_once_and_in_order(dataset: DetectionDataset, tmp_path: Path) -> None:
    said: list[str] = []
    results = detect(dataset, tmp_path, said=said)
    order = list(dict.fromkeys(entry["image_id"] for entry in results))
    assert order == dataset.index.image_ids.tolist()
    assert said[-1].startswith(f"test image {IMAGES}/{IMAGES}  ") and "eta 0:00:00" in said[-1]
    assert list(tmp_path.iterdir()) == [], "the part files are removed at the end"


@pytest.mark.parametrize("torn", [b"", b'{"image_id": 5, "resu'])
def test_a_kill_in_the_middle_changes_nothing(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    whole = detect(dataset, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(2, patch)
        detect(dataset, tmp_path / "part")
    (part,) = (tmp_path / "part").iterdir()
    assert len(part.read_bytes().splitlines()) == 4
    part.write_bytes(part.read_bytes() + torn)
    said: list[str] = []
    assert detect(dataset, tmp_path / "part", said=said) == whole
    assert f"4 of {IMAGES} images" in said[0]
    assert said[-1].startswith("test image 3/3  ")


DAMAGED = (
    b"foreign",
    b"[1]",
    b'{"image_id": 5}',
    b'{"image_id": 5, "results": 1}',
    b'{"image_id": 5, "results": [{"image_id": 6}]}',
    b'{"image_id": 5, "results": [{"image_id": 5, "category_id": 1, "score": NaN, "bbox": [0, 0, 1, 1]}]}',
    b'{"image_id": [], "results": []}',
    b"\xff",
)


def test_damaged_lines_are_left_out_and_told(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = detect(dataset, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(2, patch)
        detect(dataset, tmp_path / "part")
    (part,) = (tmp_path / "part").iterdir()
    lines = part.read_bytes().splitlines()
    part.write_bytes(b"\n".join([*DAMAGED, lines[0][:-3], *lines[1:], b""]))
    said: list[str] = []
    assert detect(dataset, tmp_path / "part", said=said) == whole
    assert says(said[0], len(DAMAGED) + 1, tmp_path / "part") and f"3 of {IMAGES} images" in said[1]


def test_a_kill_inside_a_batch_repeats_the_batch(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = detect(dataset, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(2, patch)
        detect(dataset, tmp_path / "part")
    (part,) = (tmp_path / "part").iterdir()
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:3]))
    assert detect(dataset, tmp_path / "part") == whole


def test_other_settings_do_not_take_over_what_is_there(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(2, patch)
        detect(dataset, tmp_path / "part")
    other = detect(dataset, tmp_path / "part", nms_iou=0.6)
    assert other == detect(dataset, tmp_path / "fresh", nms_iou=0.6)
    assert other != detect(dataset, tmp_path / "first")


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_images_and_the_main_one_unites_them(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    monkeypatch.setattr(Processes, "collect", lambda self, value: [value])
    whole = json.dumps(detect(dataset, tmp_path / "whole"))
    for rank in range(1, world):
        assert detect(dataset, tmp_path / "shared", rank, world) == []
    lines = [line for path in (tmp_path / "shared").iterdir() for line in path.read_bytes().splitlines()]
    images = [json.loads(line)["image_id"] for line in lines]
    assert len(images) == len(set(images)) >= IMAGES // world
    assert json.dumps(detect(dataset, tmp_path / "shared", 0, world)) == whole


def test_what_several_processes_began_one_can_finish(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "collect", lambda self, value: [value])
    whole = detect(dataset, tmp_path / "whole")
    detect(dataset, tmp_path / "shared", 2, 3)
    assert detect(dataset, tmp_path / "shared") == whole


def test_a_share_that_is_missing_is_an_error(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "collect", lambda self, value: [value])
    with pytest.raises(UserError, match="5 of 7 images"):
        detect(dataset, tmp_path / "shared", 0, 4)
