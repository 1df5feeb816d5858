"""check-dataset on images with masks: every fault is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_det.cli.dataset_checks import FixableCheck, MaskCheck, open_check
from dcn_det.config.classifier import ClassifierConfig, FoldersConfig
from dcn_det.config.data import LoadingConfig
from dcn_det.config.run import RunConfig
from dcn_det.config.segmentation_data import CityscapesDataConfig, VocMasksConfig
from dcn_det.data.build import build_masks
from dcn_det.data.masks import open_masks
from dcn_det.data.masks.base import Split
from dcn_det.data.masks.check import check_masks
from dcn_det.errors import UserError
from dcn_det.images import read_image
from tests.data.mask_trees import blocks, cityscapes_tree, mask_folders, voc_tree, write_picture, write_png
from tests.data.test_masks import KINDS, bad_mask, folders, without_masks


def config_of(data: LoadingConfig) -> RunConfig:
    """Settings of a run; their model does not matter here."""
    return RunConfig(data=data, model=ClassifierConfig())


def test_good_trees_have_no_errors(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path / "c")
    voc_tree(tmp_path / "v")
    for data in (CityscapesDataConfig(root=str(tmp_path / "c")), VocMasksConfig(root=str(tmp_path / "v"))):
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            report = check_masks(open_masks(data, split))
            assert report.good and set(report.findings.notes) <= {"class without pixels"}


def test_counts_are_those_of_the_masks(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    report = check_masks(open_masks(folders(tmp_path), "train"), workers=1)
    assert report.classes == {"ground": (3 * 24 * 12, 3), "barn": (3 * 24 * 12, 3)}
    assert report.ignored == 3 * 24 * 12 and report.findings.images == 3
    text = report.text()
    assert "3 images, 2 classes" in text and "no problems found" in text and "50.00%" in text and "33.3%" in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_problem_that_training_refuses_is_counted(tmp_path: Path, kind: str) -> None:
    mask_folders(tmp_path)
    for number in (0, 2):
        bad_mask(kind)(tmp_path / f"train/masks/farm/{number}.png")
    report = check_masks(open_masks(folders(tmp_path, max_pixels=5000), "train"))
    assert list(report.findings.errors) == [kind] and not report.good
    examples = report.findings.errors[kind]
    assert len(examples) == 2 and all(each.startswith("train/masks/farm/") for each in examples)
    assert report.findings.images == 3 and report.classes["ground"] == (24 * 12, 1)
    assert f"error {kind}: 2" in report.text()


def test_images_and_pairs_are_checked_together(tmp_path: Path) -> None:
    mask_folders(tmp_path, count=5)
    images, masks = tmp_path / "train/images/farm", tmp_path / "train/masks/farm"
    (images / "0.jpg").write_bytes((images / "0.jpg").read_bytes()[:300])
    write_picture(images / "1.png", 24, 36)  # the second image of this name
    write_picture(images / "2.jpg", 200, 200)
    write_png(masks / "2.png", blocks(200, 200, [0]))
    write_png(masks / "unused.png", blocks(2, 2, [0]))
    report = check_masks(open_masks(folders(tmp_path, max_pixels=5000), "train"))
    assert {kind: len(found) for kind, found in report.findings.errors.items()} == {
        "image unreadable or truncated": 1,
        "name used twice": 1,
        "image too large": 1,
        "mask too large": 1,
    }
    assert report.findings.notes["mask without an image"] == ["train/masks/farm/unused.png"]


def test_a_split_without_masks_has_its_images_checked(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    (tmp_path / "val/images/farm/1.jpg").write_bytes(b"")
    report = check_masks(open_masks(without_masks(tmp_path), "test"))
    assert report.findings.errors == {"image unreadable or truncated": ["val/images/farm/1.jpg"]}


def test_a_folder_in_place_of_a_mask_is_counted(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    path = tmp_path / "train/masks/farm/1.png"
    path.unlink()
    path.mkdir()
    report = check_masks(open_masks(folders(tmp_path), "train"))
    assert list(report.findings.errors) == ["mask unreadable or truncated"]


def test_rotated_images_are_noted(tmp_path: Path) -> None:
    from PIL import Image

    mask_folders(tmp_path, count=1)
    path = tmp_path / "train/images/farm/0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(read_image(path)).save(path, exif=exif)
    report = check_masks(open_masks(folders(tmp_path), "train"))
    assert report.good and any("EXIF" in kind for kind in report.findings.notes)


def test_the_command_draws_images_with_their_masks(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    data = folders(tmp_path, crop=(12, 20))
    check = open_check(config_of(data), "train")
    assert isinstance(check, MaskCheck) and not isinstance(check, FixableCheck)
    assert check.report(0).good
    assert check.browse(tmp_path / "drawn", 2) == 2
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert len(drawn) == 2 and set(drawn) <= {"0.jpg", "1.jpg", "2.jpg"}
    picture = read_image(tmp_path / "drawn" / drawn[0])
    assert picture.std() > 20


def test_what_is_listed_prevents_training(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    for number in range(2):
        (tmp_path / f"train/masks/farm/{number}.png").unlink()
    with pytest.raises(UserError, match="check-dataset lists all 2 errors") as caught:
        build_masks(folders(tmp_path), "train")
    assert "--fix" not in str(caught.value)


def test_data_without_a_check_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="FoldersConfig"):
        open_check(config_of(FoldersConfig()), "train")


def test_a_colored_mask_is_not_mistaken_for_indices(tmp_path: Path) -> None:
    """Gray stored as RGB has three equal channels; its values could be meant as indices, but nothing says so."""
    mask_folders(tmp_path, count=1)
    path = tmp_path / "train/masks/farm/0.png"
    assert cv2.imwrite(str(path), np.repeat(blocks(24, 36, [0, 1])[..., None], 3, axis=2))
    report = check_masks(open_masks(folders(tmp_path), "train"))
    assert list(report.findings.errors) == ["mask in colors instead of class indices"]
