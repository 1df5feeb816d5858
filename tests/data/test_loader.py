import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dcn_det.config.data import CocoDataConfig, CocoSplitConfig, DataConfig, ResizeConfig, SampleDataConfig
from dcn_det.data import build, sample
from dcn_det.data.dataset import DetectionDataset, collate
from dcn_det.data.loader import Loader
from dcn_det.data.sampler import Draw, EvalSampler, TrainSampler
from dcn_det.errors import UserError
from dcn_det.structures import Batch, ImageInfo, Target
from tests.data.helpers import load_coco, write_set


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.make_sample(tmp_path_factory.mktemp("loader") / "set", train_images=12, val_images=5)


def settings(root: Path, **changes: object) -> DataConfig:
    values: dict[str, object] = {
        "kind": "sample",
        "root": str(root),
        "train": CocoSplitConfig(images="train", annotations="annotations/train.json"),
        "test": CocoSplitConfig(images="val", annotations="annotations/val.json"),
        "resize": ResizeConfig(short_side=96, max_side=200),
        "workers": 0,
    }
    return SampleDataConfig.model_validate(values | changes)


def assert_same(a: Iterable[Batch], b: Iterable[Batch]) -> None:
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left.images, right.images) and left.infos == right.infos
        for x, y in zip(left.targets, right.targets, strict=True):
            assert torch.equal(x.boxes, y.boxes) and torch.equal(x.labels, y.labels)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (50, 50)])
def test_the_box_is_where_the_rectangle_is(tmp_path: Path, height: int, width: int, flipped: bool) -> None:
    folder = write_set(tmp_path / "set", [(height, width)])
    index = load_coco(folder / "boxes.json", folder / "images")
    dataset = DetectionDataset(index, short_side=120, max_side=250, with_targets=True)
    pixels, info, target = dataset[Draw(0, flipped, 7)]
    assert target is not None and info.flipped == flipped and info.seed == 7
    assert (info.height, info.width) == (height, width)
    assert pixels.shape == (3, info.input_height, info.input_width) and pixels.dtype == torch.uint8
    rows, columns = torch.nonzero(pixels[0] > 127, as_tuple=True)
    found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    torch.testing.assert_close(target.boxes[0], found, rtol=0, atol=0.51)
    assert target.labels.tolist() == [0]


def test_collate_pads_with_zeros_to_the_largest() -> None:
    def example(height: int, width: int, value: int, with_target: bool) -> tuple:
        pixels = torch.full((3, height, width), value, dtype=torch.uint8)
        info = ImageInfo(value, "", height, width, height, width)
        target = Target(torch.zeros(value, 4), torch.zeros(value, dtype=torch.int64)) if with_target else None
        return pixels, info, target

    batch = collate([example(2, 5, 1, True), example(4, 3, 2, True)])
    assert batch.images.shape == (2, 3, 4, 5) and batch.images.dtype == torch.uint8
    assert batch.images[0, 0].tolist() == [[1] * 5, [1] * 5, [0] * 5, [0] * 5]
    assert batch.images[1, 2].tolist() == [[2, 2, 2, 0, 0]] * 4
    assert [len(target.boxes) for target in batch.targets] == [1, 2]
    assert [info.image_id for info in batch.infos] == [1, 2]
    assert collate([example(2, 5, 1, False)]).targets == []


def test_number_of_workers_changes_nothing(root: Path) -> None:
    """Twenty batches cross the end of the epoch of 12."""
    data = settings(root)
    dataset = build.build_dataset(data, "train")
    state = torch.get_rng_state()
    here = list(islice(build.build_train_loader(dataset, data, 2, seed=3), 20))
    data = settings(root, workers=2)
    there = list(islice(build.build_train_loader(dataset, data, 2, seed=3), 20))
    assert_same(here, there)
    later = build.build_train_loader(dataset, data, 2, seed=3, start_iteration=13)
    assert_same(here[13:], islice(later, 7))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    other = next(iter(build.build_train_loader(dataset, settings(root), 2, seed=4)))
    assert other.infos != here[0].infos


@pytest.mark.slow
def test_workers_can_be_spawned(root: Path) -> None:
    dataset = build.build_dataset(settings(root), "test")
    spawned = Loader(dataset, EvalSampler(len(dataset), 2), workers=1, start_method="spawn")
    assert_same(spawned, build.build_eval_loader(dataset, settings(root), 2))


WITH_WORKERS = """
import os, signal, sys, time
from dcn_det.data import build
from dcn_det.config.data import SampleDataConfig
data = SampleDataConfig.model_validate_json(sys.argv[1])
dataset = build.build_dataset(data, "train")
batches = iter(build.build_train_loader(dataset, data, 2, seed=3))
next(batches)
for process in __import__("multiprocessing").active_children():
    print(process.pid, flush=True)
if sys.argv[2] == "ends":
    sys.keep = batches  # a reference that outlives the loader's own clean-up
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize("how", ["is killed", "ends"])
def test_workers_end_when_the_main_process_does(root: Path, how: str) -> None:
    data = settings(root, workers=2).model_dump_json()
    command = [sys.executable, "-c", WITH_WORKERS, data, how.removeprefix("is ")]
    with (root / "pids").open("w+") as file:  # a pipe would stay open as long as the workers
        subprocess.run(command, stdout=file, timeout=60)
        file.seek(0)
        pids = [int(line) for line in file]
    assert len(pids) == 2
    end = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < end, "the workers go on"
        time.sleep(0.1)


def test_evaluation_can_be_repeated_and_divided(root: Path) -> None:
    data = settings(root)
    dataset = build.build_dataset(data, "test")
    loader = build.build_eval_loader(dataset, data, 2)
    ids = [info.image_id for batch in loader for info in batch.infos]
    assert ids == dataset.index.image_ids.tolist() and len(ids) == 5
    assert_same(loader, loader)
    parts = [build.build_eval_loader(dataset, data, 2, world_size=2, rank=rank) for rank in (0, 1)]
    assert [info.image_id for part in parts for batch in part for info in batch.infos] == ids
    assert all(batch.targets == [] for batch in loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_image_is_the_same_error_with_and_without_workers(root: Path, tmp_path: Path, workers: int) -> None:
    copied = shutil.copytree(root, tmp_path / "set")
    data = settings(copied, workers=workers)
    dataset = build.build_dataset(data, "test")
    path = copied / "val" / "000003.jpg"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError) as error:
        list(build.build_eval_loader(dataset, data, 2))
    message = f"cannot decode image {path}: 2000 bytes, truncated or not an image"
    assert type(error.value) is UserError and str(error.value) == message


def test_an_image_of_another_size_than_annotated_is_an_error(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(40, 100)])
    index = load_coco(folder / "boxes.json", folder / "images")
    cv2.imwrite(str(folder / "images" / "0.png"), np.zeros((100, 40, 3), np.uint8))
    dataset = DetectionDataset(index, 40, 100, with_targets=False)
    with pytest.raises(UserError, match=r"0\.png is 40x100, but .*boxes\.json says 100x40$"):
        dataset[Draw(0, False, 0)]


def test_the_sample_set_is_written_when_first_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dcn_det.data.formats.sample.make_sample", partial(sample.make_sample, train_images=3, val_images=2)
    )
    told: list[tuple[int, int]] = []
    data = settings(tmp_path / "new" / "set")
    dataset = build.build_dataset(data, "train", progress=lambda *args: told.append(args))
    assert len(dataset) == 3 and told[-1] == (5, 5)
    assert [category.name for category in dataset.categories] == list("0123456789")
    told.clear()
    assert len(build.build_dataset(data, "test", progress=lambda *args: told.append(args))) == 2
    assert told == []


def test_settings_reach_their_place(root: Path) -> None:
    data = settings(root, flip="random", aspect_grouping=False)
    dataset = build.build_dataset(data, "train")
    assert (dataset.short_side, dataset.max_side, dataset.with_targets) == (96, 200, True)
    loader = build.build_train_loader(dataset, data, 2, seed=9, world_size=2, rank=1, start_iteration=4)
    sampler = loader.sampler
    assert isinstance(sampler, TrainSampler)
    assert (sampler.flip, sampler.aspect_grouping, sampler.seed, sampler.batch_size) == (
        "random",
        False,
        9,
        2,
    )
    assert (sampler.world_size, sampler.rank, sampler.start_iteration, sampler.epoch_length) == (2, 1, 4, 3)
    test = build.build_dataset(data, "test", resize=ResizeConfig(short_side=64, max_side=128))
    assert (test.short_side, test.max_side, test.with_targets) == (64, 128, False)
    with pytest.raises(UserError, match=r"data\.classes: not among the 10 categories"):
        build.build_dataset(settings(root, classes=("0", "eleven")), "train")


def test_policies_are_for_training_only(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(40, 60), (40, 60), (40, 60)])
    document = json.loads((folder / "boxes.json").read_text())
    del document["annotations"][1]
    (folder / "boxes.json").write_text(json.dumps(document))
    split = CocoSplitConfig(images="images", annotations="boxes.json")
    data = CocoDataConfig(root=str(folder), train=split, test=split, empty_images="skip", bad_images="skip")
    assert len(build.build_dataset(data, "train")) == 2
    assert len(build.build_dataset(data, "test")) == 3
    (folder / "images" / "2.png").unlink()
    assert len(build.build_dataset(data, "train")) == 1
    with pytest.raises(UserError, match="1 of 3 images are missing"):
        build.build_dataset(data, "test")


def test_missing_paths_name_their_setting(root: Path, tmp_path: Path) -> None:
    def message(split: str, **changes: object) -> str:
        with pytest.raises(UserError) as error:
            build.build_dataset(data.model_copy(update=changes), "train" if split == "train" else "test")
        return str(error.value)

    split = CocoSplitConfig(images="train", annotations="annotations/train.json")
    data = CocoDataConfig(root=str(root), train=split, test=split)
    gone = tmp_path / "gone"
    assert message("train", root=str(gone)).startswith(f"data.root: folder {gone} does not exist")
    wrong = CocoSplitConfig(images="val", annotations="none.json")
    assert message("test", test=wrong).startswith(f"data.test.annotations: no file {root / 'none.json'}")
    wrong = CocoSplitConfig(images="none", annotations="annotations/train.json")
    assert message("train", train=wrong).startswith(f"data.train.images: no folder {root / 'none'}")


@pytest.mark.shared
def test_real_photos_load_with_their_boxes_inside(shared: Path) -> None:
    root = shared / "data" / "coco_subset"
    split = CocoSplitConfig(images="train2017", annotations="annotations/instances_train2017_subset.json")
    data = CocoDataConfig(root=str(root), train=split, test=split, workers=0)
    dataset = build.build_dataset(data, "train")
    seen = 0
    for batch in islice(build.build_train_loader(dataset, data, 4, seed=0), 6):
        assert batch.images.dtype == torch.uint8 and batch.images.float().std() > 20
        for info, target in zip(batch.infos, batch.targets):
            assert max(info.input_height, info.input_width) <= 1000
            assert 600 in (info.input_height, info.input_width) or 1000 in (
                info.input_height,
                info.input_width,
            )
            limit = torch.tensor([info.input_width, info.input_height] * 2)
            assert (target.boxes >= 0).all() and (target.boxes <= limit + 1e-3).all()
            assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
            seen += len(target.labels)
    assert seen > 24
