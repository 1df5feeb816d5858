"""Images in one folder per class."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dcn_det.data.folders import (
    FolderDataset,
    evaluation_transform,
    read_folders,
    training_transform,
)
from dcn_det.data.loader import Loader
from dcn_det.data.sample import holds_digits, make_digits
from dcn_det.data.sampler import Draw, EvalSampler
from dcn_det.errors import UserError


def write(path: Path, height: int = 20, width: int = 30, color: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), color, np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train/ant/b.png", "train/ant/a.JPEG", "train/bee/images/deep.jpg", "train/ce/1.png", "val/bee/x.png"):
        write(tmp_path / name)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "readme.md").write_text("")
    return tmp_path


def test_classes_are_the_sorted_folders(root: Path) -> None:
    index = read_folders(root / "train", "data.train")
    assert [category.name for category in index.categories] == ["ant", "bee", "ce"]
    assert [index.file_name(i) for i in range(len(index))] == [
        "ant/a.JPEG",
        "ant/b.png",
        "bee/images/deep.jpg",
        "ce/1.png",
    ]
    assert index.labels.tolist() == [0, 0, 1, 2]
    assert "4 images, 3 classes" in index.report


def test_validation_has_the_labels_of_training(root: Path) -> None:
    index = read_folders(root / "val", "data.val", ["ant", "bee", "ce"])
    assert index.labels.tolist() == [1] and len(index.categories) == 3


def test_the_fingerprint_is_of_classes_and_files(root: Path) -> None:
    before = read_folders(root / "train", "data.train").fingerprint()
    assert read_folders(root / "train", "data.train").fingerprint() == before
    (root / "train" / "ce" / "1.png").rename(root / "train" / "ce" / "2.png")
    assert read_folders(root / "train", "data.train").fingerprint() != before


def test_bad_folders_are_refused_in_one_line(root: Path) -> None:
    (root / "train" / "dragonfly").mkdir()
    write(root / "val" / "aant" / "1.png")
    classes = ["ant", "bee", "ce"]
    for folder, known, parts in [
        ("train", None, ("data.train", "dragonfly", "no images")),
        ("val", classes, ("data.val", "aant", "did you mean 'ant'")),
        ("nowhere", None, ("nowhere", "does not exist")),
        ("train/dragonfly", None, ("dragonfly", "no folders")),
    ]:
        with pytest.raises(UserError) as caught:
            read_folders(root / folder, f"data.{folder}", known)
        assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def gradient(path: Path, height: int, width: int) -> np.ndarray:
    """Writes an image whose red is the column and green the row; returns it."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])
    return image


def test_evaluation_crops_the_center_of_rgb_images(tmp_path: Path) -> None:
    image = gradient(tmp_path / "val" / "a" / "1.png", 40, 60)
    dataset = FolderDataset(read_folders(tmp_path / "val", "data.val"), evaluation_transform(32, 40))
    pixels, info = dataset[Draw(0, False, 0)]
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image[4:36, 14:46])
    assert (info.file_name, info.height, info.width, info.input_height) == ("a/1.png", 40, 60, 32)


def test_random_changes_depend_on_the_seed_alone(tmp_path: Path) -> None:
    image = gradient(tmp_path / "train" / "a" / "1.png", 50, 70)
    index = read_folders(tmp_path / "train", "data.train")
    dataset = FolderDataset(index, training_transform(24, (0.1, 1), (0.75, 1.3), flip=True))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = [dataset[Draw(0, False, seed)][0] for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), state), "the generator of the run does not move"
    torch.manual_seed(6)
    assert all(torch.equal(dataset[Draw(0, False, seed)][0], first[seed]) for seed in reversed(range(20)))
    assert len({each.numpy().tobytes() for each in first}) == 20
    rises = [bool(each[0, 0, -1] > each[0, 0, 0]) for each in first]
    assert 3 < sum(rises) < 17, "about half are mirrored"
    assert all(int(each.max()) <= image.max() for each in first)
    plain = FolderDataset(index, training_transform(24, (0.1, 1), (0.75, 1.3), flip=False))
    assert all(bool(pixels[0, 0, -1] > pixels[0, 0, 0]) for pixels in (plain[Draw(0, False, s)][0] for s in range(20)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_any_number_of_workers(root: Path, workers: int) -> None:
    dataset = FolderDataset(read_folders(root / "train", "data.train"), evaluation_transform(16, 16))
    batches = list(Loader(dataset, EvalSampler(len(dataset), 3), workers))
    assert [batch.labels.tolist() for batch in batches] == [[0, 0, 1], [2]]
    assert batches[0].images.shape == (3, 3, 16, 16) and len(batches[1]) == 1


def test_an_unreadable_image_is_named(root: Path) -> None:
    (root / "train" / "ce" / "1.png").write_bytes(b"")
    dataset = FolderDataset(read_folders(root / "train", "data.train"), evaluation_transform(16, 16))
    with pytest.raises(UserError, match=r"ce/1\.png"):
        list(Loader(dataset, EvalSampler(len(dataset), 2)))


def test_damaged_images_are_read_or_refused(root: Path) -> None:
    dataset = FolderDataset(read_folders(root / "train", "data.train"), evaluation_transform(16, 16))
    path = root / "train" / "ant" / "a.JPEG"
    good, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(len(good))] = draw.randrange(256)
        path.write_bytes(bytes(damaged[: draw.randint(len(good) // 2, len(good))]))
        try:
            assert dataset[Draw(0, False, 0)][0].shape == (3, 16, 16)
        except UserError:
            refused += 1
    assert refused > 0


def test_digits_are_the_same_everywhere_and_balanced(tmp_path: Path) -> None:
    first, second = (make_digits(tmp_path / name, train_images=20, val_images=10) for name in "ab")
    assert holds_digits(first) and not holds_digits(tmp_path)
    files = sorted(path.relative_to(first) for path in first.rglob("*.jpg"))
    assert len(files) == 30
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    index = read_folders(first / "train", "data.train")
    assert np.bincount(index.labels).tolist() == [2] * 10
    assert [category.name for category in index.categories] == list("0123456789")
