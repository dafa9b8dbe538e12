"""Watches the training loss, and stops a run that went astray before it costs more time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from persona_lab.errors import Diverged

WINDOW = 8
"""Steps whose mean loss is compared: single batches differ by more than any trend."""
RUNAWAY = 1.0
"""Nats a token above the first steps' mean. An ordinary run falls; small models start between 3 and 5."""


def refuse_nonsense(loss: float, norm: float, step: int, rate: float) -> None:
    """Stop as soon as a loss or gradient is not a number: everything after it would be lost work.

    Raises:
        Diverged
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise Diverged(
        f"Training went astray at step {step}: the loss became {loss} and its gradient {norm}.", advice(rate)
    )


def ran_away(losses: Sequence[float]) -> bool:
    """Whether the last steps' loss is far above the first steps'."""
    if len(losses) < 2 * WINDOW:
        return False
    return sum(losses[-WINDOW:]) / WINDOW > sum(losses[:WINDOW]) / WINDOW + RUNAWAY


def advice(rate: float) -> str:
    """What to do about a run that went astray at this learning rate."""
    return f"Use a learning rate below {rate:g} (try {rate / 5:g})."
