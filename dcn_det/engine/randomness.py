"""States of all random number generators, as plain containers.

Training itself uses none of them: order, augmentation and sampling are functions of the seed. Restoring the states
makes modules that do, such as dropout, continue exactly in a resumed run.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def state(device: torch.device) -> dict[str, Any]:
    """Returns the states of the global generators of Python, NumPy and torch, and of the device's generator."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, following = random.getstate()
    return {
        "python": [version, list(internal), following],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def load(saved: dict[str, Any], device: torch.device) -> None:
    """Restores the states that ``state`` returned."""
    version, internal, following = saved["python"]
    random.setstate((version, tuple(internal), following))
    name, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(saved["torch"])
    if device.type == "cuda" and saved["device"] is not None:
        torch.cuda.set_rng_state(saved["device"], device)


def seed(value: int) -> None:
    """Seeds the global generators of Python, NumPy and torch."""
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002
    torch.manual_seed(value)
