"""The help of every command fits a terminal, describes every option and has examples that run."""

import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dcn_det.cli import COMMANDS, dispatch
from dcn_det.cli.arguments import COLUMNS, Parser, listing
from dcn_det.cli.completion import all_parsers
from tests.commands import ROOT, check

PARSERS = all_parsers()


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def examples(text: str) -> Iterator[list[str]]:
    """The command lines after ``example:`` or ``examples:``, at the end of help."""
    _, title, block = text.rpartition("\nexample")
    assert title, "no example"
    for line in block.partition(":\n")[2].replace("\\\n", " ").splitlines():
        assert line.startswith("  dcn-det "), line
        yield shlex.split(line.partition(" > ")[0])[1:]


@pytest.mark.parametrize("name", [name for name in PARSERS if name != "train-classifier"])  # the same as train
def test_help_fits_the_terminal_and_ends_with_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser = PARSERS[name]
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert parser.prog == f"dcn-det {name}" and parser.description and parser.description.endswith(".")
    for action in parser._actions:
        assert action.help or action.choices, f"{action.dest} has no help"
    for line in examples(text):
        assert line[: len(name.split())] == name.split()
        check(PARSERS, line)


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        dispatch(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= COLUMNS
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line.split()[0] in COMMANDS]
    assert listed == list(COMMANDS)
    assert all(line[0] in COMMANDS for line in examples(text))


@pytest.mark.parametrize("arguments", [["--help"], ["nonsense"], ["completions", "bash"]])
def test_help_does_not_wait_for_libraries(arguments: list[str]) -> None:
    code = (
        "import sys; from dcn_det.cli import dispatch\n"
        "try: dispatch(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "import time; print(time.process_time())\n"
        "print(sorted({'torch', 'numpy', 'cv2', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    *_, seconds, modules = done.stdout.splitlines()
    assert modules == "[]" and float(seconds) < 0.3


def test_paragraphs_and_lists_stay_apart() -> None:
    parser = Parser(
        "x", "a " * 100, notes="one\n\n" + listing("names", {"a": "b " * 60, "long": "c"}), examples=["x 1"]
    )
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert text.endswith("\n\none\n\n" + listing("names", {"a": "b " * 60, "long": "c"}) + "\n\nexample:\n  x 1\n")
    assert "\n  long  c\n" in text
