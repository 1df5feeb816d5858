"""One optimizer step: forward and backward passes, clipping, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcn_det.distributed import Processes
from dcn_det.precision import autocast
from dcn_det.structures import AnyBatch

Mark = Callable[[str], None]
"""Called with the name of a phase when it ends."""


@dataclass(frozen=True)
class Outcome:
    """Result of the passes of a step, identical in every process.

    Attributes:
        losses: means over the global batch, by name, and their sum as ``loss``.
        gradient_norm: before clipping; may be infinite with a loss scaler, which then skips the update.
        finite: whether the weights may be updated.
    """

    losses: dict[str, float]
    gradient_norm: float
    finite: bool


class Step:
    """Computes gradients and applies them.

    The losses of a pass are means over its images. Means over passes and processes of equal numbers of images are
    means over the global batch, so results do not depend on how it is split.

    Args:
        model: called with a batch, returns a dict of scalar losses whose sum is minimized.
        optimizer: over the model's parameters.
        device: device of the model.
        precision: dtype of autocast; float32 disables it, float16 adds a loss scaler.
        clip_norm: total gradient norm above which gradients are scaled down; 0 disables clipping.
        processes: the processes that train the same model.
        mark: called at the end of the phases ``forward``, ``backward`` and ``optimizer``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        clip_norm: float = 0.0,
        processes: Processes | None = None,
        mark: Mark | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.model = self.processes.wrap(model, device)
        self.optimizer = optimizer
        self.device = device
        self.precision = precision
        self.clip_norm = clip_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self._mark = mark or (lambda phase: None)

    def gradients(self, batches: Sequence[AnyBatch]) -> Outcome:
        """Computes and clips the gradients of the global batch; ``batches`` are the passes of this process."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            losses = self._pass(batch, 1 / len(batches), last=number == len(batches))
            for name, loss in losses.items():
                sums[name] = sums[name] + loss if name in sums else loss
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.clip_norm > 0:
            norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        else:  # clipping at infinity would multiply every gradient by 1
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # One transfer from the device for all numbers, one message between processes.
        *values, gradient_norm = torch.stack([*sums.values(), norm.to(next(iter(sums.values())).dtype)]).tolist()
        values = self.processes.mean([value / len(batches) for value in values])
        named = dict(zip(sums, values))
        named["loss"] = sum(values)
        finite = math.isfinite(named["loss"]) and (self.scaler.is_enabled() or math.isfinite(gradient_norm))
        self._mark("backward")
        return Outcome(named, gradient_norm, finite)

    def apply(self) -> None:
        """Updates the weights; a loss scaler may skip the update and lower its scale."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._mark("optimizer")

    def skip(self) -> None:
        """Leaves the weights as they are after gradients that are not finite; a loss scaler lowers its scale."""
        self.scaler.update()

    def _pass(self, batch: AnyBatch, weight: float, last: bool) -> dict[str, Tensor]:
        on_device = batch.to(self.device, non_blocking=True)
        # Processes exchange gradients once per step, in its last pass.
        waiting = self.processes.apart(self.model) if not last else contextlib.nullcontext()
        with waiting:
            with autocast(self.device, self.precision):
                losses: dict[str, Tensor] = self.model(on_device)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            self._mark("forward")
            self.scaler.scale(total * weight).backward()
            if not last:
                self._mark("backward")
        return {name: loss.detach().float() for name, loss in losses.items()}
