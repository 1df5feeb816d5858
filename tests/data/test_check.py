import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from dcn_det.cli import check_dataset
from dcn_det.config import Config
from dcn_det.data.anchor_check import AnchorCheck
from dcn_det.data.check import Report, check_split, fixed_document
from dcn_det.data.formats import open_split
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.sample import make_sample
from dcn_det.errors import UserError
from dcn_det.models import boxes as box_ops
from dcn_det.models.anchors import cell_anchors, grid_anchors
from tests.data.helpers import load_coco
from tests.messages import says


def anchors(ratios: tuple[float, ...], scales: tuple[float, ...]) -> AnchorCheck:
    return AnchorCheck(cell_anchors(16, ratios, scales)[None].double().numpy(), (16,), 128, 256)


ANCHORS = anchors((1,), (4,))


def image(path: Path, height: int, width: int) -> None:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def split_of(folder: Path, annotations: str = "boxes.json") -> DataFormat:
    paths = {"images": "images", "annotations": annotations}
    return open_split(Config.model_validate({"data": {"root": str(folder), "train": paths}}).data, "train")


def check(folder: Path, annotations: str = "boxes.json", workers: int = 0, progress=None) -> Report:
    return check_split(split_of(folder, annotations), ANCHORS, workers, progress)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A data set with one of every kind of fault."""
    (tmp_path / "images").mkdir()
    for name in ("good", "cut", "size"):
        image(tmp_path / "images" / f"{name}.jpg", 128, 192)
    cut = tmp_path / "images" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:2000])
    names = {1: "good", 2: "cut", 3: "size", 4: "gone"}
    images = [{"id": i, "file_name": f"{name}.jpg", "height": 128, "width": 192} for i, name in names.items()]
    images[2]["height"] = 100
    images.append(images[0])

    def row(number: int, image_id: int, category: int, box: object) -> dict:
        return {"id": number, "image_id": image_id, "category_id": category, "bbox": box, "iscrowd": 0}

    annotations = [
        row(1, 1, 1, [0, 0, 64, 64]),
        row(2, 1, 1, [150, 100, 100, 60]),
        row(2, 1, 1, [5, 5, 9, 9]),
        row(4, 9, 1, [5, 5, 9, 9]),
        row(5, 1, 9, [5, 5, 9, 9]),
        row(6, 1, 1, [5, 5, 0, 9]),
        row(7, 1, 1, [500, 5, 20, 9]),
        row(8, 1, 1, "none"),
        row(9, 1, 1, [0, 0, 64, 64]),
        row(10, 3, 2, [0, 110, 20, 10]),
        row(11, 2, 2, [0, 0, 20, 10]),
    ]
    categories = [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "emu"))]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_every_fault_is_found_and_named(broken: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    report = check(broken, workers=workers, progress=lambda a, b: seen.append((a, b)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert report.findings.errors == {
        "annotation without a usable bbox": ["annotations[7].bbox is 'none', expected [x, y, width, height]"],
        "annotation of an unknown image": ["annotations[3].image_id is 9"],
        "annotation of an unknown category": ["annotations[4].category_id is 9"],
        "image id used twice": ["1 (good.jpg)"],
        "image missing": ["gone.jpg"],
        "image unreadable or truncated": ["cut.jpg"],
        "image size differs from the annotation": ["size.jpg is 192x128, not 192x100"],
        "box without area": ["annotations[5] (id 6)", "annotations[6] (id 7)"],
    }
    assert report.findings.notes == {
        "annotation id used more than once": ["2 (2 times)"],
        "box partly outside its image": ["annotations[1] (id 2)"],
        "object annotated twice": ["annotations[8] (id 9)"],
        "category without objects": ["emu"],
        "image without objects": ["gone.jpg"],
    }
    assert report.classes == {"cat": 4, "dog": 2, "emu": 0}
    assert not report.good
    text = report.text()
    assert "  error image missing: 1 (gone.jpg)" in text
    assert "  note  category without objects: 1 (emu)" in text


def test_what_was_fixed_can_be_trained_on(broken: Path) -> None:
    document = json.loads((broken / "boxes.json").read_text())
    document["images"][0]["_note"] = "of no concern"
    (broken / "boxes.json").write_text(json.dumps(document))
    fixed = fixed_document(split_of(broken), check(broken))
    assert fixed["images"][0] == document["images"][0], "with what else it holds, and no more"
    (broken / "fixed.json").write_text(json.dumps(fixed))
    index = load_coco(broken / "fixed.json", broken / "images")
    assert index.image_ids.tolist() == [1, 3]
    boxes = [[0, 0, 64, 64], [150, 100, 192, 128], [5, 5, 14, 14], [0, 0, 64, 64], [0, 110, 20, 120]]
    assert index.boxes.tolist() == boxes
    assert check(broken, "fixed.json").good


def test_anchor_coverage_is_the_best_iou() -> None:
    """One anchor of 64 x 64 around (8, 8), in steps of 16; images of 128 pixels are not resized."""
    assert ANCHORS.best_iou(np.array([8.0, 8, 72, 72]), 128, 128) == pytest.approx(1.0)
    assert ANCHORS.best_iou(np.array([16.0, 8, 80, 72]), 128, 128) == pytest.approx(56 / (128 - 56))
    assert ANCHORS.best_iou(np.array([24.0, 24, 56, 56]), 128, 128) == pytest.approx(0.25)
    assert ANCHORS.best_iou(np.array([12.0, 12, 28, 28]), 64, 64) == pytest.approx(0.25), "resized to twice the size"


def test_anchor_coverage_equals_the_full_grid() -> None:

    check = anchors((0.5, 1, 2), (2, 4))
    generator = np.random.default_rng(1)
    grid = grid_anchors(cell_anchors(16, (0.5, 1, 2), (2, 4)), 8, 10, 16)
    for _ in range(20):
        corner = generator.uniform(0, 100, 2)
        box = np.concatenate([corner, corner + generator.uniform(5, 60, 2)])
        iou = box_ops.iou_matrix(grid, torch.tensor(box[None], dtype=torch.float32))
        assert check.best_iou(box, 128, 160) == pytest.approx(float(iou.max()), abs=1e-5)


def test_the_command_reports_fixes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_sample(tmp_path / "set", train_images=4, val_images=2)
    split = {"images": "train", "annotations": "annotations/train.json"}
    data = {"kind": "sample", "root": str(root), "train": split, "crop": {"probability": 1.0}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": data | {"jitter": {"probability": 1.0}}}))
    out, drawn = tmp_path / "fixed.json", tmp_path / "drawn"
    arguments = [str(path), "--workers", "1", "--fix", str(out), "--browse", str(drawn), "--samples", "3"]
    assert check_dataset.main(arguments) == 0
    text = capsys.readouterr().out
    assert "4 images" in text and "error" not in text
    assert f"fixed: '{out}' with 4 of 4 images" in text
    assert len(list(drawn.glob("*.jpg"))) == 3
    first = json.loads((root / "annotations" / "train.json").read_text())["images"][0]
    image(root / "train" / first["file_name"], 9, 9)
    assert check_dataset.main([str(path), "--workers", "0"]) == 1
    assert says(capsys.readouterr().out, "error", first["file_name"], "9x9")
    with pytest.raises(UserError, match=r"data\.train\.annotations: no file .*none\.json"):
        check_dataset.main([str(path), "data.train.annotations=none.json"])
