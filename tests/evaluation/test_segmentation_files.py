"""Files of predictions: what is written can be read, evaluated and submitted."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcn_det.config.registry import resolve
from dcn_det.config.segmentation_data import CityscapesDataConfig, MaskDataConfig, MaskFilesConfig, VocMasksConfig
from dcn_det.data.build import build_masks
from dcn_det.data.masks.base import MaskIndex
from dcn_det.errors import UserError
from dcn_det.evaluation.segmentation_files import (
    evaluate_folder,
    label_ids,
    read_prediction,
    write_cityscapes_submission,
    write_prediction,
    write_voc_submission,
)
from dcn_det.images import voc_palette
from tests.data.mask_trees import blocks, cityscapes_tree, mask_folders, voc_tree


def cityscapes(root: Path) -> tuple[CityscapesDataConfig, MaskIndex]:
    cityscapes_tree(root)
    data = CityscapesDataConfig(root=str(root))
    return data, build_masks(data, "test").index


def voc(root: Path) -> tuple[VocMasksConfig, MaskIndex]:
    voc_tree(root)
    data = VocMasksConfig(root=str(root))
    return data, build_masks(data, "test").index


def predict(folder: Path, data: MaskDataConfig, index: MaskIndex, labels: np.ndarray) -> None:
    for i in range(len(index)):
        write_prediction(folder, index.name(i), labels, data)


def test_the_palette_is_that_of_pascal_voc() -> None:
    # From the development kit: background, aeroplane, bicycle, person, tv/monitor, and the border of objects.
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    palette = voc_palette()
    assert {i: tuple(palette[i].tolist()) for i in expected} == expected
    assert palette[255].tolist() == [224, 224, 192]


def test_predictions_are_index_files_with_colors(tmp_path: Path) -> None:
    labels = blocks(20, 30, [0, 13, 18])
    path = write_prediction(tmp_path / "out", "a/b", labels, CityscapesDataConfig())
    assert path == tmp_path / "out" / "a" / "b.png"
    with Image.open(path) as image:
        assert image.mode == "P" and np.array_equal(np.array(image), labels)
        colors = np.array(image.convert("RGB"))
    assert colors[0, 0].tolist() == [128, 64, 128] and colors[0, 29].tolist() == [119, 11, 32]
    assert np.array_equal(read_prediction(path, 19), labels)
    with pytest.raises(UserError, match="value 18"):
        read_prediction(path, 18)


def test_a_folder_is_evaluated(tmp_path: Path) -> None:
    data, index = cityscapes(tmp_path / "c")  # 32 columns each: ignored, road, car, bicycle
    predict(tmp_path / "p", data, index, blocks(64, 128, [0, 0, 13, 13]))
    found = evaluate_folder(tmp_path / "p", index, data)
    assert found.per_class["road"] == 1 and found.per_class["car"] == 0.5 and found.per_class["bicycle"] == 0
    assert found["mIoU"] == found["mIoU_full"] == pytest.approx(0.5)
    assert found["pixel_accuracy"] == pytest.approx(2 / 3) and found.images == 2


def test_predictions_of_the_size_of_the_input_are_compared_as_the_authors_do(tmp_path: Path) -> None:
    data, index = voc(tmp_path / "v")  # the truth has 40 columns: 10 each of 0, 15, ignored, 20; image d: 0, 15, ...
    predict(tmp_path / "p", data, index, blocks(3, 4, [0, 15, 15, 20]))
    found = evaluate_folder(tmp_path / "p", index, data)
    assert found["mIoU"] == found["mIoU_full"] == 1
    predict(tmp_path / "p", data, index, blocks(3, 3, [0, 15, 20]))
    found = evaluate_folder(tmp_path / "p", index, data)
    # Input: truth columns 0, 13 and 26 are 0, 15 and ignored. Image: columns 0-13 are 0, 14-26 are 15, 27-39 are 20.
    assert found["mIoU"] == 1 and found["mIoU_full"] == pytest.approx((10 / 14 + 6 / 10 + 1) / 3)


def test_missing_and_wrong_predictions_are_named(tmp_path: Path) -> None:
    data, index = voc(tmp_path / "v")
    write_prediction(tmp_path / "p", index.name(0), blocks(30, 40, [0]), data)
    with pytest.raises(UserError, match=r"1 of 2 predictions are missing: 2008_e\.png"):
        evaluate_folder(tmp_path / "p", index, data)
    write_prediction(tmp_path / "p", index.name(1), blocks(30, 40, [21]), data)
    with pytest.raises(UserError, match=r"2008_e\.png.*value 21"):
        evaluate_folder(tmp_path / "p", index, data)
    with pytest.raises(UserError, match=r"2008_e\.png.*value 21"):
        write_voc_submission(tmp_path / "p", tmp_path / "out.tgz", index)
    assert not (tmp_path / "out.tgz").exists() and not list(tmp_path.glob(".out*"))


def test_the_archive_for_pascal_voc(tmp_path: Path) -> None:
    data, index = voc(tmp_path / "v")
    labels = blocks(30, 40, [0, 15, 20])
    predict(tmp_path / "p", data, index, labels)
    assert data.submission is not None
    path = resolve(data.submission)(tmp_path / "p", tmp_path / f"out{data.submission_suffix}", index)
    with tarfile.open(path) as archive:
        names = archive.getnames()
        assert names == [f"results/VOC2012/Segmentation/comp6_test_cls/2008_{each}.png" for each in "de"]
        member = archive.extractfile(names[0])
        assert member is not None
        image = Image.open(io.BytesIO(member.read()))
    assert image.mode == "P" and np.array_equal(np.array(image), labels)
    assert np.array_equal(np.array(image.convert("RGB"))[0, 20], voc_palette()[15])


def test_the_archive_for_cityscapes_has_label_ids(tmp_path: Path) -> None:
    data, index = cityscapes(tmp_path / "c")
    predict(tmp_path / "p", data, index, blocks(64, 128, [0, 13, 16, 18]))
    assert data.submission is not None
    path = resolve(data.submission)(tmp_path / "p", tmp_path / f"out{data.submission_suffix}", index)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"lindau_{number:06d}_000019_labelIds.png" for number in range(2)]
        image = Image.open(io.BytesIO(archive.read(archive.namelist()[0])))
    assert image.mode == "L" and np.array(image)[5, ::32].tolist() == [7, 26, 31, 33]
    again = write_cityscapes_submission(tmp_path / "p", tmp_path / "again.zip", index)
    assert again.read_bytes() == path.read_bytes()
    back = index.values.table[label_ids(index)[:19]]
    assert back.tolist() == list(range(19))


def test_servers_need_predictions_of_the_size_of_the_image(tmp_path: Path) -> None:
    data, index = cityscapes(tmp_path / "c")
    predict(tmp_path / "p", data, index, blocks(32, 64, [0]))
    with pytest.raises(UserError, match="64x32, not 128x64"):
        write_cityscapes_submission(tmp_path / "p", tmp_path / "out.zip", index)


def test_a_split_without_masks_cannot_be_evaluated(tmp_path: Path) -> None:
    mask_folders(tmp_path)
    data = MaskFilesConfig(root=str(tmp_path), classes=("ground", "barn"))
    data = data.model_copy(update={"test": type(data.train)(images="val/images", masks=None)})
    with pytest.raises(UserError, match="no masks"):
        evaluate_folder(tmp_path, build_masks(data, "test").index, data)
