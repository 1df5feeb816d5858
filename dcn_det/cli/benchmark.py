"""``tools/benchmark.py ops``: our operators beside torchvision's and the plain convolution, in one process."""

from __future__ import annotations

import argparse
import operator
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from dcn_det.cli import benchmark_eval
from dcn_det.evaluation.results import write_json
from dcn_det.ops import batched_nms, deform_conv2d, deform_psroi_pool, nms, psroi_pool, roi_pool

Work = Callable[[], Any]
COMPARE = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Bar:
    """A ratio of medians that has to hold.

    Attributes:
        of, over: names of contestants; the ratio is ``time(of) / time(over)``.
        relation: ``>=`` or ``<=``.
        limit: what the ratio is compared with.
    """

    of: str
    over: str
    relation: str
    limit: float

    def holds(self, medians: dict[str, float]) -> bool:
        return bool(COMPARE[self.relation](self.ratio(medians), self.limit))

    def ratio(self, medians: dict[str, float]) -> float:
        return medians[self.of] / medians[self.over]


@dataclass(frozen=True)
class Case:
    """Contestants that do the same job.

    Attributes:
        name: of the job.
        threads: threads every contestant gets.
        works: name -> a call that does the job once; ``ours`` is among them.
        bars: what has to hold.
    """

    name: str
    threads: int
    works: dict[str, Work]
    bars: tuple[Bar, ...]


def faster(than: str, limit: float) -> Bar:
    """Ours takes at most ``1 / limit`` of the time of ``than``."""
    return Bar(than, "ours", ">=", limit)


def at_most(over: str, limit: float) -> Bar:
    """Ours takes at most ``limit`` times the time of ``over``."""
    return Bar("ours", over, "<=", limit)


def with_backward(forward: Callable[..., Tensor], leaves: list[Tensor]) -> Work:
    """Forward and the gradients of ``leaves``."""
    grad: list[Tensor] = []

    def work() -> None:
        output = forward()
        if not grad:  # made by the warm-up, so that a case that is left out costs nothing
            grad.append(torch.randn_like(output))
        torch.autograd.grad(output, leaves, grad[0])

    return work


def conv_cases() -> Iterator[Case]:
    """512 -> 512 channels, 3x3, dilation 2, 4 offset groups, offsets N(0, 2 cells), as in res5."""
    for height, width in ((38, 63), (50, 84)):
        x = torch.randn(1, 512, height, width).to(memory_format=torch.channels_last).requires_grad_()
        offset = (2 * torch.randn(1, 72, height, width)).requires_grad_()
        weight = (torch.randn(512, 512, 3, 3) / 70).requires_grad_()
        forwards: dict[str, Callable[..., Tensor]] = {
            "ours": partial(deform_conv2d, x, offset, weight, None, 1, 2, 2),
            "torchvision": partial(torchvision.ops.deform_conv2d, x, offset, weight, None, 1, 2, 2),
            "plain": partial(torch.nn.functional.conv2d, x, weight, None, 1, 2, 2),
        }
        leaves = {"ours": [x, offset, weight], "torchvision": [x, offset, weight], "plain": [x, weight]}
        name = f"deform_conv2d {height}x{width}"
        yield Case(f"{name} forward", 2, forwards, (faster("torchvision", 3.4), at_most("plain", 1.25)))
        both = {key: with_backward(forward, leaves[key]) for key, forward in forwards.items()}
        yield Case(f"{name} forward+backward", 2, both, (faster("torchvision", 6), at_most("plain", 1.35)))
        yield Case(f"{name} forward+backward", 1, both, (faster("torchvision", 3.8),))
        x16, offset, weight16 = x.detach().bfloat16(), offset.detach(), weight.detach().bfloat16()
        bf16: dict[str, Work] = {
            "ours": partial(deform_conv2d, x16, offset, weight16, None, 1, 2, 2),
            "float32": forwards["ours"],
        }
        yield Case(f"{name} forward bfloat16", 2, bf16, (at_most("float32", 0.65),))


def random_rois(count: int, width: int, height: int) -> Tensor:
    """(count, 5) of batch index 0 and inclusive corners, about 185x163 pixels on average."""
    size = torch.rand(count, 2) * torch.tensor([320.0, 280.0]) + torch.tensor([25.0, 23.0])
    start = torch.rand(count, 2) * (torch.tensor([width, height]) - size).clamp(min=1)
    return torch.cat([torch.zeros(count, 1), start, start + size], dim=1).round()


def pool_cases() -> Iterator[Case]:
    """300 RoIs, 7x7 bins, 4x4 samples, 38x63 map of a 600x1000 image."""
    rois = random_rois(300, 1000, 600)
    deformable = partial(
        deform_psroi_pool, spatial_scale=1 / 16, pooled_size=7, part_size=7, sample_per_part=4, trans_std=0.1
    )
    scores = torch.randn(1, 81 * 49, 38, 63, requires_grad=True)
    per_class = torch.randn(300, 2 * 81, 7, 7, requires_grad=True)
    shared = torch.randn(300, 2, 7, 7, requires_grad=True)

    def position_sensitive(trans: Tensor) -> Tensor:
        return deformable(scores, rois, trans, output_dim=81, group_size=7)

    def aligned() -> Tensor:
        return torchvision.ops.ps_roi_align(scores, rois, 7, 1 / 16, 4)

    name = "deform_psroi_pool 81x49"
    works: dict[str, Callable[..., Tensor]] = {"ours": lambda: position_sensitive(per_class), "torchvision": aligned}
    yield Case(f"{name} per class forward", 2, works, (faster("torchvision", 12),))
    both = {
        "ours": with_backward(works["ours"], [scores, per_class]),
        "torchvision": with_backward(aligned, [scores]),
    }
    yield Case(f"{name} per class forward+backward", 2, both, (faster("torchvision", 10),))
    works = {"ours": lambda: position_sensitive(shared), "torchvision": aligned}
    yield Case(f"{name} shared forward", 2, works, (faster("torchvision", 60),))

    features = torch.randn(1, 256, 38, 63).to(memory_format=torch.channels_last).requires_grad_()
    works = {
        "ours": lambda: deformable(features, rois, shared, output_dim=256, group_size=1),
        "torchvision": lambda: torchvision.ops.roi_align(features, rois, 7, 1 / 16, 4),
    }
    yield Case("deform_psroi_pool 256 channels forward", 2, works, (faster("torchvision", 40),))
    both = {
        "ours": with_backward(works["ours"], [features, shared]),
        "torchvision": with_backward(works["torchvision"], [features]),
    }
    yield Case("deform_psroi_pool 256 channels forward+backward", 2, both, (faster("torchvision", 40),))

    plain = {
        "psroi_pool 81x49": (
            scores,
            lambda: psroi_pool(scores, rois, spatial_scale=1 / 16, output_dim=81, group_size=7, pooled_size=7),
            lambda: torchvision.ops.ps_roi_pool(scores, rois, 7, 1 / 16),
        ),
        "roi_pool 256 channels": (
            features,
            lambda: roi_pool(features, rois, spatial_scale=1 / 16, pooled_size=7),
            lambda: torchvision.ops.roi_pool(features, rois, 7, 1 / 16),
        ),
    }
    for name, (leaf, ours, theirs) in plain.items():
        yield Case(f"{name} forward", 2, {"ours": ours, "torchvision": theirs}, (faster("torchvision", 4),))
        both = {"ours": with_backward(ours, [leaf]), "torchvision": with_backward(theirs, [leaf])}
        yield Case(f"{name} forward+backward", 2, both, (faster("torchvision", 4),))


def nms_cases() -> Iterator[Case]:
    """Boxes that hardly overlap, so that all are kept, and 300 boxes of each of 80 classes."""
    for count, limit in ((6000, 20), (12000, 35)):
        corners = torch.rand(count, 2) * 10_000
        boxes, scores = torch.cat([corners, corners + 30], dim=1), torch.rand(count)
        works: dict[str, Work] = {
            "ours": partial(nms, boxes, scores, 0.7),
            "torchvision": partial(torchvision.ops.nms, boxes, scores, 0.7),
        }
        yield Case(f"nms {count}", 2, works, (faster("torchvision", limit),))
    corners = torch.rand(80 * 300, 2) * 900
    boxes, scores = torch.cat([corners, corners + 100], dim=1), torch.rand(80 * 300)
    labels = torch.arange(80).repeat_interleave(300)
    works = {
        "ours": partial(batched_nms, boxes, scores, labels, 0.3),
        "torchvision": partial(torchvision.ops.batched_nms, boxes, scores, labels, 0.3),
    }
    yield Case("batched_nms 80 x 300", 2, works, (faster("torchvision", 12),))


def measure(case: Case, rounds: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of each contestant; they take turns, so that all meet the same disturbances."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        return _take_turns(case, rounds, seconds)
    finally:
        torch.set_num_threads(before)


def _take_turns(case: Case, rounds: int, seconds: float) -> dict[str, float]:
    repeats = {}
    for name, work in case.works.items():
        work()
        start = time.perf_counter()
        work()
        repeats[name] = max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in case.works}
    for _ in range(rounds):
        for name, work in case.works.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            times[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="benchmark", description="Measures ratios of times, side by side.")
    result.add_argument(
        "what",
        choices=["ops", "eval", "postprocess"],
        help="ops: the operators on the CPU; eval and postprocess have a --help of their own",
    )
    result.add_argument("--only", default="", help="only cases whose name holds this")
    result.add_argument("--rounds", type=int, default=7, help="turns of each contestant (default %(default)s)")
    result.add_argument("--seconds", type=float, default=0.2, help="length of a turn (default %(default)s)")
    result.add_argument("--save", type=Path, help="write the numbers as JSON")
    result.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("eval", "postprocess"):
        return benchmark_eval.main(argv)
    args = parser().parse_args(argv)
    torch.manual_seed(0)
    records, missed = [], 0
    print(f"{'case':<50} {'thr':>3} {'ours ms':>8}  ratios (bar)")
    for cases in (conv_cases, pool_cases, nms_cases):
        for case in cases():
            if args.only not in case.name:
                continue
            medians = measure(case, args.rounds, args.seconds)
            parts = []
            for bar in case.bars:
                good = bar.holds(medians)
                missed += not good
                label = f"{bar.of} / {bar.over} {bar.ratio(medians):.2f} ({bar.relation} {bar.limit:g})"
                parts.append(f"{label} {'pass' if good else 'MISS'}")
            print(f"{case.name:<50} {case.threads:>3} {medians['ours']:>8.2f}  {';  '.join(parts)}", flush=True)
            records.append({"case": case.name, "threads": case.threads, "median_ms": medians})
    print(f"{missed} bars missed")
    if args.save:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        write_json(args.save, {"machine": platform.processor(), **versions, "cases": records})
    return 1 if args.check and missed else 0
