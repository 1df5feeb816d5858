"""The plan: what is needed, what is missing, what it takes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dcn_det.cli import reproduce
from dcn_det.config import load_config
from dcn_det.config.shipped import configs_folder
from dcn_det.errors import UserError
from dcn_det.reproduce.plan import images_seen
from tests.messages import refused, says


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert reproduce.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_on_a_machine_with_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = planned(capsys, "table5")
    assert says(text, "14 rows", "10 trainings", "14 tests")
    assert says(text, "datasets/coco/train2017", "datasets/coco/annotations/image_info_test-dev2017.json")
    for command in ("dcn-det download coco --to datasets/coco", "dcn-det train configs/imagenet/air.yaml"):
        assert says(text, command)
    assert says(text, "runs/imagenet_air/backbone.safetensors") and says(text, "GiB free")
    assert text.count("train/coco/rfcn_air ") == 4, "three rows and one training"
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_data_that_are_there_are_not_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        for name in ("trainval", "test"):
            path = tmp_path / "devkit" / year / "ImageSets/Main" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert says(planned(capsys, "table3"), "dcn-det download voc --to datasets/voc")
    detectors = ["--rows", "class_aware_rpn*,faster_rcnn*,rfcn*"]
    text = planned(capsys, "table3", "--data", "devkit", *detectors)
    assert "download voc" not in text and says(text, "19 rows", "19 trainings")
    with pytest.raises(UserError, match=r"--data: .*datasets/cityscapes.*--rows"):
        planned(capsys, "table3", "--data", "devkit")


def test_gpu_hours_from_a_given_step_time(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, "table5", "--schedule", "paper", "--step-seconds", "0.3", "--rows", "rfcn_air*")
    # 240,000 steps of 8 images; a GPU sees one image per step.
    assert says(text, "train/coco/rfcn_air", "1,920,000", 160) and says(text, "320 GPU hours")
    assert says(planned(capsys, "table5"), "--step-seconds", "--measure")


def test_gpu_hours_from_a_measured_step_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def benchmark(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        numbers = {"runs": {"rfcn_air": {"training": {"milliseconds": 300.0}}}}
        Path(command[command.index("--save") + 1]).write_text(json.dumps(numbers))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("dcn_det.reproduce.plan.subprocess.run", benchmark)
    text = planned(
        capsys, "table5", "train.batch_size=2", "--schedule=paper", "--rows=rfcn_air,rfcn_air_ms", "--measure"
    )
    assert says(text, "train/coco/rfcn_air", "1,920,000", 80)
    (command,) = commands
    assert command[3:5] == ["benchmark", "detector"] and "train.batch_size=2" in command
    assert command[command.index("--batch") + 1] == "2"


def test_images_seen() -> None:
    for name, images in (("coco/rfcn_air", 8 * 2 * 123_287), ("voc/rfcn_r101_dcn", 7 * 2 * 16_551)):
        assert images_seen(load_config(configs_folder() / f"{name}.yaml")) == images
    own = load_config(
        configs_folder() / "coco/rfcn_air.yaml", "data.train.annotations=mine.json", "data.train.images=x"
    )
    assert images_seen(own) is None


def test_released_weights_have_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, "table5", "--weights", "authors")
    assert says(text, "4 rows", "4 conversions") and says(text, "weights/rfcn_dcn_coco-0000.params")
    assert "air" not in text.lower().replace("fair", "")
    assert says(planned(capsys, "table3", "--weights", "authors"), "4 rows", "4 conversions", "4 tests")
    with refused("--weights authors", "table3"):
        reproduce.main(["table3", "--weights", "authors", "--rows", "rfcn*"])
    with refused("--smoke", "--weights authors"):
        reproduce.main(["table5", "--weights", "authors", "--smoke"])


def test_a_wrong_setting_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with refused("train.batch_sze", "batch_size"):
        reproduce.main(["table5", "train.batch_sze=2", "--run"])
    with refused("--launch", "no-such-launcher"):
        reproduce.main(["table5", "--run", "--launch", "no-such-launcher 8"])
    assert not list(tmp_path.iterdir())
