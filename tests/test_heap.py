"""Consecutive images reuse the same memory."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
import numpy as np
from dcn_det.heap import keep_freed_memory
if "keep" in sys.argv:
    kept = keep_freed_memory()
    if kept is not hasattr(ctypes.CDLL(None), "mallopt"):
        raise SystemExit("the result does not tell whether mallopt exists")
    if not kept:
        raise SystemExit(99)
def image():
    # the two buffers of a decoder, and the resized image
    buffers = [np.empty(size, np.uint8) for size in (900_000, 900_000, 1_400_000)]
    for each in buffers:
        each[:] = 1
for _ in range(20):
    image()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    image()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""


def faults(*arguments: str, **environment: str) -> float:
    """Returns the page faults per image, over 100 images in a separate process."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=known | environment)
    if done.returncode == 99:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < 5
    assert faults() > 300, "otherwise the C library keeps memory by default, and the setting is not needed"


def test_the_environment_goes_first() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_MMAP_THRESHOLD_="65536") > 300
