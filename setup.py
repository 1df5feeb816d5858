"""Builds the compiled operators: ``dcn_det.ops._C`` and, if a compatible nvcc is found, ``dcn_det.ops._C_cuda``.

There are two libraries because a library linked against CUDA cannot be loaded with a CPU build of torch. Both use
LibTorch's stable ABI, so one build works with every torch from 2.11 on.

Environment variables: ``DCN_DET_CUDA=0`` disables CUDA, ``DCN_DET_CUDA=1`` fails if CUDA cannot be built;
``TORCH_CUDA_ARCH_LIST`` names the GPU architectures (default ``8.0;9.0+PTX``); ``DCN_DET_WERROR=0`` accepts warnings
of nvcc, which another release than the tested one may give.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import setup

CSRC = Path("dcn_det/ops/csrc")
# torch adds -DPy_LIMITED_API itself, for py_limited_api below.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
OPTIMIZE = ["-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-g0"]
NVCC_WARNINGS = [] if os.environ.get("DCN_DET_WERROR") == "0" else ["-Werror", "all-warnings", "-Xcompiler", "-Wall"]
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def find_cuda_home() -> Path | None:
    """Returns the CUDA toolkit's root: ``CUDA_HOME``, ``CUDA_PATH``, the default location, or that of nvcc on PATH."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    for candidate in candidates:
        if candidate and (Path(candidate) / "bin" / "nvcc").exists():
            return Path(candidate)
    return None


def cuda_refusal() -> tuple[Path | None, str]:
    """Returns the root of the CUDA toolkit to build with, or None and the reason for a CPU-only build."""
    if os.environ.get("DCN_DET_CUDA") == "0":
        return None, "DCN_DET_CUDA=0"
    home = find_cuda_home()
    if home is None:
        return None, "nvcc was not found (set CUDA_HOME)"
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} was built without CUDA"
    text = subprocess.run([str(home / "bin" / "nvcc"), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        return None, f"cannot read the version of {home}/bin/nvcc"
    if found.group(1) != torch.version.cuda.split(".")[0]:
        return None, f"nvcc is {found.group(0).split()[1]}, torch was built for CUDA {torch.version.cuda}"
    return home, ""


def sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path) for path in (CSRC / folder).glob(pattern))


def extensions() -> list:
    home, refusal = cuda_refusal()
    if home is not None:
        # torch's build helpers read both when they are imported.
        os.environ["CUDA_HOME"] = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    include = [str((CSRC).resolve())]
    cpu = CppExtension(
        "dcn_det.ops._C",
        [str(CSRC / "schema.cpp"), *sources("cpu", "*.cpp")],
        include_dirs=include,
        extra_compile_args={"cxx": [*OPTIMIZE, "-fopenmp-simd", "-fvisibility=hidden", *DEFINES]},
        py_limited_api=True,
    )
    if home is None:
        if os.environ.get("DCN_DET_CUDA") == "1":
            raise SystemExit(f"error: DCN_DET_CUDA=1, but CUDA cannot be built: {refusal}")
        print(f"dcn_det: building for the CPU only: {refusal}")
        return [cpu]
    print(f"dcn_det: building for the CPU and CUDA {os.environ['TORCH_CUDA_ARCH_LIST']} with {home}")
    cuda = CUDAExtension(
        "dcn_det.ops._C_cuda",
        [str(CSRC / "cuda" / "schema.cpp"), *sources("cuda", "*.cu")],
        include_dirs=include,
        extra_compile_args={
            "cxx": [*OPTIMIZE, *DEFINES],
            "nvcc": ["-O3", "-std=c++20", "-DUSE_CUDA", "--threads", "2", *NVCC_WARNINGS, *DEFINES],
        },
        py_limited_api=True,
    )
    return [cpu, cuda]


if platform.system() == "Windows":
    raise SystemExit("error: dcn_det's operators are built with GCC or Clang flags; use WSL on Windows")

ext_modules = extensions()

from torch.utils.cpp_extension import BuildExtension  # noqa: E402  (after CUDA_HOME is set)

setup(
    ext_modules=ext_modules,
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
