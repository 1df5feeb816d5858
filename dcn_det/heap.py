"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory(trim: int = 64 << 20) -> bool:
    """Has freed memory kept for the next image or step instead of given back to the system.

    What one image takes is freed at once. glibc then returns its pages, and the next image's come back zeroed one by
    one: some 600 page faults. Training on the CPU frees and takes its activations likewise. Variables
    ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` in the environment go before this.

    Args:
        trim: bytes at the end of the heap that may stay unused.

    Returns:
        Whether this C library has the settings.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    # Larger blocks come from the system and go back to it, as before; glibc allows no larger threshold.
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_TRIM_THRESHOLD, trim))
