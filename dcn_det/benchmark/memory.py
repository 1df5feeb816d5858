"""Memory that one call of a deformable convolution adds to a process, measured in a separate process.

PyTorch's profiler sees only PyTorch's own allocator, not the memory of oneDNN, MKL or a kernel's vectors. The operating
system sees everything: the result is the peak resident memory (VmHWM), reset before the call, minus the resident memory
before the call (VmRSS). A first call on a 4x4 map loads the code, and freed large blocks are returned to the system, so
neither changes the result. The output is included.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CONTESTANTS = ("ours", "torchvision", "plain")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# glibc maps blocks of 64 KiB and more, and unmaps them when freed; MKL keeps no buffers.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MKL_DISABLE_FAST_MM": "1"}
SIZE = (38, 63)
OUTPUT_MEGABYTES = 512 * SIZE[0] * SIZE[1] * 4 / 1e6


def extra_megabytes(contestant: str, threads: int = 2, processes: int = 3) -> float | None:
    """Returns the memory that a forward pass at 38x63 adds, in 10^6 bytes, or None if the system does not report it.

    Args:
        contestant: one of :data:`CONTESTANTS`.
        threads: number of CPU threads.
        processes: number of measurements. The maximum is returned, because sometimes one thread finishes before the
            other starts.
    """
    if not (STATUS.exists() and os.access(RESET, os.W_OK)):
        return None
    command = [sys.executable, "-m", "dcn_det.benchmark.memory", contestant, str(threads)]
    environment = {**os.environ, **ENVIRONMENT}
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(processes)]
    return max(float(run.stdout) for run in runs) if all(run.returncode == 0 for run in runs) else None


def _bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {field}"
    return 1024 * int(found.group(1))


def _measure(contestant: str, threads: int) -> float:
    import torch
    import torchvision

    from dcn_det.benchmark.op_cases import conv_arguments
    from dcn_det.ops import deform_conv2d

    torch.set_num_threads(threads)

    def forward(x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if contestant == "plain":
            return torch.nn.functional.conv2d(x, weight, None, 1, 2, 2)
        function = deform_conv2d if contestant == "ours" else torchvision.ops.deform_conv2d
        return function(x, offset, weight, None, 1, 2, 2)

    with torch.no_grad():
        forward(*conv_arguments(1, (4, 4), 4, "cpu"))
        arguments = conv_arguments(1, SIZE, 4, "cpu")
        before = _bytes("VmRSS")
        RESET.write_text("5")
        output = forward(*arguments)
        most = _bytes("VmHWM")
    assert output.nbytes == OUTPUT_MEGABYTES * 1e6
    return (most - before) / 1e6


if __name__ == "__main__":
    print(_measure(sys.argv[1], int(sys.argv[2])))
