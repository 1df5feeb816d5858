"""Contestants that do the same job, timed in turns, so that all meet the same disturbances of a busy machine."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

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

    def holds(self, medians: Mapping[str, float]) -> bool:
        return bool(COMPARE[self.relation](self.ratio(medians), self.limit))

    def ratio(self, medians: Mapping[str, float]) -> float:
        return medians[self.of] / medians[self.over]


@dataclass(frozen=True)
class Case:
    """Contestants that do the same job.

    Attributes:
        name: of the job.
        works: name -> a call that does the job once; ``ours`` is among them.
        bars: number of CPU threads -> what has to hold with so many; :data:`ON_GPU` -> what has to hold there.
        flops: multiplications and additions of matrix products in the job; 0 where it has none.
        bytes: the least that the job can read and write; 0 where nobody asks.
    """

    name: str
    works: dict[str, Work]
    bars: Mapping[int, tuple[Bar, ...]] = field(default_factory=dict)
    flops: float = 0
    bytes: float = 0


ON_GPU = 0
"""The number of CPU threads, where a GPU works."""


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


def backward_only(forward: Callable[..., Tensor], leaves: list[Tensor]) -> Work:
    """The gradients of ``leaves``, from a forward pass made once."""
    kept: list[Tensor] = []

    def work() -> None:
        if not kept:
            output = forward()
            kept.extend([output, torch.randn_like(output)])
        torch.autograd.grad(kept[0], leaves, kept[1], retain_graph=True)

    return work


def milliseconds(work: Work, repeats: int, device: str) -> float:
    """One turn: the mean time of some calls, on a GPU by its own clock."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - start) / repeats * 1e3
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(repeats):
        work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / repeats


def measure(works: Mapping[str, Work], rounds: int, seconds: float, device: str = "cpu") -> dict[str, float]:
    """Median milliseconds of each contestant, over turns of about so many seconds."""
    repeats = {}
    for name, work in works.items():
        work()
        repeats[name] = max(1, round(seconds * 1e3 / max(milliseconds(work, 1, device), 1e-3)))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(milliseconds(work, repeats[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_peaks(device: str, rounds: int, seconds: float) -> dict[str, float]:
    """The most this machine gives: FLOP/s of matrix products and bytes/s of copies."""
    size = 1024 if device == "cpu" else 8192
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        median = measure({"product": partial(torch.mm, a, b)}, rounds, seconds, device)["product"]
        peaks[str(dtype).removeprefix("torch.")] = 2 * size**3 / median * 1e3
    source = torch.randn(size * size * (16 if device == "cpu" else 4), device=device)
    target = torch.empty_like(source)
    median = measure({"copy": partial(target.copy_, source)}, rounds, seconds, device)["copy"]
    return peaks | {"copy": 2 * source.nbytes / median * 1e3}
