"""One, two and four threads give the same bits, forward and backward, on maps with work for all of them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import dcn_det.ops
from dcn_det.ops import batched_nms, deform_conv2d, library, nms
from tests.ops.pooling_tiers import random, random_rois

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZE = (24, 31)
Layout = torch.memory_format


def convolution(channels: int, out: int, groups: int, offset_groups: int, mask: bool, layout: Layout) -> tuple:
    leaves = {
        "input": random(2, channels, *SIZE).contiguous(memory_format=layout),
        "offset": random(2, 18 * offset_groups, *SIZE, seed=1) * 2,
        "weight": random(out, channels // groups, 3, 3, seed=2),
        "bias": random(out, seed=4),
    }
    if mask:
        leaves["mask"] = random(2, 9 * offset_groups, *SIZE, seed=3).sigmoid()
    return leaves, lambda **leaves: deform_conv2d(**leaves, padding=1)


def pool(name: str, channels: int, layout: Layout, classes: int = 0, **options: float) -> tuple:
    leaves = {"input": random(2, channels, *SIZE).contiguous(memory_format=layout)}
    if classes:
        leaves["offset"] = random(150, 2 * classes, 7, 7, seed=1)
    rois = random_rois(150, 2, SIZE[0] * 16, SIZE[1] * 16)

    def run(input: Tensor, **offset: Tensor) -> Tensor:
        regions = rois.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
        return getattr(dcn_det.ops, name)(input, regions, **offset, spatial_scale=1 / 16, pooled_size=7, **options)

    return leaves, run


def deformable(**sizes: int) -> dict:
    return {"part_size": 7, "samples_per_bin": 4, "offset_std": 0.1, **sizes}


FIRST, LAST = torch.contiguous_format, torch.channels_last
CASES: dict[str, Callable[[], tuple]] = {
    "deform_conv2d": lambda: convolution(96, 24, 1, 4, False, LAST),
    "deform_conv2d contiguous": lambda: convolution(96, 24, 1, 1, True, FIRST),
    "deform_conv2d groups": lambda: convolution(90, 72, 3, 2, True, LAST),
    "deform_conv2d wide": lambda: convolution(256, 256, 1, 4, False, LAST),
    "deform_psroi_pool classes": lambda: pool(
        "deform_psroi_pool", 147, FIRST, 3, **deformable(output_dim=3, group_size=7)
    ),
    "deform_psroi_pool shared": lambda: pool(
        "deform_psroi_pool", 441, FIRST, 1, **deformable(output_dim=9, group_size=7)
    ),
    "deform_psroi_pool none": lambda: pool(
        "deform_psroi_pool", 441, FIRST, 0, **deformable(output_dim=9, group_size=7)
    ),
    "deform_psroi_pool group 1": lambda: pool(
        "deform_psroi_pool", 200, LAST, 1, **deformable(output_dim=200, group_size=1)
    ),
    "psroi_pool": lambda: pool("psroi_pool", 441, FIRST, output_dim=9, group_size=7),
    "roi_align": lambda: pool("roi_align", 100, FIRST),
    "roi_align channels last": lambda: pool("roi_align", 100, LAST),
    "roi_pool": lambda: pool("roi_pool", 100, FIRST),
    "roi_pool channels last": lambda: pool("roi_pool", 100, LAST),
}


def for_each_thread_count() -> Iterator[int]:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            yield threads
    finally:
        torch.set_num_threads(before)


def assert_compiled(name: str) -> None:
    if library.tier(name, "cpu") != "cpu":
        pytest.skip(f"no compiled CPU kernel: {library.status()['cpu'].reason}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case, dtype):
    assert_compiled(case.split()[0])
    leaves, run = CASES[case]()
    leaves = {name: leaf.to(dtype) for name, leaf in leaves.items()}
    results = []
    for _ in for_each_thread_count():
        tensors = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        output = run(**tensors)
        grad = random(*output.shape, seed=9).to(output)
        results.append([output.detach(), *torch.autograd.grad(output, list(tensors.values()), grad)])
    assert all(value.any() for value in results[0])
    for result in results[1:]:
        for name, found, expected in zip(["output", *leaves], result, results[0]):
            assert torch.equal(found, expected), name


@pytest.mark.parametrize("labeled", [False, True], ids=["all boxes", "classes"])
def test_same_boxes(labeled):
    assert_compiled("nms")
    corners = random(6000, 2, seed=1) * 200
    boxes = torch.cat([corners, corners + 20 + random(6000, 2, seed=2).abs() * 30], 1).float()
    scores = (random(6000, seed=3) * 50).round() / 50
    labels = torch.arange(6000) % 37
    results = []
    for _ in for_each_thread_count():
        kept = batched_nms(boxes, scores, labels, 0.3) if labeled else nms(boxes, scores, 0.3)
        results.append(kept)
    assert 100 < len(results[0]) < 6000
    assert all(torch.equal(kept, results[0]) for kept in results)
