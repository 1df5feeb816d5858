"""The losses of ``tools/plain_train.py`` equal those of the engine."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from dcn_det.cli import train
from dcn_det.weights import checkpoint

TOOL = Path(__file__).resolve().parents[2] / "tools" / "plain_train.py"
spec = importlib.util.spec_from_file_location("plain_train", TOOL)
assert spec is not None and spec.loader is not None
plain_train = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain_train)


@pytest.mark.parametrize(
    "settings",
    [
        ["train.clip_norm=0.5", "train.schedule={kind: step, drops: [1], unit: epochs}", "train.iterations=8"],
        ["train.optimizer={kind: adamw, lr: 1e-3}", "train.schedule={kind: cosine}", "train.warmup.kind=linear"],
    ],
)
def test_it_gives_the_engines_losses(
    tiny: Path, tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(tiny), *(["train.iterations=8"] if "adamw" in settings[0] else []), *settings]
    assert plain_train.main([*common, "--output", str(tmp_path / "plain.pth")]) == 0
    printed = [float(text) for text in re.findall(r"^iter .*  loss ([\d.]+)", capsys.readouterr().out, re.MULTILINE)]
    assert train.main([*common, "--output", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]
    assert printed == pytest.approx(losses, abs=2e-6) and len(losses) == 8
    plain, engine = (checkpoint.load(tmp_path / name)["model"] for name in ("plain.pth", "run/last.pth"))
    for name in plain:
        torch.testing.assert_close(plain[name], engine[name], rtol=0, atol=1e-6)


def test_it_stays_short() -> None:
    assert len(TOOL.read_text().splitlines()) < 150
