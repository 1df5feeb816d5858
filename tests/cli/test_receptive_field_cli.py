"""``dcn-det receptive-field`` from checkpoints to table, JSON and plot."""

import json
from pathlib import Path

import pytest

from dcn_det.cli.receptive_field import main
from dcn_det.config import load_config
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint
from tests.cli.test_settings_of_weights import random_weights


@pytest.fixture
def weights(tiny: Path, tmp_path: Path) -> list[Path]:
    """Checkpoints of a deformable detector and of a plain one."""
    for name, settings in (("deformable", ()), ("plain", ("model.backbone.deform.blocks=[]",))):
        checkpoint.save(tmp_path / name / "last.pth", random_weights(load_config(tiny, *settings)))
    return [tmp_path / "deformable" / "last.pth", tmp_path / "plain" / "last.pth"]


def test_two_detectors(tiny: Path, weights: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    ours, other = weights
    save, plot = tmp_path / "new" / "numbers.json", tmp_path / "plot.png"
    arguments = [str(tiny), f"--weights={ours}", f"--against={other}", "--images=2", f"--save={save}", f"--plot={plot}"]
    assert main(arguments) == 0
    fields = json.loads(save.read_text())["fields"]
    assert [each["name"] for each in fields] == ["deformable/last.pth", "plain/last.pth"]
    assert [each["deformable_layers"] for each in fields] == [1, 0]
    for each in fields:
        assert each["images"] == 2 and each["theoretical"] == fields[0]["theoretical"] > 400
        assert each["fraction"] == pytest.approx(each["size"] / each["theoretical"]) and each["size"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert f"{fields[1]['size']:.1f}" in out and "2 images" in out


def test_what_cannot_be_measured_is_refused(tiny: Path, weights: list[Path], tmp_path: Path) -> None:
    ours, _other = weights
    with pytest.raises(UserError, match=r"--against"):
        main([str(tiny), f"--weights={ours}", f"--against={ours}"])
    with pytest.raises(UserError, match=r"absent\.pth"):
        main([str(tiny), f"--weights={ours}", "--against=absent.pth"])
    with pytest.raises(UserError, match=r"--save"):
        main([str(tiny), f"--weights={ours}", f"--save={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        main([str(tiny), f"--weights={ours}", "--plot=x.jpg"])
    assert stop.value.code == 2
