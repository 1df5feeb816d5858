"""What can go wrong in a step, told in one line and with what helps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dcn_det.engine.step import Outcome
from dcn_det.errors import UserError
from dcn_det.structures import Batch


class TrainingDiverged(UserError):
    """A loss or a gradient is not finite; the message says where and what was saved."""


class OutOfMemory(UserError):
    """The device has too little memory for a step."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory(error: RuntimeError, batches: Sequence[Batch], batch_size: int) -> OutOfMemory:
    """The error to raise, with what to change."""
    sizes = ", ".join(sorted({f"{b.images.shape[3]}x{b.images.shape[2]}" for b in batches}))
    halve = f"train.batch_size={batch_size // 2} with twice train.accumulate, " if batch_size > 1 else ""
    return OutOfMemory(
        f"out of memory with {batch_size} images of up to {sizes} in a pass; try {halve}train.precision=bfloat16, "
        f"train.recompute_stages=[res3, res4, res5] or a smaller data.resize ({str(error).splitlines()[0]})"
    )


def describe(outcome: Outcome, batches: Sequence[Batch], previous_norm: float) -> str:
    """A step that is not finite: losses, gradient norm, images."""
    parts = ", ".join(f"{name} {value:g}" for name, value in outcome.losses.items())
    images = ", ".join(str(info.image_id) for batch in batches for info in batch.infos)
    return f"{parts}; gradient norm {outcome.gradient_norm:g} (the step before: {previous_norm:g}); image ids {images}"


def evidence(batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """The batches as plain containers, to be saved."""
    return [
        {
            "images": batch.images,
            "infos": [dataclasses.asdict(info) for info in batch.infos],
            "targets": [{"boxes": target.boxes, "labels": target.labels} for target in batch.targets],
        }
        for batch in batches
    ]


def spoilt_buffer(model: nn.Module) -> str | None:
    """The name of a buffer that is not finite any more, such as running statistics that met a NaN."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and not torch.isfinite(buffer).all():
            return name
    return None


def data_changes(saved: Mapping[str, Any], categories: list[dict[str, Any]], fingerprint: str) -> str | None:
    """Compares a checkpoint's data with the present; returns what to warn of.

    Args:
        saved: the checkpoint.
        categories: of the present data, as plain containers.
        fingerprint: of the present training split.

    Raises:
        UserError: the classes differ, so that the weights do not fit.
    """
    before = [item["name"] for item in saved["categories"]]
    now = [item["name"] for item in categories]
    if before != now:
        gone = [name for name in before if name not in now][:5]
        new = [name for name in now if name not in before][:5]
        parts = [f"gone: {', '.join(gone)}" if gone else "", f"new: {', '.join(new)}" if new else ""]
        difference = "; ".join(part for part in parts if part) or "the same names in another order"
        raise UserError(
            f"the data set has {len(now)} classes, the checkpoint {len(before)} ({difference}); resume with the data "
            "it was trained on, or start a new run"
        )
    if saved.get("data_fingerprint") not in (None, fingerprint):
        return "the training data changed since the checkpoint (images, boxes or names); the run goes on with the new"
    return None
