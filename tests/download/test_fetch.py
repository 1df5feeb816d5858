"""Downloads over connections that break, from servers that ignore ranges, and of other files than expected."""

import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dcn_det.download import fetch as module
from dcn_det.download.fetch import fetch
from tests.download.server import Site, serve
from tests.messages import refused

CONTENT = np.random.default_rng(0).bytes(100_000)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.0,) * 3)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site({"/a.zip": CONTENT})) as site:
        yield site


def get(site: Site, folder: Path, digest: str = DIGEST) -> bytes:
    fetch(f"{site.address}/a.zip", folder / "a.zip", digest)
    assert [path.name for path in folder.iterdir()] == ["a.zip"]
    return (folder / "a.zip").read_bytes()


@pytest.mark.parametrize("digest", [DIGEST, DIGEST[:15], f"md5:{hashlib.md5(CONTENT).hexdigest()}"])
@pytest.mark.parametrize("sized", [True, False])
def test_a_file_arrives(site: Site, tmp_path: Path, digest: str, sized: bool) -> None:
    site.sized = sized
    assert get(site, tmp_path / "new", digest) == CONTENT
    assert site.requests == ["/a.zip"]


def test_broken_connections_are_continued(site: Site, tmp_path: Path) -> None:
    site.drop_after = 30_000
    assert get(site, tmp_path) == CONTENT
    assert site.requests == ["/a.zip", *(f"/a.zip bytes={start}-" for start in (30_000, 60_000, 90_000))]


def test_an_earlier_attempt_is_continued(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:70_000])
    assert get(site, tmp_path) == CONTENT
    assert site.requests == ["/a.zip bytes=70000-"]


def test_a_complete_earlier_attempt_is_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert get(site, tmp_path) == CONTENT


@pytest.mark.parametrize("earlier", [b"x" * 70_000, b"x" * 200_000, CONTENT[:70_000]])
def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path, earlier: bytes) -> None:
    site.ranges = False
    (tmp_path / "a.zip.part").write_bytes(earlier)
    assert get(site, tmp_path) == CONTENT


def test_a_larger_file_of_an_earlier_attempt_is_replaced(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"more")
    assert get(site, tmp_path) == CONTENT


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.failures = [503, 429]
    assert get(site, tmp_path) == CONTENT


def test_a_server_that_stays_busy_is_given_up(site: Site, tmp_path: Path) -> None:
    site.failures = [503] * 9
    with refused("cannot download", f"{site.address}/a.zip", 503):
        get(site, tmp_path)
    assert len(site.requests) == 4 and list(tmp_path.iterdir()) == []


def test_what_was_received_is_kept_when_the_server_is_given_up(site: Site, tmp_path: Path) -> None:
    site.drop_after, site.ranges = 30_000, False
    with refused("cannot download", f"{site.address}/a.zip", 30_000, 100_000):
        get(site, tmp_path)
    site.drop_after, site.ranges = None, True
    assert get(site, tmp_path) == CONTENT
    assert site.requests[-1] == "/a.zip bytes=30000-"


@pytest.mark.parametrize("served", [CONTENT[:-10], b"<html>please log in</html>", CONTENT[::-1], b""])
def test_another_file_is_refused_and_deleted(site: Site, tmp_path: Path, served: bytes) -> None:
    site.files["/a.zip"] = served
    with refused("not the published file", f"{site.address}/a.zip", "sha256"):
        get(site, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_and_no_file_are_said_at_once(site: Site, tmp_path: Path) -> None:
    with refused("cannot download", "http://127.0.0.1:9/a.zip"):
        fetch("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", DIGEST)
    with refused("cannot download", "http://none.invalid/a.zip"):
        fetch("http://none.invalid/a.zip", tmp_path / "a.zip", DIGEST)
    with refused("cannot download", f"{site.address}/b.zip", 404):
        fetch(f"{site.address}/b.zip", tmp_path / "b.zip", DIGEST)
    for wrong in ("file:///etc/passwd", "a.zip", "http://"):
        with refused(f"'{wrong}'", "http://"):
            fetch(wrong, tmp_path / "a.zip", DIGEST)
    assert site.requests == ["/b.zip"] and list(tmp_path.iterdir()) == []


def test_two_downloads_of_one_file_do_not_mix(site: Site, tmp_path: Path) -> None:
    with (tmp_path / "a.zip.part").open("ab") as file:
        file.write(b"of another process")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with refused(tmp_path / "a.zip.part", "another process"):
            get(site, tmp_path)
    assert (tmp_path / "a.zip.part").read_bytes() == b"of another process"
