"""Output and timing of the benchmarks that compare single ratios with bars."""

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
    """Adds the arguments that :func:`report` reads."""
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    parser.add_argument("--check", action="store_true", help="exit with code 1 if a bar is missed")


def report(args: argparse.Namespace, numbers: dict[str, float], bars: Bars) -> int:
    """Prints and saves measurements.

    Args:
        args: parsed arguments of :func:`add_output`.
        numbers: measured values by name; the name states the unit.
        bars: ratios with their limits.

    Returns:
        The exit code: 1 with ``--check`` if a bar is missed, else 0.
    """
    for name, value in numbers.items():
        print(f"{name:<44} {value:>10.3f}")
    missed = print_bars(bars)
    if args.save:
        write_json(args.save, {"numbers": numbers, "ratios": {name: bar[0] for name, bar in bars.items()}})
    return 1 if args.check and missed else 0


def print_bars(bars: Bars) -> int:
    """Prints one line per bar and returns the number of missed bars."""
    missed = 0
    for name, (ratio, relation, limit) in bars.items():
        good = ratio >= limit if relation == ">=" else ratio <= limit
        missed += not good
        print(f"{name:<44} {ratio:>10.2f}  ({relation} {limit:g}) {'pass' if good else 'MISS'}")
    return missed


def take_turns(works: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, float]:
    """Returns the median seconds per call of each contestant.

    The contestants take turns, so that all run under the same conditions.

    Args:
        works: callables by contestant, each called once before timing.
        rounds: number of turns of each contestant.
        repeats: number of calls per turn.
    """
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
