"""Hostile input: values, mutations of files, and what a command may do with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from dcn_det.entry import exit_code
from dcn_det.errors import MAXIMUM_LENGTH

VALUES = (
    *("", "null", "~", "true", "-1", "0", "1", "2.5", "1e308", "-1e308", ".nan", ".inf", "1" + "0" * 400, "9" * 5000),
    *(str(2**31), str(2**63), str(2**64), "'a'", '"\\0"', '"\\ud800"', '"\\x1b[2J"', "é熊", "\u202e", "x" * 3000),
    *("[]", "[1]", "[a, [b]]", "[" * 2000, "{}", "{a: 1}", "{a: {b: {}}}", "{" * 500, "!!python/name:os.system", "*a"),
    *("&a 1", "a: b: c", "'", '"', "- a", "../../evil", "/dev/null", "/", "%", "@", "`", "|", ">", "? a", "#", "1:30"),
    *("cpu", "cuda:99", "mps", "coco", "voc", "sample", "resnet50", "rfcn", "class_aware_rpn", "adamw", "cosine"),
)
"""Values of settings, options and fields."""


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Returns a file with one to three random changes."""
    for _ in range(draw.randint(1, 3)):
        content = draw.choice((_flip, _cut, _repeat, _insert, _replace_value, _drop_line, _indent))(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randint(0, len(content))]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    index = draw.randrange(len(lines))
    return b"".join([*lines[:index], lines[index] * draw.choice((2, 3, 300)), *lines[index:]])


def _insert(content: bytes, draw: random.Random) -> bytes:
    index = draw.randint(0, len(content))
    return content[:index] + draw.choice(VALUES).encode("utf-8", "surrogatepass") + content[index:]


def _replace_value(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    index = draw.randrange(len(lines))
    key, colon, _ = lines[index].partition(b":")
    lines[index] = key + colon + b" " + draw.choice(VALUES).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _drop_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    del lines[draw.randrange(len(lines))]
    return b"\n".join(lines)


def _indent(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    index = draw.randrange(len(lines))
    lines[index] = draw.choice((b"  ", b"\t", b"- ", b"    ")) + lines[index]
    return b"\n".join(lines)


def assert_result_or_clear_error(
    main: Callable[[list[str]], int], arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> int:
    """Runs a command in this process; asserts that it gives a result, or exit code 2 and printable error lines."""
    capsys.readouterr()
    try:
        code = exit_code(lambda: main([*arguments]))
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    except BaseException as error:
        shown = [argument[:200] for argument in arguments]
        raise AssertionError(f"{shown}: {type(error).__name__}: {error}") from error
    printed = capsys.readouterr()
    assert code in (0, 2), (arguments, code)
    if code == 2:
        lines = [line for line in printed.err.splitlines() if "error: " in line]
        assert lines and "Traceback" not in printed.err, (arguments, printed.err[:500])
        # argparse repeats the command line; the console escapes that.
        own = [line for line in lines if line.startswith("error: ")]
        assert all(line.isprintable() and len(line) < MAXIMUM_LENGTH + 200 for line in own), own
    return code
