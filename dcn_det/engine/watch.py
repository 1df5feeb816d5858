"""Measurements of a run: means between log lines, memory, and offsets."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcn_det.data.dataset import DetectionDataset
from dcn_det.engine.logging import Log
from dcn_det.errors import UserError
from dcn_det.inference.predictor import Predictor
from dcn_det.visualize.observation import automatic_points, observe
from dcn_det.visualize.offsets import BinOffsets, Offsets, reading_bin_offsets, reading_offsets
from dcn_det.visualize.sampling import stacked_layers
from dcn_det.visualize.sampling_pictures import sampling_picture

WATCHED_IMAGES = 4
"""Test images whose offsets are logged at each evaluation."""
PANEL_SIDE = 400
"""Longer side of the picture of one point, in pixels."""


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
        model: its deformable convolutions and deformable RoI pooling are measured.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measures all forward passes inside the block."""
        self._sums.clear()
        self._counts.clear()
        with reading_offsets(self._model, self._add), reading_bin_offsets(self._model, self._add):
            yield

    def _add(self, reading: Offsets | BinOffsets) -> None:
        name, offset = reading.name, reading.offset
        total = offset.abs().sum(dtype=torch.float32)
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + offset.numel()

    def magnitudes(self) -> dict[str, float]:
        """Returns the magnitudes in the last measured passes, by layer."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items() if self._counts[name]}


def log_offsets(log: Log, iteration: int, predictor: Predictor, dataset: DetectionDataset) -> None:
    """Logs what deformable layers do in the first images of a split.

    Histograms contain all offsets: of convolutions in cells of the layer's input, of RoI pooling in fractions of the
    RoI before ``offset_std``. Pictures show sampling locations at points that the annotations choose, so that they are
    the same at every evaluation.

    Args:
        log: receives histograms ``offsets/...`` and pictures ``sampling/...``.
        iteration: completed optimizer steps.
        predictor: the detector.
        dataset: the images with their annotations.
    """
    model: Any = predictor.model
    layers = stacked_layers(model.eval())
    values: dict[str, list[Tensor]] = {}
    for i in range(min(WATCHED_IMAGES, len(dataset))):
        path, image = Path(dataset.index.file_name(i)), dataset.image(i)
        try:
            seen = observe(predictor, image, layers=layers)
        except UserError as error:
            log.say(f"warning: sampling locations of '{path.name}' not drawn: {error}")
            continue
        readings: tuple[Offsets | BinOffsets, ...] = (*seen.readings, *seen.bins)
        for reading in readings:
            values.setdefault(reading.name, []).append(reading.offset.float().flatten().cpu())
        points = automatic_points(dataset.index.objects(i)[0], (image.shape[0], image.shape[1]))
        if seen.stack is not None and points:
            log.image(iteration, f"sampling/{path.stem}", sampling_picture(image, seen.stack, points, PANEL_SIDE))
    for name, parts in values.items():
        offsets = torch.cat(parts)
        log.histogram(iteration, f"offsets/{name}", offsets[offsets.isfinite()].numpy())
