"""Exit codes of commands, and the dispatch of ``dcn-det``."""

import errno
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from dcn_det import __version__
from dcn_det.cli import COMMANDS, dispatch
from dcn_det.entry import exit_code, run
from dcn_det.errors import UserError
from tests.messages import refused

ROOT = Path(__file__).resolve().parents[2]


def fail(error: BaseException) -> int:
    raise error


def test_the_commands_own_code_is_the_exit_code() -> None:
    for code in (0, 3):
        with pytest.raises(SystemExit) as stop:
            run(partial(int, code))
        assert stop.value.code == code


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("a.yaml:1: wrong"), 2, "error: a.yaml:1: wrong\n"),
        (UserError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (FileNotFoundError(errno.ENOENT, "absent", "x.json"), 2, "error: x.json: absent\n"),
        (PermissionError(errno.EACCES, "denied", b"x.json"), 2, "error: x.json: denied\n"),
        (OSError(errno.ENOSPC, "full"), 2, "error: full\n"),
        (MemoryError(), 2, "error: out of memory; reduce sizes or batches\n"),
        (
            RuntimeError("[enforce] can't allocate memory: 8 bytes\nframes"),
            2,
            "error: out of memory ([enforce] can't allocate memory: 8 bytes); reduce sizes or batches\n",
        ),
    ],
)
def test_what_a_user_can_mend_has_no_traceback(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    assert exit_code(lambda: fail(error)) == code
    assert capsys.readouterr() == ("", text)


def test_an_interrupt_takes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: fail(KeyboardInterrupt())) == 128 + signal.SIGINT
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), OSError(errno.EIO, "x"), OSError("x")])
def test_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="x"):
        exit_code(lambda: fail(error))


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_is_no_error(lines: int) -> None:
    code = f"""
import sys
from dcn_det.entry import run

def main():
    sys.stdin.read()
    for _ in range({lines}):
        print("a line of the output")
    return 0

run(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
    process.stderr.close()


def test_dispatch_passes_the_rest_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("")
    with refused("x.json:1"):
        dispatch(["evaluate", str(tmp_path / "x.json"), "y.json"])


def test_every_command_has_a_summary_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dispatch(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in printed and summary in words


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dispatch(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")


@pytest.mark.parametrize("argv", [[], ["trian"], ["--nonsense"], ["trian", "x.yaml"]])
def test_what_is_no_command_is_an_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dispatch(argv)
    assert stop.value.code == 2
    assert "usage: dcn-det" in capsys.readouterr().err


def test_finding_the_command_imports_nothing_heavy() -> None:
    heavy = ("torch", "cv2", "pydantic", "numpy")
    code = f"import sys, dcn_det.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n"


def test_warnings_take_one_line() -> None:
    code = "import warnings; from dcn_det.entry import run; run(lambda: warnings.warn('the sky is low') or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "warning: the sky is low\n"
