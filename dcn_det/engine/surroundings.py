"""Record of the environment of a run: versions, machine and state of the source."""

from __future__ import annotations

import subprocess
from pathlib import Path

import dcn_det
from dcn_det.env import report
from dcn_det.files import write_text


def save_surroundings(folder: Path) -> None:
    """Writes ``environment.txt`` and, from a git checkout, ``git.txt`` (commit and uncommitted changes)."""
    write_text(folder / "environment.txt", report() + "\n")
    source = Path(dcn_det.__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return  # installed as a package
    parts = [_git(source, *command) for command in (["log", "-1"], ["status", "--short"], ["diff", "HEAD"])]
    write_text(folder / "git.txt", "\n".join(parts))


def _git(source: Path, *command: str) -> str:
    try:
        done = subprocess.run(
            ["git", *command], cwd=source, capture_output=True, text=True, timeout=20, errors="replace"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"git {' '.join(command)}: {error}\n"
    return done.stdout if done.returncode == 0 else f"git {' '.join(command)}: {done.stderr}\n"


def commit() -> str:
    """Returns the short commit of the source, with ``+`` if there are local changes; without git, the version."""
    source = Path(dcn_det.__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return dcn_det.__version__
    name = _git(source, "rev-parse", "--short", "HEAD").strip()
    return f"{name}+" if _git(source, "status", "--short", "--untracked-files=no").strip() else name
