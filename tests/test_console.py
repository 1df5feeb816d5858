"""Output to terminals: encodings, control characters, lost streams."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcn_det.console import Console, print_line
from dcn_det.entry import exit_code
from dcn_det.errors import MAXIMUM_LENGTH, MAXIMUM_LINES, UserError, printable

HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\x7f\x9b\u202ec\ud800d\r\x00e"


def test_control_characters_are_escaped_and_text_is_not() -> None:
    shown = printable(HOSTILE)
    assert all(character.isprintable() for character in shown)
    assert shown.encode() and "\\x1b[2J" in shown and "\\u202e" in shown and "\\ud800" in shown and "\\r" in shown
    assert printable("Bär 熊\n\t'€'") == "Bär 熊\n\t'€'"


def test_errors_are_printable_and_of_sensible_length() -> None:
    text = str(UserError(f"{HOSTILE}{'x' * 100_000}; did you mean 'y'?"))
    assert all(character.isprintable() for character in text)
    assert len(text) <= MAXIMUM_LENGTH and text.startswith("a\\x1b") and text.endswith("did you mean 'y'?")
    lines = str(UserError("\n".join(map(str, range(1000))))).split("\n")
    assert len(lines) == MAXIMUM_LINES and lines[-2] == str(MAXIMUM_LINES - 2)
    assert str(1000 - MAXIMUM_LINES + 1) in lines[-1].split()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_printed_in_any_encoding(encoding: str) -> None:
    target = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(target, "<stdout>")
    print(f"熊 {HOSTILE}", file=console, flush=True)
    written = target.buffer.getvalue().decode(encoding)
    assert "\x1b" not in written and "\x9b" not in written and "\\x1b[2J" in written
    assert ("熊" in written) == (encoding == "utf-8")
    del console
    target.write("open")  # closing the console leaves the stream open


def test_progress_bars_may_return_the_carriage() -> None:
    target = io.TextIOWrapper(io.BytesIO(), newline="")
    Console(target, "<stderr>").write("\r 10%\r 20%\x1b")
    assert target.buffer.getvalue() in (b"", b"\r 10%\r 20%\\x1b")


def test_a_lost_stream_is_reported_once_and_then_silent() -> None:
    with Path("/dev/full").open("w") as stream:
        assert "space" in str(print_line("text", stream))
        assert print_line("text", stream) is None
    assert print_line("text", None) is None


ASCII = """
import sys
from dcn_det.entry import run
from dcn_det.errors import UserError
def main():
    print("b\\xe4r \\u718a \\x1b[2J")
    raise UserError("no class \\u718a\\x1b[2J")
run(main)
"""


def test_commands_print_names_on_a_terminal_with_ascii() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASCII],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == b"b\\xe4r \\u718a \\x1b[2J\n"
    assert done.stderr == b"error: no class \\u718a\\x1b[2J\n"


CODE = """
import os, sys
from dcn_det.entry import run
def main():
    print("text " * 10_000)
    return 0
run(main)
"""


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), (">&- 2>&- <&-", 0), ("> /dev/full", 2)])
def test_commands_without_standard_output_have_no_traceback(redirection: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    command = f"'{sys.executable}' '{tmp_path / 'code.py'}' {redirection}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == (code != 0)


def test_an_interrupt_is_one_even_where_a_library_hides_it(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected position 1 in the archive")

    assert exit_code(main) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
