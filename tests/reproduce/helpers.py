"""Steps without training, and the command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dcn_det.config import Config
from dcn_det.reproduce.steps import Step

ROOT = Path(__file__).resolve().parents[2]


def step(
    output: Path,
    name: str,
    *command: str,
    key: str = "key",
    after: tuple[str, ...] = (),
    inputs: Mapping[Path, str] | None = None,
    parallel: bool = False,
) -> Step:
    """A step that is to write ``<output>/<name>/out``; by default, its command is the name of that file."""
    made = output / name / "out"
    return Step(name, command or (str(made),), Config(), inputs or {}, made, parallel, f"hash of {key}", key, after)


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """Starts ``dcn-det reproduce`` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "dcn_det", "reproduce", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
