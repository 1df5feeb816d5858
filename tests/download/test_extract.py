"""Archives are extracted inside a folder, whole and repeatably, or refused."""

import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dcn_det.download.extract import extract
from tests.messages import refused

FILES = {"a/1.txt": b"one" * 1000, "a/b/2.txt": b"two", "3.txt": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/", "")
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


Make = Callable[[Path, dict[str, bytes]], Path]
MAKERS = pytest.mark.parametrize(("name", "make"), [("a.zip", make_zip), ("a.tar", make_tar)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@MAKERS
def test_files_are_extracted_once(tmp_path: Path, name: str, make: Make) -> None:
    archive, folder = make(tmp_path / name, FILES), tmp_path / "out"
    extract(archive, folder)
    assert content(folder) == FILES
    (folder / "a" / "b" / "2.txt").write_bytes(b"TWO")  # of the same size: kept
    (folder / "a" / "1.txt").write_bytes(b"cut")
    extract(archive, folder)
    assert content(folder) == FILES | {"a/b/2.txt": b"TWO"}


@MAKERS
@pytest.mark.parametrize("evil", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
def test_a_name_outside_the_folder_is_refused(tmp_path: Path, name: str, make: Make, evil: str) -> None:
    with refused(tmp_path / name, f"'{evil}'", "outside"):
        extract(make(tmp_path / name, FILES | {evil: b"evil"}), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    with refused(tmp_path / "a.tar", "'link'"):
        extract(tmp_path / "a.tar", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, "/etc")
    with refused(tmp_path / "a.zip", "'link'"):
        extract(tmp_path / "a.zip", tmp_path / "out")


@MAKERS
def test_links_in_the_folder_are_not_followed_out_of_it(tmp_path: Path, name: str, make: Make) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with refused(tmp_path / name, "link"):
        extract(make(tmp_path / name, FILES), tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "elsewhere") == {}


@MAKERS
def test_a_truncated_archive_is_refused(tmp_path: Path, name: str, make: Make) -> None:
    archive = make(tmp_path / name, {"1.txt": b"x" * 20_000, "2.txt": b"y" * 20_000})
    archive.write_bytes(archive.read_bytes()[:25_000])
    with refused(archive, "damaged"):
        extract(archive, tmp_path / "out")
    assert not [path for path in content(tmp_path / "out") if "2" in path and path[0] != "."]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"1.txt": b"x" * 1000})
    data = bytearray(archive.read_bytes())
    data[data.index(b"xxxx") + 100] ^= 1
    archive.write_bytes(data)
    with refused(archive, "damaged"):
        extract(archive, tmp_path / "out")
    assert "1.txt" not in content(tmp_path / "out")


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with refused(tmp_path / "out", "free"):
        extract(make_zip(tmp_path / "a.zip", FILES), tmp_path / "out")
    assert not (tmp_path / "out").exists()
