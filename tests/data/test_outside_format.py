"""A data format that a user's module registers is trained on, tested, evaluated and checked like the package's own."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dcn_det.cli import analyze, check_dataset, evaluate, train
from dcn_det.cli import test as command
from dcn_det.config import load_config
from dcn_det.config.registry import FORMATS
from dcn_det.errors import UserError

MODULE = "tests.data.csv_boxes"
HEADER = ("image", "class", "x1", "y1", "x2", "y2")


def write_csv(annotations: Path, path: Path) -> None:
    document = json.loads(annotations.read_text())
    files = {image["id"]: image["file_name"] for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for each in document["annotations"]:
            x, y, width, height = each["bbox"]
            writer.writerow([files[each["image_id"]], names[each["category_id"]], x, y, x + width, y + height])


@pytest.fixture
def config(tmp_path: Path, tiny_settings: dict, sample_root: Path) -> Iterator[Path]:
    """The tiny config with the sample set's boxes in CSV files."""
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(sample_root / split)
        write_csv(sample_root / "annotations" / f"{split}.json", tmp_path / f"{split}.csv")
    data = tiny_settings["data"] | {
        "kind": "csv_boxes",
        "root": str(tmp_path),
        "train": {"images": "train", "boxes": "train.csv"},
        "test": {"images": "val", "boxes": "val.csv"},
        "classes": list("0123456789"),
    }
    path = tmp_path / "csv.yaml"
    path.write_text(yaml.safe_dump(tiny_settings | {"imports": [MODULE], "data": data}))
    yield path
    if MODULE in sys.modules:
        del sys.modules[MODULE]
        FORMATS.unregister("csv_boxes")


def test_it_is_trained_on_tested_and_evaluated(
    config: Path, tmp_path: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = tmp_path / "run", tmp_path / "out"
    assert train.main([str(config), "--output", str(run), "train.iterations=2", "test.score_threshold=0.05"]) == 0
    tested = [str(config), "--weights", str(run / "last.pth"), "--output", str(output), "test.score_threshold=0.05"]
    assert command.main(tested) == 0
    assert "AP75" in json.loads((output / "metrics.json").read_text())["metrics"]
    detections = json.loads((output / "detections.json").read_text())
    assert detections

    # The numbers are those of the same detections against the same boxes in COCO's format.
    same = [each | {"image_id": each["image_id"] + 100_000} for each in detections]
    (tmp_path / "same.json").write_text(json.dumps(same))
    numbers = []
    for truth, results in (
        (output / "config.yaml", output / "detections.json"),
        (sample_root / "annotations" / "val.json", tmp_path / "same.json"),
    ):
        capsys.readouterr()
        assert evaluate.main([str(truth), str(results), "--json", str(tmp_path / "metrics.json")]) == 0
        numbers.append(json.loads((tmp_path / "metrics.json").read_text())["metrics"])
    assert numbers[0] == numbers[1]
    with pytest.raises(UserError, match=r"'.*run' is a folder"):
        evaluate.main([str(config), str(run)])
    assert analyze.main([str(output / "detections.json")]) == 0


def test_it_is_checked_and_fixed(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "train.csv").open("a") as file:
        file.write("000000.jpg,3,9,9,9,20\n")
    fixed = tmp_path / "fixed.json"
    assert check_dataset.main([str(config), "--workers", "0", "--fix", str(fixed)]) == 1
    text = capsys.readouterr().out
    assert "error box without area: 1 (000000.jpg object " in text
    settings = text.split("to use it: ")[1].splitlines()[0].split()
    assert check_dataset.main([str(config), *settings, "data.test=null", "--workers", "0"]) == 0
    assert str(fixed) in capsys.readouterr().out


def test_a_kind_near_it_is_led_to_it(config: Path) -> None:
    with pytest.raises(UserError, match=r"data\.kind.*did you mean 'csv_boxes'"):
        load_config(config, "data.kind=csv_boxs")
