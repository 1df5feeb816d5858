"""``dcn-det init``: the written config is checked, trains, and detects without being edited."""

import json
from pathlib import Path

import pytest
import torch

from dcn_det.cli import check_dataset, convert_dataset, infer, init, train
from dcn_det.config import load_config, print_config, to_plain
from dcn_det.config.data import VocSplitConfig
from dcn_det.config.train import StepScheduleConfig
from dcn_det.data.formats import open_split
from dcn_det.data.formats.coco import read_coco
from dcn_det.starting import plan
from tests.messages import refused, says
from tests.starting.trees import CLASSES, NAMES, TREES, write

CHECKED = ("voc_photos", "voc_cvat", "voc_lists", "yolo_cvat", "yolo_labelimg", "coco_roboflow", "coco_label_studio")


def made(tmp_path: Path, name: str, *arguments: str) -> Path:
    root, output = tmp_path / "d\u00e4ta set", tmp_path / "mine.yaml"
    TREES[name][0](root)
    assert init.main([str(root), "--output", str(output), *arguments]) == 0
    return output


@pytest.mark.parametrize("name", CHECKED)
def test_the_config_passes_all_checks(tmp_path: Path, tiny: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    output = made(tmp_path, name, "--base", str(tiny))
    printed = capsys.readouterr().out
    config = load_config(output)
    assert print_config(config) and set(config.data.classes or ()) == set(CLASSES)
    assert config.train.best_metric == ("mAP50" if name.startswith("voc") else "AP")
    for split in ("train", "test"):
        assert check_dataset.main([str(output), "--split", split, "--workers", "0"]) == 0
    for part in ("found", "splits", "base", "input", "anchors", "length", "batch"):
        assert says(printed, part) and f"# {part}" in output.read_text()
    assert says(printed, "dcn-det train", output) and says(printed, "dcn-det infer", "runs/mine/last.pth")


@pytest.mark.parametrize("name", ["voc_labelimg", "yolo_roboflow", "coco_roboflow"])
def test_init_train_infer(tmp_path: Path, tiny: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    output, run = made(tmp_path, name, "--base", str(tiny)), tmp_path / "run"
    folder = capsys.readouterr().out.splitlines()[-1].split("--output pictures ")[1].strip("'")
    short = ["train.iterations=2", "train.warmup.iterations=1", "data.workers=0"]
    assert train.main([str(output), *short, "--output", str(run)]) == 0
    assert infer.main([folder, "--weights", str(run / "last.pth"), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert len(found) == len([path for path in Path(folder).iterdir() if path.suffix == ".jpg"]) > 0


@pytest.mark.parametrize(("device", "weights"), [("cpu", "there"), ("cuda", "there"), ("cpu", None)])
def test_the_base_fits_the_device(
    tmp_path: Path, device: str, weights: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def available(kind: str) -> str | None:
        asked.append(kind)
        return weights

    monkeypatch.setattr(plan, "available", available)
    monkeypatch.setattr(plan, "free_memory", lambda device: 2**33)
    monkeypatch.setattr(init, "resolve_device", lambda name: torch.device(device))
    config = load_config(made(tmp_path, "coco_original"))
    kind = {"cpu": "resnet18", "cuda": "resnet50"}[device]
    backbone = to_plain(config)["model"]["backbone"]
    assert asked == [kind] and backbone["weights"] == ("torchvision" if weights else "none")
    assert backbone["kind"] == (kind if weights else "resnet18") and backbone["deform"]["blocks"]
    assert config.model.deforms_rois and config.data.flip == "random"
    assert config.train.iterations == 500 and config.train.warmup.iterations == 25


def test_settings_of_the_bases_own_data_do_not_remain(tmp_path: Path, tiny: Path) -> None:
    base = tmp_path / "base.yaml"
    split = {"sets": ["x.txt"], "without": ["y.txt"], "part": [0, 0.5]}
    data = {"kind": "voc", "root": "old", "corners": "half_open", "classes": ["old"], "train": split, "test": split}
    schedule = {"kind": "step", "drops": [5], "unit": "epochs"}
    plain = {"base": str(tiny), "data": {**data, "short_sides": [96]}}
    base.write_text(json.dumps({**plain, "train": {"best_metric": "mAP70", "schedule": schedule}}))
    config = load_config(made(tmp_path, "voc_roboflow", "--base", str(base)))
    for split_config, folder in ((config.data.train, "train"), (config.data.test, "valid")):
        assert to_plain(config)["data"]["train"]["folder"] == "train"
        assert split_config is not None and split_config.part == (0, 1)
        assert isinstance(split_config, VocSplitConfig)
        assert split_config.without == () and split_config.folder == folder
    assert isinstance(config.train.schedule, StepScheduleConfig) and config.train.schedule.unit == "share"
    assert config.train.best_metric == "mAP50"


def test_an_existing_config_is_kept_unless_forced(tmp_path: Path, tiny: Path) -> None:
    output = made(tmp_path, "yolo_labelimg", "--base", str(tiny))
    before = output.read_text()
    root = str(tmp_path / "d\u00e4ta set")
    with refused("--output", "exists", "--force"):
        init.main([root, "--output", str(output), "--base", str(tiny)])
    with refused("--output", ".yaml"):
        init.main([root, "--output", str(tmp_path / "x.txt")])
    output.write_text("old")
    assert init.main([root, "--output", str(output), "--base", str(tiny), "--force"]) == 0
    assert output.read_text() == before


def test_annotations_that_cannot_be_used_are_announced(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "set"
    TREES["yolo_roboflow"][0](root)
    labels = next((root / "train/labels").iterdir())
    write(labels, "9 0.5 0.5 0.1 0.1\n")
    assert init.main([str(root), "--output", str(tmp_path / "c.yaml"), "--base", str(tiny)]) == 0
    printed = capsys.readouterr().out
    assert says(printed, "problems", "train", "unknown class") and says(printed, "check-dataset", "--split train")


@pytest.mark.parametrize("name", ["voc_photos", "yolo_label_studio", "coco_roboflow"])
def test_any_format_becomes_coco(tmp_path: Path, tiny: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    TREES[name][0](root)
    assert convert_dataset.main([str(root), "--output", str(out)]) == 0
    settings = [
        each.strip("'") for each in capsys.readouterr().out.splitlines()[-1].split("to use it: ")[1].split("' '")
    ]
    config = load_config(tiny, *settings)
    assert init.main([str(root), "--output", str(tmp_path / "c.yaml"), "--base", str(tiny)]) == 0
    for split in ("train", "test"):
        mine = open_split(load_config(tmp_path / "c.yaml").data, split).records()
        theirs = open_split(config.data, split).records()
        assert [c.name for c in theirs.categories] == [c.name for c in mine.categories]
        assert (theirs.image_ids == mine.image_ids).all() and (theirs.labels == mine.labels).all()
        assert abs(theirs.boxes - mine.boxes).max() < 1e-9
        assert all((root / file).is_file() for file in theirs.names)
    assert not list(out.rglob("*.jpg"))
    with refused("--output", "exists"):
        convert_dataset.main([str(tmp_path / "c.yaml"), "--output", str(out)])


def test_all_splits_in_one_file(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture) -> None:
    output = made(tmp_path, "yolo_labelimg", "--base", str(tiny))
    file = tmp_path / "all.json"
    assert convert_dataset.main([str(output), "--output", str(file)]) == 0
    records = read_coco(file)
    assert len(records.names) == len(NAMES) + 1 and says(capsys.readouterr().out, "part")
    with refused("data.root", "a folder"):
        convert_dataset.main([str(tmp_path), "data.root=x", "--output", str(file)])
    roboflow = tmp_path / "roboflow"
    TREES["coco_roboflow"][0](roboflow)
    with refused("id", "both splits", "folder"):
        convert_dataset.main([str(roboflow), "--output", str(tmp_path / "two.json")])


def test_a_coco_test_file_may_lack_a_class(tmp_path: Path, tiny: Path) -> None:
    root, output = tmp_path / "set", tmp_path / "c.yaml"
    TREES["coco_original"][0](root)
    file = root / "annotations/instances_val2017.json"
    document = json.loads(file.read_text())
    document["categories"].pop()
    document["annotations"] = [row for row in document["annotations"] if row["category_id"] == 1]
    write(file, json.dumps(document))
    assert init.main([str(root), "--output", str(output), "--base", str(tiny)]) == 0
    for split in ("train", "test"):
        assert check_dataset.main([str(output), "--split", split, "--workers", "0"]) == 0
    short = ["train.iterations=1", "train.warmup.iterations=1", "data.workers=0"]
    assert train.main([str(output), *short, "--output", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("name", ["two\nlines: {x}", "yes", "1e3", "# no", "caf\u00e9", "- a", "'", "a, b]", "~"])
def test_classes_may_have_any_name(tmp_path: Path, tiny: Path, name: str) -> None:
    root, output = tmp_path / "set", tmp_path / "c.yaml"
    TREES["coco_label_studio"][0](root)
    document = json.loads((root / "result.json").read_text())
    document["categories"][0]["name"] = name
    write(root / "result.json", json.dumps(document))
    assert init.main([str(root), "--output", str(output), "--base", str(tiny)]) == 0
    assert (load_config(output).data.classes or ())[0] == name
