"""The benchmarks of evaluation and post-processing run on small cases."""

import json
import re
from pathlib import Path

import pytest

from dcn_det.benchmark import postprocess
from dcn_det.cli import benchmark
from tests.messages import says

pytest.importorskip("hotcoco")


@pytest.mark.slow
def test_evaluation_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--images", "20", "--detections", "500", "--save", str(tmp_path / "numbers.json")]
    assert benchmark.main(arguments) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())["numbers"]
    printed = capsys.readouterr().out
    assert says(printed, "pycocotools", "hotcoco") and all(name in printed for name in numbers)
    assert all(value > 0 for value in numbers.values()) and len(numbers) == 4


def test_post_processing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(postprocess, "scales", lambda rounds: ({}, {}))
    assert benchmark.main(["postprocess", "--rounds", "1"]) == 0
    assert re.search(r"\btorchvision\b.* \d+\.\d\d\b", capsys.readouterr().out)
