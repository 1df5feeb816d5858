import json
import re
from pathlib import Path

import pytest

from dcn_det.cli import benchmark
from dcn_det.errors import UserError


def test_loading_is_measured_by_stage(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["data", str(tiny), "--images", "6", "--save", str(tmp_path / "x.json")]) == 0
    text = capsys.readouterr().out
    for stage in ("bare cv2", "read", "decode", "resize", "flip", "example", "loader, 0 workers"):
        assert re.search(rf"{stage}.* [\d.]+ images/s", text), stage
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["milliseconds"]["decode"] > 0 and record["ratio"] > 0.5


def test_training_is_measured_by_phase(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(tiny), "train.accumulate=2", "--steps", "2", "--warmup", "1"]
    assert benchmark.main([*arguments, "--save", str(tmp_path / "x.json")]) == 0
    assert re.search(
        r"tiny: [\d.]+ images/s  data \d+%  forward \d+%  backward \d+%  optimizer \d+%", capsys.readouterr().out
    )
    run = json.loads((tmp_path / "x.json").read_text())["runs"]["tiny"]
    assert sum(run[phase] for phase in ("data", "forward", "backward", "optimizer")) == pytest.approx(1)
    with pytest.raises(UserError, match="--steps is 0"):
        benchmark.main(["train", str(tiny), "--steps", "0"])
