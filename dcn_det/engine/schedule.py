"""Learning rate as a pure function of the iteration, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Factor = Callable[[int], float]
"""Maps an iteration in [0, length) to the factor on the base learning rate."""

LONGEST_WARMUP = 0.5
"""Maximum fraction of a run that a warm-up may take."""
SHORTENED_WARMUP = 0.1
"""Fraction of the run that a warm-up takes if it would be longer than that."""


def step(unit: float, drops: Sequence[float], gamma: float) -> Factor:
    """Multiplies the learning rate by ``gamma`` at each drop.

    Args:
        unit: iterations per unit of ``drops``: the length of the run, the length of an epoch, or 1.
        drops: positions in these units; the paper drops once, at 2/3 of the run.
        gamma: factor per drop.
    """
    points = sorted(round(drop * unit) for drop in drops)
    return lambda iteration: gamma ** sum(iteration >= point for point in points)


def cosine(length: int, final: float) -> Factor:
    """Decays from 1 to ``final`` along a half cosine over ``length`` iterations."""
    return lambda iteration: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(iteration / length, 1.0)))


def warmup_length(iterations: int, length: int) -> int:
    """Returns the effective length of a warm-up of ``iterations`` in a run of ``length`` iterations.

    A warm-up of more than half of the run was chosen for a longer run: most of the training would have a fraction of
    the learning rate. It is shortened to a tenth of the run, at least one iteration.
    """
    if iterations <= LONGEST_WARMUP * length:
        return iterations
    return min(iterations, max(1, round(SHORTENED_WARMUP * length)))


def with_warmup(main: Factor, kind: str, iterations: int, factor: float) -> Factor:
    """Adds a warm-up at the start of ``main``.

    Args:
        main: the schedule; its iterations include the warm-up.
        kind: ``constant`` holds ``factor`` (the authors' released code), ``linear`` rises from ``factor`` to 1,
            ``none`` disables the warm-up.
        iterations: length of the warm-up.
        factor: fraction of the scheduled learning rate at the first iteration.
    """
    if kind == "none" or iterations == 0:
        return main

    def warmed(iteration: int) -> float:
        if iteration >= iterations:
            return main(iteration)
        share = factor if kind == "constant" else factor + (1 - factor) * iteration / iterations
        return share * main(iteration)

    return warmed
