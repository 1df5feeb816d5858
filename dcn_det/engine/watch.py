"""Measurements of a run: means between log lines, memory, and magnitudes of offsets."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dcn_det.ops import DeformConv2d


class Window:
    """Sums between two log lines."""

    def __init__(self) -> None:
        self.steps = 0
        self.images = 0
        self.waited = 0.0
        self.seconds = 0.0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, losses: Mapping[str, float], images: int, waited: float, seconds: float) -> None:
        """Adds one step; ``losses`` is empty for a skipped step."""
        self.steps += 1
        self.images += images
        self.waited += waited
        self.seconds += seconds
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Returns the mean of each loss over the steps that have it."""
        return {name: value / self._counts[name] for name, value in self._sums.items()}


def memory_gib(device: torch.device) -> float:
    """Returns the peak memory so far in GiB: allocated on the GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class OffsetMeter:
    """Measures the offsets that the deformable layers of a model predict.

    The magnitude is the mean absolute value: in cells of the input feature map for a convolution, in fractions of
    the RoI (before ``offset_std``) for RoI pooling.

    Args:
        model: its deformable convolutions, and all other modules named ``offset``, are measured.
    """

    def __init__(self, model: nn.Module) -> None:
        convolutions = {name: m for name, m in model.named_modules() if isinstance(m, DeformConv2d)}
        self._layers: dict[str, tuple[nn.Module, int | None]] = {}
        for name, module in model.named_modules():
            if name.rpartition(".")[2] != "offset":
                continue
            parent = convolutions.get(name.rpartition(".")[0])
            kernel = parent.kernel_size[0] * parent.kernel_size[1] if parent else 0
            # The mask of a modulated layer follows its offsets.
            channels = 2 * parent.offset_groups * kernel if parent else None
            self._layers[name.rpartition(".")[0] or name] = (module, channels)
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measures every forward pass inside the block."""
        self._seen.clear()
        handles = [
            module.register_forward_hook(self._hook(name, channels))
            for name, (module, channels) in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, channels: int | None) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._seen[name] = output.detach()[:, :channels].abs().float().mean()

        return hook

    def magnitudes(self) -> dict[str, float]:
        """Returns the magnitudes of the last measured pass, by layer."""
        return {name: float(value) for name, value in self._seen.items()}
