"""Learning rate as a pure function of the iteration, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Factor = Callable[[int], float]
"""Maps an iteration in [0, length) to the factor on the base learning rate."""


def step(drops: Sequence[int], gamma: float) -> Factor:
    """Multiplies the learning rate by ``gamma`` at each of the iterations ``drops``."""
    return lambda iteration: gamma ** sum(iteration >= drop for drop in drops)


def cosine(length: int, final: float) -> Factor:
    """Decays from 1 to ``final`` along a half cosine over ``length`` iterations."""
    return lambda iteration: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(iteration / length, 1.0)))


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
