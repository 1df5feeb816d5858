"""FOD-A, photographs of foreign object debris on airport pavement, from its git repository or a folder.

Munyer, Huang, Huang and Zhong, "FOD-A: A Dataset for Foreign Object Debris in Airports", ICMLA 2021 (arXiv 2110.03072).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dcn_det.download.catalog import without_files
from dcn_det.download.extract import check_space, gigabytes
from dcn_det.errors import UserError
from dcn_det.progress import Progress, Say

REPOSITORY = "https://github.com/thenorthwes/fodadataset"
COMMIT = "39ed3b9d98a4c33e283963ae6a7a1e2b456bbdca"
SIZE = 413_000_000
"""Bytes of the repository; its files take about as much again."""
FOLDER = Path("datasets/fod")

SETS = ("ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt")
_PARTS = ("ImageSets/Main", "Annotations", "JPEGImages")
_GIT = ".download.git"


def present(folder: Path) -> bool:
    """Returns whether a folder has all images and annotations, and no download is unfinished."""
    return not (folder / _GIT).exists() and not _lacking(folder)


def plan(folder: Path, source: Path | None = None) -> str:
    """Describes what is to be done; see :func:`get`."""
    if source is not None:
        return f"to copy: '{source}' to '{folder}'"
    if present(folder):
        return f"fod  {gigabytes(SIZE):>8}  present"
    return (
        f"fod  {gigabytes(SIZE):>8}  missing\n"
        f"to download: {gigabytes(SIZE)} into '{folder}'; disk space needed: {gigabytes(2 * SIZE)}"
    )


def summary(folder: Path) -> str:
    """Returns the numbers of images, and of those in both splits, which ``configs/fod`` leave out of testing."""
    trained, tested = (set((folder / each).read_text().split()) for each in SETS)
    return (
        f"fod: {len(trained)} images to train on, {len(tested - trained)} to test on; "
        f"in both splits, left out of testing: {len(tested & trained)}"
    )


def get(folder: Path, repository: str, say: Say, source: Path | None = None) -> None:
    """Puts the data set into a folder; an interrupted call can be repeated.

    Args:
        folder: folder to write to, created if absent.
        repository: address of the git repository or of a mirror. Its commit is verified by git.
        say: receives a line at the end.
        source: folder with the published files or some of them, such as a clone, to copy them from instead.

    Raises:
        UserError: the files cannot be downloaded or are incomplete, or the disk has too little space.
    """
    if source is not None:
        _copy(source, folder)
    elif not present(folder):
        _check_out(folder, repository)
    _require(folder)
    say(summary(folder))


def _lacking(folder: Path) -> list[str]:
    return [each for name in SETS for each in without_files(folder / name)]


def _require(folder: Path) -> None:
    lacking = _lacking(folder)
    if lacking:
        raise UserError(f"'{folder}' is not FOD-A as published: {len(lacking)} files are missing, such as {lacking[0]}")


def _check_out(folder: Path, repository: str) -> None:
    """Writes the files of the commit; ``_GIT`` exists until all are written."""
    check_space(folder, 2 * SIZE, "for the repository and its files")
    if shutil.which("git") is None:
        raise UserError(f"git is not installed; install it, or get {repository} elsewhere and name it with --from")
    shutil.rmtree(folder / _GIT, ignore_errors=True)  # git cannot continue a download, and may have left locks
    (folder / _GIT).mkdir(parents=True)
    for arguments in (
        ["init", "--quiet"],
        ["fetch", "--depth=1", repository, COMMIT],
        ["checkout", "--force", "--detach", COMMIT],
    ):
        _git(folder, repository, *arguments)
    shutil.rmtree(folder / _GIT)


def _git(folder: Path, repository: str, *arguments: str) -> None:
    places = {"GIT_DIR": str((folder / _GIT).absolute()), "GIT_WORK_TREE": str(folder.absolute())}
    kept = {key: value for key, value in os.environ.items() if key != "GIT_INDEX_FILE"}
    command = ["git", "-c", "core.autocrlf=false", "-c", "advice.detachedHead=false", *arguments]
    code = subprocess.run(command, env={**kept, **places, "GIT_TERMINAL_PROMPT": "0"}, check=False).returncode
    if code:
        raise UserError(
            f"cannot get {repository}: git {arguments[0]} ended with exit code {code}; run the command again, "
            "or get the repository elsewhere and name its folder with --from"
        )


def _copy(source: Path, folder: Path) -> None:
    """Copies the files that ``folder`` does not have with the same size, each whole or not at all."""
    _require(source)
    files = [path for part in _PARTS for path in sorted((source / part).iterdir()) if path.is_file()]
    targets = {path: folder / path.relative_to(source) for path in files}
    missing = [path for path, target in targets.items() if not _same(path, target)]
    check_space(folder, sum(path.stat().st_size for path in missing), "to copy them")
    progress = Progress("file", every=5.0)
    for number, path in enumerate(missing, start=1):
        target = targets[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        shutil.copyfile(path, temporary)
        temporary.replace(target)
        progress(number, len(missing))
    if (folder / _GIT).exists():
        shutil.rmtree(folder / _GIT)


def _same(path: Path, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == path.stat().st_size
