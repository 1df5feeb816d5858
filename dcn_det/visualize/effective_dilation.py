"""Effective dilation of deformable convolutions, by the size of the object that a filter is on.

Source: Dai et al., "Deformable Convolutional Networks" (2017), section 4.2 and Table 2. The effective dilation of a
filter is the mean distance over all adjacent pairs of its sampling points: for a 3x3 filter, the 12 pairs of
horizontal and vertical neighbors, in cells of the layer's input. Without offsets it is the dilation of the layer. The
paper does not give its bounds of sizes; COCO's are used here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcn_det.config import Config
from dcn_det.config.model import ResidualBackboneConfig
from dcn_det.data.build import build_eval_loader
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.index import DatasetIndex
from dcn_det.errors import UserError
from dcn_det.inference.predictor import Predictor
from dcn_det.models.preprocess import padded_side
from dcn_det.ops import DeformConv2d
from dcn_det.progress import Count
from dcn_det.structures import ImageInfo
from dcn_det.visualize.offsets import Offsets, deformable_layers, reading_offsets, stride_of
from dcn_det.visualize.plots import RIGHT, new_axes, png_bytes, require_matplotlib

PLACES = ("small", "medium", "large", "background")
"""What the center of a filter can be on."""
MEDIUM, LARGE = 32**2, 96**2
"""Minimum areas of medium and large boxes, in pixels of the original image (COCO)."""
UNCOUNTED = -1
COLORS = ("#9fc5b3", "#5fa387", RIGHT, "#b8b8b8")
"""Of the bars, by place."""

Published = Mapping[str, Mapping[str, tuple[float, float]]]
"""Mean and standard deviation by layer and place."""
PAPER: Published = {
    "backbone.layer4.0.conv2": dict(zip(PLACES, ((2.2, 1.2), (2.9, 1.3), (4.2, 1.6), (3.1, 1.1)))),
    "backbone.layer4.1.conv2": dict(zip(PLACES, ((2.5, 1.3), (3.1, 1.5), (5.1, 2.5), (3.2, 1.2)))),
    "backbone.layer4.2.conv2": dict(zip(PLACES, ((5.3, 3.3), (5.8, 3.5), (8.4, 4.5), (6.2, 3.0)))),
}
"""Mean and standard deviation in the paper's Table 2, by layer (res5a, res5b and res5c) and place: R-FCN with
ResNet-101 and three deformable convolutions on the VOC2007 test split."""
PAPER_BLOCKS = ("res5a", "res5b", "res5c")


@dataclass
class Statistics:
    """Number, mean and standard deviation of values that arrive in parts, in one pass (Chan et al., 1979).

    Attributes:
        filters: number of values.
        mean: NaN if there are none, as is :attr:`std`.
    """

    filters: int = 0
    mean: float = math.nan
    _squares: float = 0.0
    """Sum of squared differences from the mean."""

    def add(self, values: Tensor) -> None:
        """Adds values of any shape."""
        count = values.numel()
        if count == 0:
            return
        values = values.double()
        mean = float(values.sum()) / count
        squares = float((values - mean).square().sum())
        if self.filters == 0:
            self.filters, self.mean, self._squares = count, mean, squares
            return
        total, difference = self.filters + count, mean - self.mean
        self._squares += squares + difference**2 * self.filters * count / total
        self.mean += difference * count / total
        self.filters = total

    @property
    def std(self) -> float:
        """Standard deviation of the population."""
        return math.sqrt(self._squares / self.filters) if self.filters else math.nan


@dataclass(frozen=True)
class LayerDilation:
    """Effective dilation of the filters of one layer.

    Attributes:
        name: of the layer in the detector.
        dilation: the value without offsets, in cells.
        places: statistics by :data:`PLACES`.
    """

    name: str
    dilation: float
    places: Mapping[str, Statistics] = field(default_factory=lambda: {place: Statistics() for place in PLACES})


def effective_dilation(offsets: Offsets) -> Tensor:
    """Computes the effective dilation of every filter.

    Args:
        offsets: of a layer with at least two taps.

    Returns:
        (N, offset_groups, H_out, W_out), in cells of the layer's input: the mean distance over all pairs of sampling
        points whose taps are horizontal or vertical neighbors.
    """
    points = offsets.points()
    vertical, horizontal = points.diff(dim=2).flatten(2, 3), points.diff(dim=3).flatten(2, 3)
    distances = torch.linalg.vector_norm(torch.cat((vertical, horizontal), dim=2), dim=3)
    return distances.sum(dim=2) / distances.shape[2]


def undeformed(layer: DeformConv2d) -> float:
    """Returns the effective dilation of a layer without offsets: its dilation, if that is the same along y and x."""
    (height, width), (along_y, along_x) = layer.kernel_size, layer.dilation
    vertical, horizontal = (height - 1) * width, height * (width - 1)
    return (vertical * along_y + horizontal * along_x) / (vertical + horizontal)


def places_of(centers: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """Determines what filters are on.

    A filter is on the smallest box that contains its center: ``small`` if the area of the box is below 32^2 pixels,
    ``large`` from 96^2 on, else ``medium``. Centers that only crowds (COCO) or difficult objects (Pascal VOC) contain
    belong to no place.

    Args:
        centers: (M, 2), x and y in pixels of the original image.
        boxes: (n, 4), half-open xyxy in pixels of the original image.
        crowd: bool (n,).

    Returns:
        int64 (M,), indices into :data:`PLACES`, or :data:`UNCOUNTED`.
    """
    x, y = centers[:, :1], centers[:, 1:]
    x1, y1, x2, y2 = boxes.T
    inside = (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)
    areas = ((x2 - x1) * (y2 - y1)).expand_as(inside).masked_fill(~inside | crowd, math.inf)
    smallest = torch.cat((areas, areas.new_full((len(centers), 1), math.inf)), dim=1).amin(dim=1)
    places = torch.bucketize(smallest, smallest.new_tensor((MEDIUM, LARGE)), right=True)
    without = smallest.isinf()
    places[without] = PLACES.index("background")
    places[without & (inside & crowd).any(dim=1)] = UNCOUNTED
    return places


def filter_centers(height: int, width: int, stride: int, info: ImageInfo) -> tuple[Tensor, Tensor]:
    """Computes the centers of the filters of a layer.

    The filter of cell (row, column) is centered on the middle of the pixels that this cell stands for, as for anchors
    and RoI pooling: ``((column + 0.5) * stride, (row + 0.5) * stride)`` in the network's input.

    Args:
        height, width: of the layer's output, in cells.
        stride: of the layer's output, in pixels of the network's input.
        info: the image, not mirrored.

    Returns:
        float64 (height * width, 2), x and y in pixels of the original image; and bool (height * width,), whether a
        center is on the image rather than on padding.
    """
    assert not info.flipped
    y, x = ((torch.arange(side, dtype=torch.float64) + 0.5) * stride for side in (height, width))
    y, x = (each.flatten() for each in torch.meshgrid(y, x, indexing="ij"))
    scale_x, scale_y = info.scale
    return torch.stack((x / scale_x, y / scale_y), dim=1), (x < info.input_width) & (y < info.input_height)


def measure(
    predictor: Predictor,
    dataset: DetectionDataset,
    config: Config,
    images: int,
    progress: Count | None = None,
) -> list[LayerDilation]:
    """Measures the effective dilation of the deformable convolutions of a detector that have more than one tap.

    Every offset group of every position of a map counts as one filter. Layers that run on parts of images, such as
    pooled RoIs, are not measured.

    Args:
        predictor: the detector, with one view, which is that of ``dataset``.
        dataset: annotated images, in order of id.
        config: settings of loading.
        images: number of images to measure, the first ones.
        progress: called with the number of finished images and the total.

    Returns:
        One entry per layer, in the order of the detector's modules.

    Raises:
        UserError: the detector has no such layer, images have no annotations or cannot be read, or offsets are not
            finite.
    """
    model: Any = predictor.model
    layers = {
        name: LayerDilation(name, undeformed(layer))
        for name, layer in deformable_layers(model).items()
        if math.prod(layer.kernel_size) > 1
    }
    if not layers:
        raise UserError("the detector has no deformable convolution; see model.backbone.deform.blocks")
    if not dataset.index.annotated:
        raise UserError(f"{dataset.index.source} has no annotations, which tell the sizes of objects")
    batches = build_eval_loader(dataset, config.data, config.test.batch_size, done=range(images, len(dataset)))
    multiple = getattr(model.preprocess, "size_multiple", 1)
    readings: list[Offsets] = []
    finished = 0
    with reading_offsets(model, readings.append):
        for batch in batches:
            readings.clear()
            predictor.predict([batch])
            infos = batch.infos[: images - finished]
            input_size = [padded_side(side, multiple) for side in batch.images.shape[2:]]
            for reading in readings:
                if reading.name in layers and reading.offset.shape[0] == len(batch):
                    _add(layers[reading.name], reading, input_size, infos, dataset.index)
            finished += len(infos)
            if progress is not None:
                progress(finished, images)
    return list(layers.values())


def _add(
    layer: LayerDilation, reading: Offsets, input_size: Sequence[int], infos: Sequence[ImageInfo], index: DatasetIndex
) -> None:
    """Adds the filters of one call of a layer."""
    height, width = reading.offset.shape[2:]
    stride = stride_of(input_size, (height, width))
    for info, values in zip(infos, effective_dilation(reading).cpu()):
        if not values.isfinite().all():
            raise UserError(f"offsets of {layer.name} are not finite on image '{info.file_name}'")
        row = int(torch.searchsorted(index.image_ids, info.image_id))
        part = slice(int(index.offsets[row]), int(index.offsets[row + 1]))
        centers, real = filter_centers(height, width, stride, info)
        places = places_of(centers, index.boxes[part].double(), index.crowd[part])
        places[~real] = UNCOUNTED
        for number, statistics in enumerate(layer.places.values()):
            statistics.add(values.flatten(1)[:, places == number])


def published(config: Config) -> Published:
    """Returns :data:`PAPER` for the detector and data that it is about; an empty mapping for others."""
    model, backbone = config.model, config.model.backbone
    applies = (
        config.data.kind == "voc"
        and model.kind == "rfcn"
        and not model.deforms_rois
        and isinstance(backbone, ResidualBackboneConfig)
        and backbone.kind == "resnet101"
        and tuple(sorted(backbone.deform.blocks)) == PAPER_BLOCKS
    )
    return PAPER if applies else {}


def to_plain(layers: Iterable[LayerDilation], paper: Published) -> dict[str, Any]:
    """Returns all numbers as a JSON-ready record; mean and std are None where there are no filters."""
    records: list[dict[str, Any]] = []
    for layer in layers:
        record: dict[str, Any] = {"name": layer.name, "dilation": layer.dilation}
        for place, each in layer.places.items():
            mean, std = (each.mean, each.std) if each.filters else (None, None)
            record[place] = {"filters": each.filters, "mean": mean, "std": std}
        if layer.name in paper:
            record["paper"] = {place: {"mean": mean, "std": std} for place, (mean, std) in paper[layer.name].items()}
        records.append(record)
    areas = {"small": [0, MEDIUM], "medium": [MEDIUM, LARGE], "large": [LARGE, None]}
    return {"areas": areas, "layers": records}


def table(layers: Iterable[LayerDilation], paper: Published) -> str:
    """Returns the statistics as text: a line per layer, followed by that of the paper."""
    rows = [["layer", "dilation", *PLACES]]
    for layer in layers:
        cells = [
            f"{each.mean:.2f} +- {each.std:.2f} ({each.filters})" if each.filters else "-"
            for each in layer.places.values()
        ]
        rows.append([layer.name, f"{layer.dilation:g}", *cells])
        if layer.name in paper:
            values = (paper[layer.name][place] for place in PLACES)
            rows.append(["  paper, Table 2", "", *(f"{mean:.1f} +- {std:.1f}" for mean, std in values)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def plot(layers: Sequence[LayerDilation], paper: Published) -> bytes:
    """Draws means, with standard deviations as error bars, by layer and place; returns a PNG file.

    The paper's means are drawn as diamonds, the dilation without offsets as dashed lines.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib("--plot")
    figure, axes = new_axes(max(5.0, 1.5 * len(layers) + 1.5))
    for number, (place, color) in enumerate(zip(PLACES, COLORS)):
        x = [position + 0.2 * (number - 1.5) for position in range(len(layers))]
        means, stds = ([getattr(layer.places[place], key) for layer in layers] for key in ("mean", "std"))
        axes.bar(x, means, 0.18, yerr=stds, color=color, label=place, error_kw={"elinewidth": 1, "ecolor": "#555555"})
        published_x = [at for at, layer in zip(x, layers) if layer.name in paper]
        published_y = [paper[layer.name][place][0] for layer in layers if layer.name in paper]
        label = "paper" if paper and place == PLACES[-1] else None
        axes.plot(published_x, published_y, "D", color="black", markersize=4, label=label)
    left, right = ([position + side for position in range(len(layers))] for side in (-0.45, 0.45))
    without = [layer.dilation for layer in layers]
    axes.hlines(without, left, right, color="black", linestyle="--", linewidth=1, label="without offsets")
    axes.set_xticks(range(len(layers)), [layer.name.removeprefix("backbone.") for layer in layers], fontsize=8)
    axes.set(ylabel="effective dilation (cells)")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return png_bytes(figure)
