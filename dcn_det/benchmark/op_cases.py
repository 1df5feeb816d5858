"""Benchmark cases of the operators, at the sizes of a 600x1000 image and a feature map of stride 16.

Every function takes a device and yields cases. Cases have one image on a CPU; convolutions have one and eight on a
GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import conv2d

import dcn_det.ops
from dcn_det.benchmark.timing import (
    ON_GPU,
    Bar,
    Case,
    Work,
    at_most,
    backward_only,
    captured,
    faster,
    with_backward,
)
from dcn_det.ops import batched_nms, deform_conv2d, deform_psroi_pool, nms, psroi_pool, roi_pool

CHANNELS = 512
SCALE = 1 / 16
Forward = Callable[..., Tensor]


def conv_cases(device: str) -> Iterator[Case]:
    """Yields convolutions as in res5: 512 -> 512 channels, 3x3, dilation 2, offsets N(0, 2 cells)."""
    for batch in (1,) if device == "cpu" else (1, 8):
        for size in ((38, 63), (50, 84)):
            yield from _convolutions(device, batch, size, offset_groups=4)
    if device == "cpu":
        yield from _convolutions(device, 1, (38, 63), offset_groups=1)


def graph_cases(device: str) -> Iterator[Case]:
    """Yields the convolutions of one image as CUDA graphs: small kernels wait for the CPU otherwise."""
    if device == "cpu":
        return
    bars = {False: (faster("torchvision", 1.3),), True: (faster("torchvision", 2),)}
    for size in ((38, 63), (50, 84)):
        for case in _convolutions(device, 1, size, offset_groups=4):
            works = {name: captured(work) for name, work in case.works.items()}
            on_gpu = {ON_GPU: bars["bfloat16" in case.name]}
            yield replace(case, name=f"{case.name}, CUDA graph", works=works, bars=on_gpu)


def _convolutions(device: str, batch: int, size: tuple[int, int], offset_groups: int) -> Iterator[Case]:
    x, offset, weight = conv_arguments(batch, size, offset_groups, device)
    leaves = {"ours": [x, offset, weight], "torchvision": [x, offset, weight], "plain": [x, weight]}
    forwards: dict[str, Forward] = {
        "ours": partial(deform_conv2d, x, offset, weight, None, 1, 2, 2),
        "torchvision": partial(torchvision.ops.deform_conv2d, x, offset, weight, None, 1, 2, 2),
        "plain": partial(conv2d, x, weight, None, 1, 2, 2),
    }
    both = {key: with_backward(forward, leaves[key]) for key, forward in forwards.items()}
    flops = 2.0 * batch * size[0] * size[1] * weight.numel()
    name = f"deform_conv2d {size[0]}x{size[1]}" + (f", batch {batch}" if device != "cpu" else "")
    has_bars = offset_groups == 4
    if not has_bars:
        name += ", 1 offset group"
    on_gpu = (faster("torchvision", 2),) if batch > 1 else ()
    forward_bars = {2: (faster("torchvision", 3.4), at_most("plain", 1.25)), ON_GPU: on_gpu}
    both_bars = {
        1: (faster("torchvision", 3.8),),
        2: (faster("torchvision", 6), at_most("plain", 1.35)),
        ON_GPU: on_gpu,
    }
    yield Case(f"{name}, forward", forwards, forward_bars if has_bars else {}, flops)
    yield Case(f"{name}, forward+backward", both, both_bars if has_bars else {}, 3 * flops)
    if has_bars:
        yield from _bfloat16_convolutions(f"{name}, bfloat16", device, (x, offset, weight), flops)


def conv_arguments(batch: int, size: tuple[int, int], offset_groups: int, device: str) -> list[Tensor]:
    """Returns input, offset and weight, all of which require gradients."""
    x = torch.randn(batch, CHANNELS, *size, device=device).to(memory_format=torch.channels_last)
    offset = 2 * torch.randn(batch, 18 * offset_groups, *size, device=device)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device) / 70
    return [tensor.requires_grad_() for tensor in (x, offset, weight)]


def _bfloat16_convolutions(name: str, device: str, arguments: tuple[Tensor, ...], flops: float) -> Iterator[Case]:
    """Compares with our float32; on a GPU also with torchvision under autocast and the plain convolution."""
    x, offset, weight = arguments
    x16, weight16 = (tensor.detach().bfloat16().requires_grad_() for tensor in (x, weight))
    forwards: dict[str, Forward] = {
        "ours": partial(deform_conv2d, x16, offset, weight16, None, 1, 2, 2),
        "float32": partial(deform_conv2d, x, offset, weight, None, 1, 2, 2),
    }
    leaves = {"ours": [x16, offset, weight16], "float32": [x, offset, weight]}
    forward_bars: dict[int, tuple[Bar, ...]] = {2: (at_most("float32", 0.65),)}
    both_bars: dict[int, tuple[Bar, ...]] = {}
    if device != "cpu":

        def under_autocast() -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                return torchvision.ops.deform_conv2d(x, offset, weight, None, 1, 2, 2)

        forwards |= {"torchvision": under_autocast, "plain": partial(conv2d, x16, weight16, None, 1, 2, 2)}
        leaves |= {"torchvision": [x, offset, weight], "plain": [x16, weight16]}
        forward_bars[ON_GPU] = both_bars[ON_GPU] = (faster("torchvision", 4),) if len(x) > 1 else ()
    both = {key: with_backward(forward, leaves[key]) for key, forward in forwards.items()}
    yield Case(f"{name}, forward", forwards, forward_bars, flops)
    yield Case(f"{name}, forward+backward", both, both_bars, 3 * flops)


def random_rois(count: int, device: str) -> Tensor:
    """Returns (count, 5) rows of batch index 0 and inclusive corners, 185x163 pixels on average."""
    size = torch.rand(count, 2) * torch.tensor([320.0, 280.0]) + torch.tensor([25.0, 23.0])
    start = torch.rand(count, 2) * (torch.tensor([1000.0, 600.0]) - size).clamp(min=1)
    return torch.cat([torch.zeros(count, 1), start, start + size], dim=1).round().to(device)


def _pool_cases(
    name: str,
    ours: Forward,
    theirs: Forward,
    leaves: tuple[list[Tensor], list[Tensor]],
    limits: dict[str, float],
    gpu_limits: dict[str, float] | None = None,
) -> Iterator[Case]:
    """Yields forward, backward and both, with bars for those named in ``limits``."""
    forwards = {"ours": ours, "torchvision": theirs}
    kinds: dict[str, dict[str, Work]] = {"forward": dict(forwards)}
    for kind, make in (("backward", backward_only), ("forward+backward", with_backward)):
        kinds[kind] = {key: make(forwards[key], own) for key, own in zip(forwards, leaves)}
    moved = sum(leaf.nbytes for leaf in leaves[0])
    for kind, works in kinds.items():
        bars = {}
        if kind in limits:
            bars[2] = (faster("torchvision", limits[kind]),)
        if kind in (gpu_limits or {}):
            bars[ON_GPU] = (faster("torchvision", (gpu_limits or {})[kind]),)
        yield Case(f"{name}, {kind}", works, bars, bytes=moved if kind == "forward" else 2 * moved)


def pool_cases(device: str) -> Iterator[Case]:
    """Yields pooling of 300 RoIs: 7x7 bins, 4x4 samples, 38x63 map."""
    rois = random_rois(300, device)
    deformable = partial(
        deform_psroi_pool, spatial_scale=SCALE, pooled_size=7, part_size=7, samples_per_bin=4, offset_std=0.1
    )
    scores = torch.randn(1, 81 * 49, 38, 63, device=device, requires_grad=True)
    per_class = torch.randn(300, 2 * 81, 7, 7, device=device, requires_grad=True)
    shared = torch.randn(300, 2, 7, 7, device=device, requires_grad=True)
    ps_roi_align = partial(torchvision.ops.ps_roi_align, scores, rois, 7, SCALE, 4)
    for label, offset, limits, gpu_limits in (
        ("per class", per_class, {"forward": 12.0, "forward+backward": 10.0}, PER_CLASS_ON_GPU),
        ("shared", shared, {"forward": 60.0}, None),
    ):
        ours = partial(deformable, scores, rois, offset, output_dim=81, group_size=7)
        leaves = ([scores, offset], [scores])
        yield from _pool_cases(f"deform_psroi_pool 81x49 {label}", ours, ps_roi_align, leaves, limits, gpu_limits)

    features = _features(device)
    ours = partial(deformable, features, rois, shared, output_dim=256, group_size=1)
    theirs = partial(torchvision.ops.roi_align, features, rois, 7, SCALE, 4)
    limits = {"forward": 40.0, "forward+backward": 40.0}
    yield from _pool_cases("deform_psroi_pool 256 channels", ours, theirs, ([features, shared], [features]), limits)

    ours = partial(psroi_pool, scores, rois, spatial_scale=SCALE, output_dim=81, group_size=7, pooled_size=7)
    theirs = partial(torchvision.ops.ps_roi_pool, scores, rois, 7, SCALE)
    yield from _pool_cases("psroi_pool 81x49", ours, theirs, ([scores], [scores]), PLAIN_POOL)
    ours = partial(roi_pool, features, rois, spatial_scale=SCALE, pooled_size=7)
    theirs = partial(torchvision.ops.roi_pool, features, rois, 7, SCALE)
    yield from _pool_cases("roi_pool 256 channels", ours, theirs, ([features], [features]), PLAIN_POOL)


PLAIN_POOL = {"forward": 4.0, "backward": 4.0}
PER_CLASS_ON_GPU = {"forward": 5.0, "forward+backward": 5.0}


def _features(device: str) -> Tensor:
    return torch.randn(1, 256, 38, 63, device=device).to(memory_format=torch.channels_last).requires_grad_()


def align_cases(device: str) -> Iterator[Case]:
    """Yields RoIAlign of the same regions, with two samples along each axis of a bin."""
    if not hasattr(dcn_det.ops, "roi_align"):
        return
    rois, features = random_rois(300, device), _features(device)
    ours = partial(dcn_det.ops.roi_align, features, rois, spatial_scale=SCALE, pooled_size=7, sampling_ratio=2)
    theirs = partial(torchvision.ops.roi_align, features, rois, 7, SCALE, 2)
    yield from _pool_cases("roi_align 256 channels", ours, theirs, ([features], [features]), PLAIN_POOL)


def nms_cases(device: str) -> Iterator[Case]:
    """Yields suppression of boxes that hardly overlap, so that all are kept, and of 300 boxes in each of 80 classes."""
    for count, limit, gpu_bars in ((6000, 20.0, ()), (12000, 35.0, (faster("torchvision", 2),))):
        corners = torch.rand(count, 2, device=device) * 10_000
        boxes, scores = torch.cat([corners, corners + 30], dim=1), torch.rand(count, device=device)
        works: dict[str, Work] = {
            "ours": partial(nms, boxes, scores, 0.7),
            "torchvision": partial(torchvision.ops.nms, boxes, scores, 0.7),
        }
        yield Case(f"nms {count}", works, {2: (faster("torchvision", limit),), ON_GPU: gpu_bars})
    corners = torch.rand(80 * 300, 2, device=device) * 900
    boxes, scores = torch.cat([corners, corners + 100], dim=1), torch.rand(80 * 300, device=device)
    labels = torch.arange(80, device=device).repeat_interleave(300)
    works = {
        "ours": partial(batched_nms, boxes, scores, labels, 0.3),
        "torchvision": partial(torchvision.ops.batched_nms, boxes, scores, labels, 0.3),
    }
    yield Case("batched_nms 80 x 300", works, {2: (faster("torchvision", 12),)})


GROUPS: tuple[Callable[[str], Iterator[Case]], ...] = (
    conv_cases,
    pool_cases,
    align_cases,
    nms_cases,
    graph_cases,
)
