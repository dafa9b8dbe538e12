"""Learning rates: their course over a run, and a search for a good one. Trains nothing that is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

from persona_lab.types import FitSettings

SEARCH_STEPS = 24
SEARCH_RANGE = (0.03, 30.0)
"""Of the strategy's own rate: from far too low to far too high."""
SMOOTHING = 0.7
ABANDON = 1.5
"""The search ends where the smoothed loss is this many times its lowest."""
SAFETY = 8.0
"""The rate taken is this much below the one with the lowest loss: there the next steps already diverge."""


def learning_rate(step: int, total: int, settings: FitSettings, highest: float | None = None) -> float:
    """The rate of step `step` (from 0): a linear rise over the warm-up, then as the schedule says.

    Args:
        highest: instead of `settings.learning_rate`.
    """
    peak = settings.learning_rate if highest is None else highest
    warmup = round(settings.warmup * total)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if settings.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak if settings.schedule == "constant" else peak * (1 - done)


def search_rate(start: float, step: Callable[[int, float], float]) -> tuple[float, list[tuple[float, float]]]:
    """A learning rate by a range test (Smith 2017, https://arxiv.org/abs/1506.01186).

    Args:
        start: the rate that the search is laid around.
        step: trains one step at a rate and gives its loss; called with (number from 0, rate). The caller puts
            the weights back afterwards.

    Returns:
        The rate, and (rate, smoothed loss) of each step taken. `start` itself where nothing improved.
    """
    low, high = start * SEARCH_RANGE[0], start * SEARCH_RANGE[1]
    curve: list[tuple[float, float]] = []
    smooth = first = math.nan
    for number in range(SEARCH_STEPS):
        rate = low * (high / low) ** (number / (SEARCH_STEPS - 1))
        loss = step(number, rate)
        smooth = loss if not curve else SMOOTHING * smooth + (1 - SMOOTHING) * loss
        first = smooth if not curve else first
        if not math.isfinite(smooth) or (curve and smooth > ABANDON * min(value for _, value in curve)):
            break
        curve.append((rate, smooth))
    best = min(curve, key=lambda pair: pair[1], default=(start, math.inf))
    if not curve or best[1] >= first:
        return start, curve
    return max(best[0] / SAFETY, low), curve
