"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory(trim: int = 64 << 20) -> bool:
    """Keeps freed memory for the next image or step instead of returning it to the system.

    By default, glibc returns the memory of an image when it is freed, and the next image takes about 600 page faults
    to get zeroed pages again. The same holds for activations in training on the CPU. The environment variables
    ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` take precedence.

    Args:
        trim: bytes at the end of the heap that may stay unused.

    Returns:
        Whether the C library supports these settings.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    # Larger blocks are still returned to the system: glibc does not allow a larger threshold.
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_TRIM_THRESHOLD, trim))
