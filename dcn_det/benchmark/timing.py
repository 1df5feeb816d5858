"""Timing of contestants that do the same job. They take turns, so that all run under the same conditions."""

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
    """Limit on the ratio of two medians.

    Attributes:
        of, over: names of contestants; the ratio is ``time(of) / time(over)``.
        relation: ``>=`` or ``<=``.
        limit: limit of the ratio.
    """

    of: str
    over: str
    relation: str
    limit: float

    def holds(self, medians: Mapping[str, float]) -> bool:
        """Returns whether the ratio of these medians is within the limit."""
        return bool(COMPARE[self.relation](self.ratio(medians), self.limit))

    def ratio(self, medians: Mapping[str, float]) -> float:
        """Returns ``time(of) / time(over)``."""
        return medians[self.of] / medians[self.over]


@dataclass(frozen=True)
class Case:
    """Contestants that do the same job.

    Attributes:
        name: name of the job.
        works: callables by contestant; each does the job once. ``ours`` is one of them.
        bars: bars by number of CPU threads, or by :data:`ON_GPU` for a GPU.
        flops: multiplications and additions in the matrix products of the job; 0 if it has none.
        bytes: minimum number of bytes that the job reads and writes; 0 if unknown.
    """

    name: str
    works: dict[str, Work]
    bars: Mapping[int, tuple[Bar, ...]] = field(default_factory=dict)
    flops: float = 0
    bytes: float = 0


ON_GPU = 0
"""Stands for the number of CPU threads when a GPU does the job."""


def faster(than: str, limit: float) -> Bar:
    """Returns the bar that ours takes at most ``1 / limit`` of the time of ``than``."""
    return Bar(than, "ours", ">=", limit)


def at_most(over: str, limit: float) -> Bar:
    """Returns the bar that ours takes at most ``limit`` times the time of ``over``."""
    return Bar("ours", over, "<=", limit)


def with_backward(forward: Callable[..., Tensor], leaves: list[Tensor]) -> Work:
    """Returns a callable that runs ``forward`` and computes the gradients of ``leaves``."""
    grad: list[Tensor] = []

    def work() -> None:
        output = forward()
        if not grad:  # created by the warm-up, so that skipped cases cost nothing
            grad.append(torch.randn_like(output))
        torch.autograd.grad(output, leaves, grad[0])

    return work


def backward_only(forward: Callable[..., Tensor], leaves: list[Tensor]) -> Work:
    """Returns a callable that computes the gradients of ``leaves``; ``forward`` runs only in the first call."""
    kept: list[Tensor] = []

    def work() -> None:
        if not kept:
            output = forward()
            kept.extend([output, torch.randn_like(output)])
        torch.autograd.grad(kept[0], leaves, kept[1], retain_graph=True)

    return work


def captured(work: Work) -> Work:
    """Returns a callable that replays ``work`` as a CUDA graph, without its time on the CPU.

    The first call runs ``work`` a few times and captures it.
    """
    graphs: list[torch.cuda.CUDAGraph] = []

    def replay() -> None:
        if not graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # what is created once must not become part of the graph
                for _ in range(3):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[0]):
                work()
        graphs[0].replay()

    return replay


def milliseconds(work: Work, repeats: int, device: str) -> float:
    """Returns the mean milliseconds of ``repeats`` calls, measured with CUDA events on a GPU."""
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
    """Returns the median milliseconds per call of each contestant.

    Args:
        works: callables by contestant.
        rounds: number of turns of each contestant.
        seconds: approximate duration of a turn.
        device: ``cpu`` or ``cuda``.
    """
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
    """Returns the peak rates of a device.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: number of turns.
        seconds: approximate duration of a turn.

    Returns:
        FLOP/s of matrix products under ``float32`` and ``bfloat16``, and bytes/s of copies under ``copy``.
    """
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
