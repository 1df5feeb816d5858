"""The script that checks a GPU, as far as it runs without one."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from dcn_det.ops import library

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_gpu.sh"


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_unknown_part(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "c")
    assert result.returncode == 2
    assert "[a|b]" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be checked in full")
@pytest.mark.skipif(
    not all(state.loaded for state in library.status().values()), reason="would build the CUDA operators"
)
def test_without_a_gpu_it_says_so_and_keeps_the_logs(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "a")
    assert result.returncode == 1
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "FAILED  environment" in summary
    assert "nothing else was run" in summary.splitlines()[-1]
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as logs:
        assert "logs/environment.log" in logs.getnames()
