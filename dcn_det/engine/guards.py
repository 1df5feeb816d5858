"""Failures of a training step, described in one line with possible remedies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dcn_det.engine.step import Outcome
from dcn_det.errors import UserError
from dcn_det.structures import AnyBatch


class TrainingDiverged(UserError):
    """A loss or a gradient is not finite; the message names the iteration, the images and the saved file."""


class OutOfMemory(UserError):
    """A step needs more memory than the device has."""


class FailedAllocations:
    """Tells failed allocations from other errors.

    Compiled operators report an error of PyTorch without its type and, in older versions such as 2.11, without its
    message. What remains is that the allocator of the GPU counts its failures.

    Args:
        device: where the network runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen = self._count()

    def _count(self) -> int:
        return torch.cuda.memory_stats(self._device).get("num_ooms", 0) if self._device.type == "cuda" else 0

    def caused(self, error: RuntimeError) -> bool:
        """Returns whether ``error`` is a failed allocation, on a GPU or on the CPU."""
        seen, self._seen = self._seen, self._count()
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text:
            return True
        return "API call failed" in text and self._seen > seen


def out_of_memory(error: RuntimeError, batches: Sequence[AnyBatch], batch_size: int) -> OutOfMemory:
    """Returns the error to raise; its message lists settings that reduce memory."""
    sizes = ", ".join(sorted({f"{b.images.shape[3]}x{b.images.shape[2]}" for b in batches}))
    halve = f"train.batch_size={batch_size // 2} with twice train.accumulate, " if batch_size > 1 else ""
    return OutOfMemory(
        f"out of memory with {batch_size} images of up to {sizes} per pass; try {halve}train.precision=bfloat16, "
        f"train.recompute_stages=[res3, res4, res5] or smaller images ({str(error).splitlines()[0]})"
    )


def describe(outcome: Outcome, batches: Sequence[AnyBatch], previous_norm: float) -> str:
    """Describes a non-finite step: losses, gradient norm and images."""
    parts = ", ".join(f"{name} {value:g}" for name, value in outcome.losses.items())
    images = ", ".join(str(info.image_id) for batch in batches for info in batch.infos)
    return f"{parts}; gradient norm {outcome.gradient_norm:g} (previous step: {previous_norm:g}); image ids {images}"


def evidence(batches: Sequence[AnyBatch]) -> list[dict[str, Any]]:
    """Returns the batches as plain containers, for a checkpoint."""
    return [batch.to_plain() for batch in batches]


def nonfinite_buffer(model: nn.Module) -> str | None:
    """Returns the name of the first buffer with non-finite values (such as running statistics), or None."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and not torch.isfinite(buffer).all():
            return name
    return None


def data_changes(saved: Mapping[str, Any], categories: list[dict[str, Any]], fingerprint: str) -> str | None:
    """Compares the data set of a checkpoint with the current one.

    Args:
        saved: content of the checkpoint.
        categories: categories of the current data set, as plain containers.
        fingerprint: fingerprint of the current training split.

    Returns:
        A warning, or None if the data set is unchanged.

    Raises:
        UserError: the classes differ, so that the weights do not fit.
    """
    before = [item["name"] for item in saved["categories"]]
    now = [item["name"] for item in categories]
    if before != now:
        gone = [name for name in before if name not in now][:5]
        new = [name for name in now if name not in before][:5]
        parts = [f"removed: {', '.join(gone)}" if gone else "", f"added: {', '.join(new)}" if new else ""]
        difference = "; ".join(part for part in parts if part) or "same names in a different order"
        raise UserError(
            f"the data set has {len(now)} classes, the checkpoint {len(before)} ({difference}); resume with the data "
            "it was trained on, or start a new run"
        )
    if saved.get("data_fingerprint") not in (None, fingerprint):
        return "the training data (images, boxes or names) changed since the checkpoint; the current data is used"
    return None
