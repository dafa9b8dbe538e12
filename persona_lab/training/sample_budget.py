"""When a training writes sample replies: before it, with the weights it keeps, and between while that costs little."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from persona_lab.models.estimate import MOST_SAMPLINGS, SAMPLE_SHARE


@dataclass
class SampleBudget:
    """Of one fit. The replies before and after are always written, so that every run shows what it changed.

    `total`: steps of the whole fit, once known; `trained`: a step was taken here, so there is something to show.
    """

    clock: Callable[[], float] = time.perf_counter
    total: int = 0
    trained: bool = False
    written: int = 0
    spent: float = 0.0
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.clock()

    def due(self, step: int) -> bool:
        """Whether replies are to be written at this validation."""
        if step == 0:
            return self.written == 0
        if step >= self.total or self.written >= MOST_SAMPLINGS - 1:
            return False  # the kept weights speak after the last step
        expected = (self.clock() - self.begun) * self.total / step
        one = self.spent / max(self.written, 1)
        return self.spent + 2 * one <= SAMPLE_SHARE * expected

    def record(self, write: Callable[[], None]) -> None:
        """Write replies and remember what it took."""
        started = self.clock()
        write()
        self.spent += self.clock() - started
        self.written += 1
