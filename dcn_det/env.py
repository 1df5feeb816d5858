"""Versions, devices and compiled operators of this machine, for bug reports and next to measurements.

Missing or broken parts do not stop a report; they are listed in it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dcn_det

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "opencv": "cv2",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "tensorboard": "tensorboard",
}
"""Displayed name -> module."""
VARIABLES = (
    "DCN_DET_TIER",
    "DCN_DET_CPU",
    "DCN_DET_CUDA",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "TORCH_CUDA_ARCH_LIST",
    "OMP_NUM_THREADS",
    "CXX",
)
Lines = Iterator[tuple[str, str]]


def report() -> str:
    """Returns the report, one ``name  value`` per line."""
    lines: list[tuple[str, str]] = []
    for part in (_versions, _machine, _cuda, _compilers, _variables, _operators):
        lines += _guarded(part)
    width = max(len(what) for what, _ in lines)
    return "\n".join(f"{what:<{width}}  {value}".rstrip() for what, value in lines)


def machine(device: str) -> dict[str, Any]:
    """Describes the machine and the versions that a measurement depends on.

    Args:
        device: type of the device measured, ``cpu`` or ``cuda``.
    """
    import torch
    import torchvision

    from dcn_det.ops import library

    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "instruction_set": library.instruction_set() or "plain PyTorch operators",
        "versions": {
            "dcn_det": dcn_det.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
    }
    if device != "cpu":
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def _guarded(part: Callable[[], Lines]) -> Lines:
    try:
        yield from part()
    except Exception as error:  # a broken part must not prevent the rest of the report
        yield part.__name__.strip("_"), f"not available: {_reason(error)}"


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _versions() -> Lines:
    yield "dcn_det", f"{dcn_det.__version__} in {Path(dcn_det.__file__).parent}"
    yield "python", f"{platform.python_version()} at {sys.executable}"
    for name, module in PACKAGES.items():
        yield name, _version(module)


def _version(module: str) -> str:
    try:
        found = importlib.import_module(module)
        return str(getattr(found, "__version__", None) or importlib.metadata.version(module))
    except Exception as error:  # a broken installation may raise any error
        return f"cannot be imported: {_reason(error)}"


def cpu_model() -> str:
    """Returns the name of the processor, or its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def _machine() -> Lines:
    yield "platform", platform.platform()
    yield "cpu", f"{cpu_model()}, {usable_cores()} of {os.cpu_count()} cores usable"
    import torch

    yield "torch threads", f"{torch.get_num_threads()}, {torch.backends.cpu.get_cpu_capability()}"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda() -> Lines:
    import torch

    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    yield "cuda", f"torch built for {torch.version.cuda or 'no CUDA'}, driver {driver or 'not found'}"
    if not torch.cuda.is_available():
        yield "cuda devices", f"none usable: {_cuda_refusal()}"
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        yield f"cuda:{index}", f"{device.name}, {memory:.1f} GiB, capability {device.major}.{device.minor}"


def _cuda_refusal() -> str:
    """Returns the reason why torch cannot use a CUDA device."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:  # torch raises AssertionError or RuntimeError
        return _reason(error)
    return "no device is visible"


def _compilers() -> Lines:
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "c++")
    yield "c++ compiler", _output(compiler, "--version") or f"not found ({compiler})"
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    candidates = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    nvcc = next((path for path in [*candidates, "nvcc"] if shutil.which(path)), None)
    release = _output(nvcc, "--version", containing="release") if nvcc else ""
    yield "nvcc", f"{release} at {nvcc}" if release else "not found"


def _output(command: str, *args: str, containing: str = "") -> str:
    """Returns the first output line of a command that contains the text; empty if there is none."""
    try:
        done = subprocess.run([*command.split(), *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    if done.returncode != 0:
        return ""
    return next((line.strip() for line in done.stdout.splitlines() if line.strip() and containing in line), "")


def _variables() -> Lines:
    for name in VARIABLES:
        if name in os.environ:
            yield name, os.environ[name]


def _operators() -> Lines:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the states below contain the same information
        from dcn_det.ops import library
        from dcn_det.ops.schemas import SCHEMAS
    for device, state in library.status().items():
        yield (
            f"{device} operators",
            f"loaded from {state.path}" if state.loaded else f"not loaded: {state.reason}",
        )
    yield "cpu instruction set", library.instruction_set() or "none: plain PyTorch operators"
    for name in SCHEMAS:
        tiers = (f"{device}: {library.tier(name, device)}" for device in library.status())
        yield name, ", ".join(tiers)
