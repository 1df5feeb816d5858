"""``dcn-det download fod`` from a local git repository and from folders."""

import subprocess
from pathlib import Path

import pytest

from dcn_det.cli import download as command
from dcn_det.download import fod
from tests.data.fod_like import make_fod
from tests.messages import refused, says


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose published commit is not the newest."""
    folder = make_fod(tmp_path / "repository")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "published")
    monkeypatch.setattr(fod, "COMMIT", git(folder, "rev-parse", "HEAD"))
    (folder / "Annotations" / "000001.xml").write_text("changed later")
    git(folder, "commit", "--quiet", "-a", "-m", "newer")
    return folder


def run(folder: Path, *arguments: str) -> int:
    return command.main(["fod", "--to", str(folder), *arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def published(tmp_path: Path) -> dict[str, bytes]:
    return files(make_fod(tmp_path / "published"))


def test_the_published_commit_is_checked_out_once(
    repository: Path, published: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", "--mirror", str(repository)) == 0
    assert files(tmp_path / "out") == published
    printed = capsys.readouterr().out
    assert says(printed, "fod", "missing") and says(printed, "4 images to train on", "2 to test on", "testing: 2")
    assert run(tmp_path / "out", "--mirror", "/nowhere") == 0
    assert says(capsys.readouterr().out, "fod", "present")


def test_an_unfinished_download_is_done_again(
    repository: Path, published: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_fod(tmp_path / "out")
    (out / fod._GIT).mkdir()
    (out / fod._GIT / "shallow.lock").touch()
    (out / "JPEGImages" / "000001.jpg").write_bytes(b"the first half")
    assert run(out, "--mirror", str(repository)) == 0
    assert says(capsys.readouterr().out, "fod", "missing") and files(out) == published


def test_a_users_own_clone_keeps_its_history(repository: Path) -> None:
    assert run(repository) == 0
    assert git(repository, "log", "--oneline").count("\n") == 1


def test_files_are_copied_from_a_folder(repository: Path, published: dict[str, bytes], tmp_path: Path) -> None:
    source, out = make_fod(tmp_path / "source"), tmp_path / "out"
    (out / "JPEGImages").mkdir(parents=True)
    (out / "JPEGImages" / "000002.jpg").write_bytes(b"half")
    (out / "JPEGImages" / ".000003.jpg.part").write_bytes(b"half")
    assert run(out, "--from", str(source), "--dry-run") == 0
    assert not (out / "Annotations").exists()
    assert run(out, "--from", str(source)) == 0
    assert files(out) == published
    assert run(out, "--from", str(out)) == 0 and files(out) == published


def test_an_incomplete_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = make_fod(tmp_path / "source")
    (source / "Annotations" / "000004.xml").unlink()
    with refused(source, "Annotations/000004"):
        run(tmp_path / "out", "--from", str(source))
    with refused(tmp_path / "nowhere", "ImageSets/Main/trainval.txt"):
        run(tmp_path / "out", "--from", str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_without_repository_or_git_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("/nowhere", "git fetch", "--from"):
        run(tmp_path / "out", "--mirror", "/nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("git", fod.REPOSITORY, "--from"):
        run(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_options_of_other_collections_are_refused(tmp_path: Path) -> None:
    with refused("--parts", "fod"):
        run(tmp_path, "--parts", "trainval")
    with refused("--from", "--mirror"):
        run(tmp_path, "--from", ".", "--mirror", ".")
    with refused("--from", "fod"):
        command.main(["voc", "--from", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fod, "SIZE", 10**18)
    with refused(tmp_path / "out", "free"):
        run(tmp_path / "out", "--mirror", str(repository))
    assert not (tmp_path / "out").exists()
