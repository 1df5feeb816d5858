"""Files are written atomically, and errors name the file and the position."""

import math
import os
import stat
from pathlib import Path

import pytest
import torch

from dcn_det import files
from dcn_det.errors import UserError
from dcn_det.files import iterate_json, read_json, read_text, replacing, write_json, write_text


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [math.nan])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.json'"):
        write_json(path, [2])
    assert read_json(path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_library_that_hides_the_systems_error_does_not_hide_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"x\.pth") as error, replacing(tmp_path / "x.pth") as file:
        os.close(file.fileno())
        torch.save({"a": torch.zeros(100_000)}, file)
    assert error.value.errno == 9
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert read_text(tmp_path / "a.txt") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_text(tmp_path / "a.txt", "secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o600


@pytest.mark.parametrize("read", [read_json, lambda path: list(iterate_json(path))])
def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(UserError, match=r"absent\.json"):
        read(tmp_path / "absent.json")
    for content, place in ((b"[1,\n 2,, 3]", r"a\.json:2:"), (b'["\xff"]', "byte 2"), (b"[" * 100_000, r"a\.json")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=place):
            read(tmp_path / "a.json")


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert read_json(tmp_path / "a.json") == list(iterate_json(tmp_path / "a.json")) == [1, 2]
