"""Free memory of a device, and how many images a training step can have in it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dcn_det.config import Config
from dcn_det.models.build import build_model
from dcn_det.models.info import model_info

USED = 0.7
"""Part of the free memory to plan with."""
OVERHEAD = 1.5
"""Memory of a training step over what its backward pass keeps: gradients of activations and work space."""
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Returns the bytes that this process can still use on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        found = [int(lines["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in lines else found
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))  # of a container
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        found.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(found), 0)


def step_memory(config: Config, classes: int) -> tuple[int, int, tuple[int, ...]]:
    """Estimates the memory of training steps.

    Args:
        config: the settings; the input has the size ``data.resize``.
        classes: number of classes.

    Returns:
        Bytes of weights, gradients and optimizer; bytes per image; and the strides of the maps with anchors, in pixels.
    """
    with torch.device("meta"):
        model = build_model(config, classes)
    height, width = config.data.train_size
    rois = getattr(getattr(config.model, "rpn", None), "post_nms", 0)
    info = model_info(model, height, width, rois)
    states = {"adamw": 2}.get(config.train.optimizer.kind, 1)
    fixed = 4 * (sum(info.parameters.values()) + (1 + states) * info.trainable)
    strides = getattr(getattr(model, "rpn", None), "strides", info.strides)
    return fixed, int(info.activation_bytes * OVERHEAD), tuple(strides)


def fitting_batch(images: int, free: int, fixed: int, per_image: int) -> int:
    """Returns the largest divisor of ``images`` (per step) with which a pass fits into the free memory; at least 1."""
    most = (free * USED - fixed) / max(per_image, 1)
    return max(size for size in range(1, images + 1) if images % size == 0 and (size == 1 or size <= most))
