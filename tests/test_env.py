"""The environment report is complete even if packages are missing or broken."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch

import dcn_det
from dcn_det import env
from dcn_det.cli import dispatch
from dcn_det.ops import library
from dcn_det.ops.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]


def lines() -> dict[str, str]:
    """Returns the report by its first column."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in env.report().splitlines())


def test_versions_are_those_installed() -> None:
    report = lines()
    assert report["dcn_det"].startswith(dcn_det.__version__)
    assert report["torch"] == torch.__version__
    assert report["numpy"] == numpy.__version__
    for name in ("python", "torchvision", "opencv", "pycocotools", "pydantic", "pyyaml"):
        assert report[name][0].isdigit()


def test_every_operator_shows_what_serves_it() -> None:
    report = lines()
    for name in SCHEMAS:
        tiers = ", ".join(f"{device}: {library.tier(name, device)}" for device in ("cpu", "cuda"))
        assert report[name] == tiers


def test_machine_devices_and_compilers_have_a_line() -> None:
    text = env.report()
    for start in (
        "platform  ",
        "cpu  ",
        "torch threads  ",
        "cuda  ",
        "c++ compiler  ",
        "nvcc  ",
        "cpu operators  ",
    ):
        assert any(line.startswith(start.rstrip() + "  ") for line in text.splitlines()), start
    assert ("cuda:0" in text) == torch.cuda.is_available()


def test_variables_that_matter_are_shown_when_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    report = lines()
    assert report["OMP_NUM_THREADS"] == "3"
    assert "CUDA_HOME" not in report


def test_a_broken_package_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def broken(name: str) -> ModuleType:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file\nand more")
        return original(name)

    monkeypatch.setattr(env.importlib, "import_module", broken)
    report = lines()
    assert report["opencv"] == "cannot be imported: ImportError: libGL.so.1: cannot open shared object file"
    assert report["torch"] == torch.__version__


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> dict[str, library.LibraryState]:
        raise RuntimeError("no status")

    monkeypatch.setattr(library, "status", refuse)
    report = lines()
    assert report["operators"] == "not available: RuntimeError: no status"
    assert report["torch"] == torch.__version__


def test_without_compilers_and_torch_it_still_reports(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('broken on purpose')\n")
    done = subprocess.run(
        [sys.executable, "-m", "dcn_det", "env"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "PATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be imported: ImportError: broken on purpose" in done.stdout
    assert "c++ compiler" in done.stdout and "not found" in done.stdout
    assert "operators" in done.stdout


def test_the_command_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["env"]) == 0
    assert capsys.readouterr().out.startswith("dcn_det")
