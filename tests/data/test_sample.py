import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_det.config.segmentation_data import SampleMasksConfig
from dcn_det.data import sample
from dcn_det.data.build import build_masks
from dcn_det.data.sample import make, make_sample_masks
from dcn_det.data.sample.compose import IMAGE_SIZE, compose, draw_ink, load_material
from dcn_det.data.sample.masks import LAYOUT, with_border
from dcn_det.errors import UserError


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"{split}.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.make_sample(tmp_path_factory.mktemp("sample") / "set", train_images=40, val_images=20)


def test_same_seed_gives_the_same_bytes_in_another_process(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dcn_det.data.sample", str(tmp_path / "again")]
    subprocess.run([*command, "--train-images", "40", "--val-images", "20"], check=True, capture_output=True)
    assert files(tmp_path / "again") == files(root)


def test_an_image_depends_on_seed_and_number_only(root: Path, tmp_path: Path) -> None:
    fewer = sample.make_sample(tmp_path / "fewer", train_images=5, val_images=2)
    other = sample.make_sample(tmp_path / "other", train_images=5, val_images=2, seed=1)
    name = "train/000004.jpg"
    assert (fewer / name).read_bytes() == (root / name).read_bytes()
    assert (other / name).read_bytes() != (root / name).read_bytes()


def test_annotations_describe_the_files(root: Path) -> None:
    seen_ids: set[int] = set()
    for split, count in (("train", 40), ("val", 20)):
        document = annotations(root, split)
        assert len(document["images"]) == count == len(list((root / split).iterdir()))
        assert [(c["id"], c["name"]) for c in document["categories"]] == [(i + 1, str(i)) for i in range(10)]
        ids = {image["id"] for image in document["images"]}
        assert len(ids) == count and not ids & seen_ids
        seen_ids |= ids
        assert {a["image_id"] for a in document["annotations"]} == ids
        assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])
        for image in document["images"]:
            picture = cv2.imread(str(root / split / image["file_name"]))
            assert picture is not None and picture.shape == (image["height"], image["width"], 3)


def test_objects_keep_to_their_limits(root: Path) -> None:
    by_image: dict[int, list[list[int]]] = {}
    for split in ("train", "val"):
        for annotation in annotations(root, split)["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= IMAGE_SIZE and 0 <= y < y + h <= IMAGE_SIZE
            assert 22 <= max(w, h) <= 142
            assert annotation["area"] == w * h and annotation["iscrowd"] == 0
            by_image.setdefault(annotation["image_id"], []).append([x, y, x + w, y + h])
    for boxes in by_image.values():
        assert 1 <= len(boxes) <= 5
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
                assert overlap <= 0.1 * min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def test_boxes_touch_the_ink_on_all_sides() -> None:
    """Every outer row and column of the drawn opacity, which becomes the box, holds visible ink."""
    train, _ = load_material()
    rng = np.random.default_rng(0)
    for digits in train.digits:
        ink = draw_ink(digits[0], 60.0, rng)
        assert 58 <= max(ink.shape) <= 62
        assert min(ink[0].max(), ink[-1].max(), ink[:, 0].max(), ink[:, -1].max()) > 0.3


def test_training_and_validation_share_no_material() -> None:
    train, val = load_material()
    assert sum(map(len, train.digits)) + sum(map(len, val.digits)) == 1797
    for a, b in zip(train.photos, val.photos):
        assert a.shape[1] + b.shape[1] == 640


def test_an_existing_set_is_left_alone_and_an_outdated_one_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = sample.make_sample(tmp_path / "set", train_images=2, val_images=1)
    calls: list[tuple[int, int]] = []
    sample.make_sample(root, train_images=2, val_images=1, progress=lambda *args: calls.append(args))
    assert calls == [] and sample.holds_sample(root)

    monkeypatch.setattr(make, "VERSION", make.VERSION + 1)
    assert not sample.holds_sample(root)
    sample.make_sample(root, train_images=2, val_images=1, progress=lambda *args: calls.append(args))
    assert calls == [(1, 3), (2, 3), (3, 3)] and sample.holds_sample(root)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.make_sample(tmp_path / "set", train_images=2, val_images=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left.*sample") as caught:
        make.make_sample(tmp_path / "sample", 2, 1)
    assert caught.value.filename == str(tmp_path / "sample") and not list(tmp_path.iterdir())


def test_a_concurrent_writer_may_win(tmp_path: Path) -> None:
    root = tmp_path / "set"

    def other_process(done: int, total: int) -> None:
        if done == total:
            sample.make_sample(root, train_images=2, val_images=1)

    sample.make_sample(root, train_images=2, val_images=1, progress=other_process)
    assert sample.holds_sample(root) and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a sample data set"):
        sample.make_sample(tmp_path, train_images=1, val_images=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_scikit_learn_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r'pip install "dcn_det\[sample\]"'):
        sample.make_sample(tmp_path / "set", train_images=1, val_images=1)


def test_sample_masks_mark_the_ink_of_digits(tmp_path: Path) -> None:
    make_sample_masks(tmp_path / "masks", 4, 2)
    data = SampleMasksConfig(root=str(tmp_path / "masks"), workers=0)
    train, test = build_masks(data, "train"), build_masks(data, "test")
    assert (len(train), len(test)) == (4, 2)
    for part, (material, dataset) in enumerate(zip(load_material(), (train, test))):
        for i in range(len(dataset)):
            image, mask = dataset.read(i)
            assert mask is not None and 0.02 < ((mask > 0) & (mask < 255)).mean() < 0.6
            scene = compose(material, np.random.default_rng([0, part, i]), LAYOUT)
            assert np.abs(image.astype(float) - scene.image).mean() < 8  # JPEG
            inside = np.zeros_like(mask, dtype=bool)
            for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels):
                assert (mask[y1:y2, x1:x2] == label + 1).any()
                assert LAYOUT.long_side[0] - 6 < max(x2 - x1, y2 - y1) < LAYOUT.long_side[1] + 6
                inside[y1:y2, x1:x2] = True
            assert set(np.unique(mask[~inside])) <= {0, 255}


def test_edges_of_sample_digits_have_no_label() -> None:
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[5:15, 5:15] = 3
    expected = mask.copy()
    expected[3:17, 3:17] = 255  # two pixels on each side of the edge
    expected[7:13, 7:13] = 3
    assert np.array_equal(with_border(mask), expected)
