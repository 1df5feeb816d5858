"""Images with masks: layouts of data sets, what training and testing get of them, and refused files."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dcn_det.config.data import ResizeConfig
from dcn_det.config.registry import MASKS
from dcn_det.config.segmentation_data import (
    CityscapesDataConfig,
    MaskDataConfig,
    MaskFilesConfig,
    VocMasksConfig,
    VocMaskSplitConfig,
)
from dcn_det.data.build import build_eval_loader, build_masks, build_train_loader
from dcn_det.data.masks.dataset import MaskDataset
from dcn_det.data.masks.reading import MaskProblem, Values, read_mask
from dcn_det.data.sampler import Draw
from dcn_det.errors import UserError
from dcn_det.structures import ImageInfo, MaskBatch
from tests.data import mask_trees
from tests.data.mask_trees import SBD, VOC, blocks, cityscapes_tree, mask_folders, voc_tree, write_png

CLASSES = ("ground", "barn")


def folders(root: Path, **settings: object) -> MaskFilesConfig:
    return MaskFilesConfig(root=str(root), classes=CLASSES, workers=0, **settings)  # type: ignore[arg-type]


def names(dataset: MaskDataset) -> list[str]:
    return [dataset.index.name(i) for i in range(len(dataset))]


def test_voc_adds_the_other_masks_and_leaves_out_validation_images(tmp_path: Path) -> None:
    voc_tree(tmp_path)
    data = VocMasksConfig(root=str(tmp_path), workers=0)
    train, test = build_masks(data, "train"), build_masks(data, "test")
    assert names(train) == ["2008_a", "2008_b", "2008_c"] and names(test) == ["2008_d", "2008_e"]
    found = [sorted(np.unique(labels).tolist()) for _, labels in map(train.read, range(3)) if labels is not None]
    assert found == [[0, 15, 20, 255], [0, 15, 20, 255], [0, 1, 2, 3]]  # b is in both: Pascal VOC's mask counts
    assert len(train.categories) == 21 and train.categories[15].name == "person"
    assert "3 of 3 images" in train.index.report
    assert (train.short_side, train.max_side, train.crop) == (360, 600, None)


def test_cityscapes_maps_label_ids_to_classes(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    data = CityscapesDataConfig(root=str(tmp_path), workers=0)
    train, test = build_masks(data, "train"), build_masks(data, "test")
    assert names(train) == ["aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019"]
    _, labels = train.read(0)
    assert labels is not None and labels[0, ::32].tolist() == [255, 0, 13, 18]
    assert [train.categories[i].name for i in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert len(test) == 2 and test.index.annotated
    unlabelled = build_masks(data.model_copy(update={"test": type(data.train)(sets=("test",))}), "test")
    assert not unlabelled.index.annotated and "without masks" in unlabelled.index.report
    batch = next(iter(build_eval_loader(unlabelled, data, 2)))
    assert batch.truths == [] and len(batch) == 2


def test_every_label_id_of_cityscapes_has_one_meaning(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    values = build_masks(CityscapesDataConfig(root=str(tmp_path)), "train").index.values
    table = values.table[:34].tolist()
    assert sorted(label for label in table if label != 255) == list(range(19))
    # Ids 0-6, 9, 10, 14-16, 18, 29 and 30 do not count (labels.py of the data set's scripts).
    assert [i for i, label in enumerate(table) if label == 255] == [*range(7), 9, 10, 14, 15, 16, 18, 29, 30]
    assert values.forbidden[34:255].all() and not values.forbidden[255]


def test_folders_and_their_names(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    train = build_masks(folders(tmp_path), "train")
    assert names(train) == ["farm/0", "farm/1", "farm/2"]
    for i in range(3):  # palette and gray alike
        _, labels = train.read(i)
        assert labels is not None and np.array_equal(labels, blocks(24, 36, [0, 1, 255]))
    assert train.index.fingerprint() == build_masks(folders(tmp_path), "train").index.fingerprint()
    assert train.index.fingerprint() != build_masks(folders(tmp_path), "test").index.fingerprint()


def test_other_values_can_be_ignored(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    mask_trees.write_png(tmp_path / "train/masks/farm/0.png", blocks(24, 36, [0, 1, 7]))
    with pytest.raises(UserError, match="value 7"):
        build_masks(folders(tmp_path), "train").read(0)
    _, labels = build_masks(folders(tmp_path, ignored=(7, 255)), "train").read(0)
    assert labels is not None and sorted(np.unique(labels)) == [0, 1, 255]


def test_training_resizes_image_and_mask_alike(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    dataset = build_masks(folders(tmp_path, resize=ResizeConfig(short_side=37, max_side=100)), "train")
    pixels, info, labels = dataset[Draw(1, False, 3)]
    assert pixels.shape == (3, 37, 56) and labels is not None and labels.shape == (37, 56)
    assert (info.height, info.width, info.input_height, info.input_width) == (24, 36, 37, 56)
    expected = cv2.resize(blocks(24, 36, [0, 1, 255]), (56, 37), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(labels.numpy(), expected)
    mirrored, _, turned = dataset[Draw(1, True, 3)]
    assert turned is not None
    assert torch.equal(mirrored, pixels.flip(2)) and torch.equal(turned, labels.flip(1))


def coordinates(root: Path, height: int, width: int) -> None:
    """An image whose pixels tell their position, losslessly, and a mask that is its red channel."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=2)
    for split in ("train", "val"):
        path = root / split / "images" / "0.png"
        path.parent.mkdir(parents=True)
        assert cv2.imwrite(str(path), image[..., ::-1])
        write_png(root / split / "masks" / "0.png", rows % 2)


@pytest.mark.parametrize("flipped", [False, True])
def test_crops_cut_image_and_mask_alike_and_depend_on_the_seed_only(tmp_path: Path, flipped: bool) -> None:
    coordinates(tmp_path, 40, 60)
    data = folders(tmp_path, crop=(16, 20), resize=ResizeConfig(short_side=40, max_side=60))
    dataset = build_masks(data, "train")
    corners = set()
    for seed in range(40):
        pixels, info, labels = dataset[Draw(0, flipped, seed)]
        assert pixels.shape == (3, 16, 20) and (info.input_height, info.input_width) == (16, 20)
        assert labels is not None and torch.equal(labels, pixels[0] % 2)
        again, _, same = dataset[Draw(0, flipped, seed)]
        assert torch.equal(again, pixels) and same is not None and torch.equal(same, labels)
        corners.add((int(pixels[0, 0, 0]), int(pixels[1].min())))
    tops, lefts = {top for top, _ in corners}, {left for _, left in corners}
    assert len(corners) > 30 and max(tops) > 18 and min(tops) < 6 and max(lefts) > 32 and min(lefts) < 8
    whole = build_masks(data.model_copy(update={"crop": (100, 20)}), "train")
    assert whole[Draw(0, False, 0)][0].shape == (3, 40, 20)  # not cropped where the image is smaller


def test_tests_keep_the_masks_of_the_original_images(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    data = folders(tmp_path, crop=(8, 8), resize=ResizeConfig(short_side=12, max_side=100))
    dataset = build_masks(data, "test")
    (batch,) = build_eval_loader(dataset, data, 3, views=((True, (48, 100)),))
    assert batch.images.shape == (3, 3, 48, 72) and batch.labels is None
    assert all(np.array_equal(truth, blocks(24, 36, [0, 1, 255])) for truth in batch.truths)
    assert [info.flipped for info in batch.infos] == [True] * 3


def test_padding_is_ignored(tmp_path: Path) -> None:
    mask_folders(tmp_path, count=1)
    mask_trees.write_picture(tmp_path / "train/images/tall.png", 40, 20)
    write_png(tmp_path / "train/masks/tall.png", blocks(40, 20, [1]))
    data = folders(tmp_path, resize=ResizeConfig(short_side=20, max_side=60))
    batch = build_masks(data, "train").batch([Draw(0, False, 0), Draw(1, True, 0)])
    assert batch.images.shape == (2, 3, 40, 30) and batch.labels is not None and batch.labels.shape == (2, 40, 30)
    assert (batch.labels[0, 20:] == 255).all() and (batch.labels[1, :, 20:] == 255).all()
    assert (batch.labels[1, :, :20] == 1).all() and not batch.images[0, :, 20:].any()


def plain(batch: MaskBatch) -> tuple[object, ...]:
    assert batch.labels is not None
    return batch.images.numpy().tobytes(), batch.labels.numpy().tobytes(), tuple(batch.infos)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_iteration_can_be_reached_directly(tmp_path: Path, workers: int) -> None:
    mask_folders(tmp_path, count=7)
    data = folders(tmp_path, crop=(10, 12), flip="random", resize=ResizeConfig(short_side=24, max_side=60))
    dataset = build_masks(data, "train")
    loader = build_train_loader(dataset, data, 2, seed=5)
    first = [plain(batch) for batch, _ in zip(loader, range(8))]
    other = data.model_copy(update={"workers": workers})
    resumed = build_train_loader(dataset, other, 2, seed=5, start_iteration=4)
    assert [plain(batch) for batch, _ in zip(resumed, range(4))] == first[4:]
    halves = [build_train_loader(dataset, data, 1, seed=5, world_size=2, rank=rank) for rank in (0, 1)]
    infos = [[next(iter(half)).infos[0] for half in halves]]
    assert tuple(infos[0]) == first[0][2]
    assert first != [plain(batch) for batch, _ in zip(build_train_loader(dataset, data, 2, seed=6), range(8))]


def test_batches_do_not_mix_landscape_and_portrait(tmp_path: Path) -> None:
    mask_folders(tmp_path, count=4)
    for number in range(4):
        mask_trees.write_picture(tmp_path / f"train/images/tall{number}.jpg", 36, 24, number)
        write_png(tmp_path / f"train/masks/tall{number}.png", blocks(36, 24, [1]))
    data = folders(tmp_path, resize=ResizeConfig(short_side=24, max_side=60))
    dataset = build_masks(data, "train")
    assert dataset.landscape.tolist() == [True] * 4 + [False] * 4
    for batch, _ in zip(build_train_loader(dataset, data, 2, seed=0), range(12)):
        assert len({info.width > info.height for info in batch.infos}) == 1


def test_parts_keep_ids_and_have_nothing_in_common(tmp_path: Path) -> None:
    mask_folders(tmp_path, count=30)
    data = folders(tmp_path)
    whole = build_masks(data, "train")
    split = type(data.train)
    low, high = (
        build_masks(data.model_copy(update={"train": split(images=i, masks=m, part=part)}), "train")
        for i, m, part in [("train/images", "train/masks", (0, 0.5)), ("train/images", "train/masks", (0.5, 1))]
    )
    assert sorted(names(low) + names(high)) == names(whole) and 5 < len(low) < 25
    for part in (low, high):
        assert [names(whole)[i] for i in part.image_ids.tolist()] == names(part)
    assert "left out" in low.index.report


def test_the_data_set_can_be_sent_to_another_process(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    dataset = build_masks(folders(tmp_path), "train")
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[Draw(0, False, 0)][0], dataset[Draw(0, False, 0)][0])


def bad_mask(kind: str) -> Callable[[Path], None]:
    def truncate(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])

    def color(path: Path) -> None:
        assert cv2.imwrite(str(path), np.zeros((24, 36, 3), np.uint8))

    return {
        "mask missing": lambda path: path.unlink(),
        "mask unreadable or truncated": truncate,
        "mask in colors instead of class indices": color,
        "mask not in 8 bits per pixel": lambda path: assert_written(path, np.zeros((24, 36), np.uint16)),
        "mask size differs from the image": lambda path: write_png(path, blocks(24, 35, [0])),
        "mask with values that are no class": lambda path: write_png(path, blocks(24, 36, [0, 2])),
        "mask without a labelled pixel": lambda path: write_png(path, blocks(24, 36, [255])),
        "mask too large": lambda path: write_png(path, blocks(100, 100, [0])),
    }[kind]


def assert_written(path: Path, mask: np.ndarray) -> None:
    assert cv2.imwrite(str(path), mask)


KINDS = (
    "mask missing",
    "mask unreadable or truncated",
    "mask in colors instead of class indices",
    "mask not in 8 bits per pixel",
    "mask size differs from the image",
    "mask with values that are no class",
    "mask without a labelled pixel",
    "mask too large",
)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_that_cannot_be_used_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    mask_folders(tmp_path)
    data = folders(tmp_path, max_pixels=5000)
    dataset = build_masks(data, "train")
    bad_mask(kind)(tmp_path / "train/masks/farm/1.png")
    with pytest.raises(MaskProblem, match=r"farm/1\.png") as caught:
        dataset.batch([Draw(1, False, 0)])
    assert caught.value.kind == kind
    with pytest.raises(UserError, match=kind):
        next(iter(build_train_loader(dataset, data, 3, 0)))


def test_files_that_are_missing_are_found_at_the_start(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    (tmp_path / "train/masks/farm/1.png").unlink()
    with pytest.raises(UserError, match=r"mask missing: train/masks/farm/1\.png"):
        build_masks(folders(tmp_path), "train")
    cityscapes_tree(tmp_path / "c")
    shutil.rmtree(tmp_path / "c/gtFine/train/ulm")
    with pytest.raises(UserError, match="mask missing"):
        build_masks(CityscapesDataConfig(root=str(tmp_path / "c")), "train")
    voc_tree(tmp_path / "v")
    (tmp_path / "v" / SBD / "img" / "2008_c.jpg").unlink()
    with pytest.raises(UserError, match="image missing"):
        build_masks(VocMasksConfig(root=str(tmp_path / "v")), "train")


def without_masks(root: Path) -> MaskDataConfig:
    data = folders(root)
    return data.model_copy(update={"test": type(data.train)(images="val/images", masks=None)})


def test_only_test_splits_may_be_without_masks(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    assert not build_masks(without_masks(tmp_path), "test").index.annotated
    shutil.rmtree(tmp_path / "train/masks")
    with pytest.raises(UserError, match="train/masks"):
        build_masks(folders(tmp_path), "train")
    # Pascal VOC's test images have no masks at all.
    voc_tree(tmp_path / "v")
    for name in "de":
        (tmp_path / "v" / VOC / "SegmentationClass" / f"2008_{name}.png").unlink()
    assert not build_masks(VocMasksConfig(root=str(tmp_path / "v")), "test").index.annotated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / SBD), r"data\.train\.sbd"),
        (lambda root: (root / VOC / "ImageSets/Segmentation/train.txt").unlink(), "train.txt"),
        (lambda root: shutil.rmtree(root), r"data\.root"),
    ],
)
def test_missing_lists_name_the_setting(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "voc"
    voc_tree(root)
    change(root)
    with pytest.raises(UserError, match=message):
        build_masks(VocMasksConfig(root=str(root)), "train")


def test_cityscapes_names_the_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train\.sets.*leftImg8bit"):
        build_masks(CityscapesDataConfig(root=str(tmp_path)), "train")


@pytest.mark.parametrize("size", [0, 100, 200])
def test_damaged_matlab_files_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.mat"
    mask_trees.write_sbd_mask(path, blocks(30, 40, [0, 1, 2]))
    assert np.array_equal(read_mask(path), blocks(30, 40, [0, 1, 2]))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MaskProblem, match="unreadable"):
        read_mask(path)
    mask_trees.write_sbd_mask(path, np.zeros((3, 4, 2), np.uint8))
    with pytest.raises(MaskProblem, match="unreadable"):
        read_mask(path)


def test_values_of_one_bit_and_few_bits(tmp_path: Path) -> None:
    from PIL import Image

    mask = blocks(6, 8, [0, 1])
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "small.png", bits=1)
    assert np.array_equal(read_mask(tmp_path / "small.png"), mask)
    Image.fromarray(mask * 255).convert("1").save(tmp_path / "bits.png")
    assert np.array_equal(read_mask(tmp_path / "bits.png"), mask)


def test_values_are_mapped_to_labels() -> None:
    values = Values([7, 3], ignored=[0, 255])
    mapped = values.labels(np.array([[7, 3, 0, 255]], np.uint8), "x.png")
    assert mapped.tolist() == [[0, 1, 255, 255]]


def test_classes_of_training_must_be_those_of_the_test(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    assert len(build_masks(folders(tmp_path), "test", classes=CLASSES)) == 3
    with pytest.raises(UserError, match="barn"):
        build_masks(folders(tmp_path), "test", classes=("barn", "ground"))


def test_a_batch_is_moved_and_stored_whole() -> None:
    info = ImageInfo(0, "a.jpg", 4, 5, 4, 5)
    images, labels = torch.zeros(1, 3, 4, 5, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.uint8)
    train, test = MaskBatch(images, [info], labels), MaskBatch(images, [info], truths=[labels[0]])
    assert len(train) == 1 and len(train.tensors()) == len(test.tensors()) == 2
    assert train.to_plain()["labels"] is labels and test.to_plain()["truths"][0].shape == (4, 5)
    assert test.to("cpu").labels is None and len(test.to("cpu").truths) == 1


def test_other_kinds_can_be_registered(tmp_path: Path) -> None:
    assert set(MASKS.sections) >= {"voc_masks", "cityscapes", "masks", "sample_masks"}
    assert all(issubclass(section, MaskDataConfig) for section in MASKS.sections.values())
    with pytest.raises(ValueError, match="MaskDataConfig"):
        MASKS.register("bad", VocMaskSplitConfig, "a:b")  # type: ignore[arg-type]
