"""Builds the compiled operators: ``dcn_det.ops._C`` and, where a fitting nvcc is found, ``_C_cuda``.

Two libraries, because one that refers to CUDA cannot be loaded beside a CPU build of torch. Both use
LibTorch's stable ABI, so that one build serves every torch from 2.11 on.

Environment: ``DCN_DET_CUDA=0`` leaves CUDA out, ``DCN_DET_CUDA=1`` fails when it cannot be built;
``TORCH_CUDA_ARCH_LIST`` names the GPU architectures (default ``8.0;9.0+PTX``).
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
OPTIMISE = ["-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-g0"]
NVCC_WARNINGS = ["-Werror", "all-warnings", "-Xcompiler", "-Wall"]
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def find_cuda_home() -> Path | None:
    """The toolkit's root: CUDA_HOME, else the usual place, else beside the nvcc on PATH."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    for candidate in candidates:
        if candidate and (Path(candidate) / "bin" / "nvcc").exists():
            return Path(candidate)
    return None


def cuda_refusal() -> tuple[Path | None, str]:
    """The toolkit to build with, or the reason why CUDA is left out."""
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
        return None, f"{home}/bin/nvcc does not tell its version"
    if found.group(1) != torch.version.cuda.split(".")[0]:
        return None, f"nvcc is {found.group(0).split()[1]}, torch was built for CUDA {torch.version.cuda}"
    return home, ""


def sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path) for path in (CSRC / folder).glob(pattern))


def extensions() -> list:
    home, refusal = cuda_refusal()
    if home is not None:
        # Both must be set before torch's build helpers are imported: they read them once.
        os.environ["CUDA_HOME"] = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    include = [str((CSRC).resolve())]
    cpu = CppExtension(
        "dcn_det.ops._C",
        [str(CSRC / "schema.cpp"), *sources("cpu", "*.cpp")],
        include_dirs=include,
        extra_compile_args={"cxx": [*OPTIMISE, "-fopenmp-simd", "-fvisibility=hidden", *DEFINES]},
        py_limited_api=True,
    )
    if home is None:
        if os.environ.get("DCN_DET_CUDA") == "1":
            raise SystemExit(f"error: DCN_DET_CUDA=1, but CUDA cannot be built: {refusal}")
        print(f"dcn_det: building for the CPU only: {refusal}")
        return [cpu]
    print(f"dcn_det: building for the CPU and for CUDA {os.environ['TORCH_CUDA_ARCH_LIST']} with {home}")
    cuda = CUDAExtension(
        "dcn_det.ops._C_cuda",
        [str(CSRC / "cuda" / "schema.cpp"), *sources("cuda", "*.cu")],
        include_dirs=include,
        extra_compile_args={
            "cxx": [*OPTIMISE, *DEFINES],
            "nvcc": ["-O3", "-std=c++20", "-DUSE_CUDA", "--threads", "2", *NVCC_WARNINGS, *DEFINES],
        },
        py_limited_api=True,
    )
    return [cpu, cuda]


if platform.system() == "Windows":
    raise SystemExit("error: dcn_det's operators are built with GCC or Clang flags; use WSL on Windows")

ext_modules = extensions()

from torch.utils.cpp_extension import BuildExtension  # noqa: E402  (after CUDA_HOME is settled)

setup(
    ext_modules=ext_modules,
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
