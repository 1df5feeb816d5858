"""Made-up data sets with masks, in the layouts of their downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

from dcn_det.images import index_png, voc_palette, write_image

VOC = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blocks(height: int, width: int, values: Sequence[int]) -> np.ndarray:
    """A mask of vertical stripes of equal width."""
    return np.repeat(np.asarray(values, np.uint8), -(-width // len(values)))[None, :width].repeat(height, axis=0)


def write_png(path: Path, mask: np.ndarray, palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(index_png(mask, voc_palette() if palette else None))


def write_picture(path: Path, height: int, width: int, seed: int = 0) -> None:
    write_image(path, random_image(height, width, seed))


def write_sbd_mask(path: Path, mask: np.ndarray) -> None:
    """A file like those of the Semantic Boundaries Dataset: a structure with several fields, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = np.array([[1]], np.uint8)
    structure = {"Boundaries": np.zeros((20, 1), object), "Segmentation": mask, "CategoriesPresent": categories}
    savemat(path, {"GTcls": structure}, do_compression=True)


def voc_tree(root: Path, height: int = 30, width: int = 40) -> None:
    """Training images a, b in Pascal VOC; b, c, d in the other set, of which d is a validation image, as is e."""
    for number, name in enumerate("abde"):
        write_picture(root / VOC / "JPEGImages" / f"2008_{name}.jpg", height, width, number)
        write_png(root / VOC / "SegmentationClass" / f"2008_{name}.png", blocks(height, width, [0, 15, 255, 20]))
    for number, name in enumerate("bcd"):
        write_picture(root / SBD / "img" / f"2008_{name}.jpg", height, width, number)
        write_sbd_mask(root / SBD / "cls" / f"2008_{name}.mat", blocks(height, width, [0, 1, 2, 3]))
    sets = root / VOC / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for name, members in (("train", "ab"), ("val", "de")):
        (sets / f"{name}.txt").write_text("".join(f"2008_{each}\n" for each in members))
    for name, members in (("train", "bc"), ("val", "d")):
        (root / SBD / f"{name}.txt").write_text("".join(f"2008_{each}\n" for each in members))


def cityscapes_tree(root: Path, height: int = 64, width: int = 128) -> None:
    """Two cities for training, one for validation and one for testing, whose files have no labels."""
    for split, city, count in (("train", "aachen", 2), ("train", "ulm", 1), ("val", "lindau", 2), ("test", "bonn", 2)):
        for number in range(count):
            name = f"{city}_{number:06d}_000019"
            write_picture(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", height, width, number)
            mask = blocks(height, width, [0, 7, 26, 33] if split != "test" else [0])
            folder = root / "gtFine" / split / city
            write_png(folder / f"{name}_gtFine_labelIds.png", mask, palette=False)
            write_png(folder / f"{name}_gtFine_instanceIds.png", mask, palette=False)


def mask_folders(root: Path, height: int = 24, width: int = 36, count: int = 3) -> None:
    """Folders of two classes, one level deep, with gray and palette masks."""
    for split in ("train", "val"):
        for number in range(count):
            write_picture(root / split / "images" / "farm" / f"{number}.jpg", height, width, number)
            mask = blocks(height, width, [0, 1, 255])
            write_png(root / split / "masks" / "farm" / f"{number}.png", mask, palette=number % 2 == 0)
