"""Learning rate as a pure function of the iteration, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Factor = Callable[[int], float]
"""Maps an iteration in [0, length) to the factor on the base learning rate."""


def step(unit: float, drops: Sequence[float], gamma: float) -> Factor:
    """Multiplies by ``gamma`` at each of ``drops``, given in units of ``unit`` iterations: the run's length for shares
    of it (the paper drops once, at 2/3), the iterations of an epoch, or 1."""
    points = sorted(round(drop * unit) for drop in drops)
    return lambda iteration: gamma ** sum(iteration >= point for point in points)


def cosine(length: int, final: float) -> Factor:
    """Falls from 1 to ``final`` along half a cosine over ``length`` iterations."""
    return lambda iteration: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(iteration / length, 1.0)))


def with_warmup(main: Factor, kind: str, iterations: int, factor: float) -> Factor:
    """Puts a warm-up before ``main``.

    Args:
        main: the schedule that follows; it keeps counting from iteration 0.
        kind: ``constant`` holds ``factor`` (the authors' released code), ``linear`` rises from ``factor`` to 1,
            ``none`` changes nothing.
        iterations: length of the warm-up.
        factor: share of the base learning rate at the first iteration.
    """
    if kind == "none" or iterations == 0:
        return main

    def warmed(iteration: int) -> float:
        if iteration >= iterations:
            return main(iteration)
        share = factor if kind == "constant" else factor + (1 - factor) * iteration / iterations
        return share * main(iteration)

    return warmed
