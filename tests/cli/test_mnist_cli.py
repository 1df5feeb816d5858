"""``dcn-det mnist`` from files of digits to table, results and picture."""

import re
from pathlib import Path

import pytest
from torchvision.datasets import mnist

from dcn_det.cli import mnist as command
from dcn_det.cli.mnist import main
from dcn_det.entry import exit_code
from dcn_det.mnist.networks import METHODS
from dcn_det.mnist.report import table
from dcn_det.mnist.runs import load
from tests.mnist.helpers import SCHEDULES_OF_TWO_STEPS, write_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments with which the command takes seconds."""
    monkeypatch.setattr(command, "SCHEDULES", SCHEDULES_OF_TWO_STEPS)
    return ["--data", str(write_files(tmp_path / "digits")), "--seeds", "1", "--device", "cpu", "--workers", "1"]


def test_table_results_and_picture(quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    results, drawing = tmp_path / "results.json", tmp_path / "picture.png"
    assert main([*quick, "--save", str(results), "--picture", str(drawing)]) == 0
    printed = capsys.readouterr().out
    assert table(load(results)) in printed and all(title in printed for title in METHODS.values())
    first = drawing.read_bytes()
    drawing.unlink()
    assert main([*quick, "--show", str(results), "--picture", str(drawing)]) == 0
    assert capsys.readouterr().out == table(load(results)) + "\n"
    assert drawing.read_bytes() == first


def test_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mnist.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    save = tmp_path / "results.json"
    assert exit_code(lambda: main(["--data", str(tmp_path / "none"), "--save", str(save)])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "--data" in error
    assert not save.exists()


@pytest.mark.parametrize(
    "arguments",
    [["--save", "."], ["--picture", "."], ["--show", "absent.json"], ["--device", "tpu"]],
)
def test_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: main(arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_number_of_seeds(number: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--seeds", number])
    assert stop.value.code == 2


def test_the_readme_shows_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"dcn-det mnist --show (tools/benchmarks/\S+\.json)", readme)
    assert shown is not None
    assert table(load(ROOT / shown[1])) in readme
