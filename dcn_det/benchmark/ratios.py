"""What benchmarks of one ratio after another share: their output, and contestants that take turns."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcn_det.files import write_json

Bars = dict[str, tuple[float, str, float]]
"""Ratio, relation and limit by name."""


def add_output(parser: argparse.ArgumentParser) -> None:
    """The arguments that :func:`report` reads."""
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")


def report(args: argparse.Namespace, numbers: dict[str, float], bars: Bars) -> int:
    """Prints and saves what was measured; returns the exit code."""
    for name, value in numbers.items():
        print(f"{name:<44} {value:>10.3f}")
    missed = print_bars(bars)
    if args.save:
        write_json(args.save, {"numbers": numbers, "ratios": {name: bar[0] for name, bar in bars.items()}})
    return 1 if args.check and missed else 0


def print_bars(bars: Bars) -> int:
    """A line for each; returns how many are missed."""
    missed = 0
    for name, (ratio, relation, limit) in bars.items():
        good = ratio >= limit if relation == ">=" else ratio <= limit
        missed += not good
        print(f"{name:<44} {ratio:>10.2f}  ({relation} {limit:g}) {'pass' if good else 'MISS'}")
    return missed


def take_turns(works: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, so that all meet the same disturbances."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}
