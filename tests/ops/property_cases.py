"""Random calls of the operators, for property tests.

Sampling positions keep a distance of a power of two from cells and borders, where values or gradients jump, so
that rounding cannot move them across. Arguments of any dtype then have one correct result, computed in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALVES)
# Maximum error relative to the largest value, or to 1. Half-precision results are rounded several times.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def repeatable(examples: int) -> settings:
    """Returns settings with which hypothesis repeats the same examples and writes no files."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "slice": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]] if x.dim() > 1 else x.repeat_interleave(3)[1::3],
    "step": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    # One image repeated with stride 0. Changes values, and so is applied before computing the expected result.
    "expanded": lambda x: x[:1].expand(x.shape),
}


@dataclass
class Call:
    """Arguments of a public function.

    Attributes:
        leaves: tensors that receive gradients.
        fixed: other tensors.
        options: all other arguments.
        layouts: layouts of the leaves, keys of LAYOUTS.
    """

    leaves: dict[str, Tensor]
    fixed: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)

    def laid_out(self) -> dict[str, Tensor]:
        return {name: LAYOUTS[self.layouts.get(name, "contiguous")](leaf) for name, leaf in self.leaves.items()}


class Random:
    """Random tensors from a seed drawn by hypothesis."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator).double()

    def distinct(self, *shape: int) -> Tensor:
        """Returns values at least 1/64 apart."""
        count = int(torch.tensor(shape).prod())
        return (torch.randperm(count, generator=self.generator).double() / 64 - count / 128).reshape(shape)


def seeds() -> st.SearchStrategy[Random]:
    return st.integers(0, 2**31).map(Random)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def layouts() -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(LAYOUTS))


def divisors_of(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def conv_calls(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Call:
    dtype, random, batch = draw(st.sampled_from(dtypes)), draw(seeds()), draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    group_channels = draw(st.sampled_from([1, 2, 3, 4, 7, 16, 33]))
    channels, out_channels = groups * group_channels, groups * draw(st.integers(1, 4))
    offset_groups = draw(st.sampled_from(divisors_of(channels)[:6]))
    kernel, stride, padding, dilation = (draw(pairs(1, 3)), draw(pairs(1, 3)), draw(pairs(0, 3)), draw(pairs(1, 3)))
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    size = [max(1, e - 2 * p) + draw(st.integers(0, 6)) for e, p in zip(extent, padding)]
    out = [(n + 2 * p - e) // s + 1 for n, p, e, s in zip(size, padding, extent, stride)]
    taps = kernel[0] * kernel[1]

    # Odd sixteenths, which every dtype represents exactly below 16.
    spread = draw(st.sampled_from([0.5, 2.0, 20.0]))
    offset = (random.normal(batch, 2 * offset_groups * taps, *out) * spread).floor()
    offset = offset.clamp(-15, 14) + (2 * random.integers(0, 7, *offset.shape) + 1) / 16
    leaves = {
        "input": random.normal(batch, channels, *size),
        "offset": offset,
        "weight": random.normal(out_channels, group_channels, *kernel),
    }
    if draw(st.booleans()):
        leaves["bias"] = random.normal(out_channels)
    if draw(st.booleans()):
        leaves["mask"] = random.normal(batch, offset_groups * taps, *out).sigmoid()
    leaves = {name: leaf.to(dtype) for name, leaf in leaves.items()}
    if dtype in HALVES and draw(st.booleans()):
        leaves["offset"] = offset.float()
    for name in ("input", "offset", "mask"):
        if name in leaves and draw(st.integers(0, 9)) == 0:
            leaves[name] = LAYOUTS["expanded"](leaves[name])
    return Call(
        leaves,
        options={"stride": stride, "padding": padding, "dilation": dilation}
        | {"border": draw(st.sampled_from(["zeros", "dcn_v1"]))},
        layouts={name: draw(layouts().filter(lambda x: x != "expanded")) for name in leaves},
    )


@st.composite
def maps(draw: st.DrawFn, random: Random, channels: int, dtype: torch.dtype, distinct: bool = False) -> Tensor:
    size = draw(pairs(1, 12))
    batch = draw(st.integers(1, 3))
    make = random.distinct if distinct else random.normal
    values = make(batch, channels, *size).to(dtype)
    return LAYOUTS["expanded"](values) if draw(st.integers(0, 9)) == 0 else values


def regions(random: Random, count: int, features: Tensor, scale: float, pooled: int) -> Tensor:
    """Returns (count, 5) regions with integer corners, partly outside, whose bins span integer fractions of a cell."""
    batch, _, height, width = features.shape
    rows = [random.integers(0, batch - 1, count)]
    least = math.ceil(1 / (8 * scale * pooled))  # regions below 0.1 cells would be widened to it
    first, last = [], []
    for size in (width, height):
        pixels = int(size / scale)
        start = random.integers(-pixels // 2, pixels, count)
        extent = pooled * random.integers(least, max(least, int(1.5 * pixels) // pooled), count)
        first.append(start)
        last.append(start + extent - 1)
    return torch.stack(rows + first + last, 1)


def coordinates(draw: st.DrawFn, dtype: torch.dtype) -> torch.dtype:
    """Draws a dtype for regions that loses no precision with features of ``dtype``."""
    return draw(st.sampled_from([torch.float64] if dtype == torch.float64 else [torch.float32, torch.float64]))


SCALES = st.sampled_from([1.0, 1 / 4, 1 / 16])


@st.composite
def deform_psroi_calls(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Call:
    dtype, random, scale = draw(st.sampled_from(dtypes)), draw(seeds()), draw(SCALES)
    group, pooled, part = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    output_dim = draw(st.sampled_from([1, 2, 3, 6, 40] if group == 1 else [1, 2, 3, 4]))
    features = draw(maps(random, output_dim * group**2, dtype))
    rois = regions(random, draw(st.integers(1, 6)), features, scale, pooled)
    samples, offset_std = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([0.1, 0.25, 2.0]))
    leaves = {"input": features}
    if draw(st.integers(0, 3)):
        classes = draw(st.sampled_from(divisors_of(output_dim)))
        # Moves by odd multiples of half a step of the samples' 1/64 grid.
        move = (random.integers(-64, 64, len(rois), classes, 2, part, part) + 0.5) / 64
        extent = (rois[:, 3:5] + 1 - rois[:, 1:3]) * scale
        offset = move / (offset_std * extent[:, None, :, None, None])
        leaves["offset"] = offset.flatten(1, 2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    sizes = {"output_dim": output_dim, "group_size": group, "pooled_size": pooled, "part_size": part}
    return Call(
        leaves,
        {"rois": rois.to(coordinates(draw, dtype))},
        {"spatial_scale": scale, **sizes, "samples_per_bin": samples, "offset_std": offset_std},
        {name: draw(layouts().filter(lambda x: x != "expanded")) for name in leaves},
    )


@st.composite
def psroi_calls(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Call:
    dtype, random, scale = draw(st.sampled_from(dtypes)), draw(seeds()), draw(SCALES)
    group, pooled, output_dim = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    features = draw(maps(random, output_dim * group**2, dtype))
    rois = regions(random, draw(st.integers(1, 8)), features, scale, pooled)
    return Call(
        {"input": features},
        {"rois": rois.to(coordinates(draw, dtype))},
        {"spatial_scale": scale, "output_dim": output_dim, "group_size": group, "pooled_size": pooled},
        {"input": draw(layouts().filter(lambda x: x != "expanded"))},
    )


@st.composite
def roi_pool_calls(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Call:
    dtype, random, scale = draw(st.sampled_from(dtypes)), draw(seeds()), draw(SCALES)
    pooled, channels = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 16, 35]))
    features = draw(maps(random, channels, dtype, distinct=True))
    # Integer cells, to which corners less than half a cell away are rounded.
    cells = regions(random, draw(st.integers(1, 8)), features, 1.0, pooled)
    rois = cells.clone()
    rois[:, 1:] = (cells[:, 1:] + random.integers(-7, 7, len(cells), 4) / 16) / scale
    return Call(
        {"input": features},
        {"rois": rois.to(coordinates(draw, dtype))},
        {"spatial_scale": scale, "pooled_size": pooled},
        {"input": draw(layouts().filter(lambda x: x != "expanded"))},
    )


CALLS = {
    "deform_conv2d": conv_calls,
    "deform_psroi_pool": deform_psroi_calls,
    "psroi_pool": psroi_calls,
    "roi_pool": roi_pool_calls,
}


@st.composite
def suppressions(draw: st.DrawFn) -> dict[str, Any]:
    """Draws arguments of nms, with integer corners and thresholds in sixteenths, so that all dtypes agree."""
    random, dtypes = draw(seeds()), st.sampled_from(DTYPES)
    count, extent = draw(st.integers(0, 300)), draw(st.sampled_from([8, 30, 100]))
    corners = random.integers(0, extent, count, 2)
    boxes = torch.cat([corners, corners + random.integers(0, 20, count, 2)], 1)
    scores = random.integers(-8, 8, count) / 8 if draw(st.booleans()) else random.normal(count)
    scores = scores.to(draw(dtypes))
    if draw(st.booleans()) and count:
        scores[random.integers(0, count - 1, max(1, count // 9)).long()] = float("nan")
    layout = LAYOUTS[draw(layouts().filter(lambda x: x != "expanded"))] if count else lambda x: x
    return {
        "boxes": layout(boxes.to(draw(dtypes))),
        "scores": layout(scores),
        "labels": random.integers(-2, 3, count).long() if draw(st.booleans()) else None,
        "iou_threshold": draw(st.integers(0, 16)) / 16,
        "max_keep": draw(st.one_of(st.none(), st.integers(1, 50))),
    }


def gradients_of(function: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the output, and the gradients of its sum."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]
