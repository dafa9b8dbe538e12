"""A run's forecast in its worker: measured first where that pays, refused where it cannot fit, compared in the end."""

from __future__ import annotations

import json
import time
from typing import Any

from filelock import Timeout

from persona_lab.errors import DiskFull, PluginFailed, WorkFailed
from persona_lab.home import Home, write_atomic
from persona_lab.models.calibration import measured_for, remember_residual
from persona_lab.processes import Company
from persona_lab.training.remedies import CHEAPER, after_all, estimate_of, refuse_misfit, told
from persona_lab.types import Artifact, Estimate, Residual, now

WORTH_MEASURING = 300.0
"""Seconds: a run expected to take longer measures a few steps first (under a minute), once on a machine."""
BUSY = 0.1
"""Share of the cores' time taken by other programs, above which a run's time is not learned from."""
FIXED_PARTS = ("load", "check", "save")
"""Seconds that do not depend on how many steps are taken."""


class Forecast:
    """What is expected of one run.

    Args:
        context: the run's context; its machine is replaced where steps are measured first.
        strategy, settings: as they will be trained.
    """

    def __init__(self, context: Any, strategy: Any, settings: Any, home: Home) -> None:
        self.context, self.strategy, self.settings, self.home = context, strategy, settings, home
        self.seconds = 0.0
        self.company = Company()
        # a resumed run's time and memory are not those of the whole
        self.whole = not (context.run_dir / "checkpoints").exists()
        self.expected = self._estimate()

    def _estimate(self) -> Estimate:
        context = self.context
        return estimate_of(
            context.plugins, self.strategy, self.settings, context.base, context.dataset, context.machine
        )

    @property
    def _asked(self) -> tuple[Any, ...]:
        """What the remedies are asked with; the machine may be another after `measure_first`."""
        context = self.context
        return (
            context.plugins, self.strategy, self.settings, context.persona, context.base, context.dataset,
            context.machine,
        )  # fmt: skip

    def measure_first(self) -> None:
        """Measure a few real steps where nothing is known of this machine and the run is long enough to pay for it."""
        known = self.context.machine.measured
        if (known is not None and known.rates is not None and known.same_base) or not self.expected.parts:
            return
        if self.expected.seconds < WORTH_MEASURING or not self.whole:
            return
        from persona_lab.training.calibrate import calibrate

        started = time.perf_counter()
        context = self.context
        try:
            calibrate(context.base, self.home, context.reporter)
        except WorkFailed as error:
            context.log(f"{error.message} {error.fix}", "warning")
            return
        finally:
            self.seconds = time.perf_counter() - started
        fresh = measured_for(self.home, context.machine, context.base)
        counts = known.counts if known is not None else ()
        measured = fresh.model_copy(update={"counts": counts})
        context.machine = context.machine.model_copy(update={"measured": measured})
        self.expected = self._estimate()
        minutes = self.expected.seconds / 60
        context.log(f"By steps measured on this machine, this training takes about {minutes:.0f} minutes.")

    def refuse_misfit(self, force: bool) -> None:
        """Stop before the base is loaded if the run cannot fit.

        Raises:
            WillNotFit
        """
        if not force:
            refuse_misfit(*self._asked)

    def keep_cheaper(self) -> None:
        """Note what needs less memory now: a worker that is killed for want of it cannot say so any more."""
        context = self.context
        try:
            changes = after_all(*self._asked)
            document = {
                "strategy": self.strategy.id,
                "changes": [change.model_dump(mode="json") for change in changes],
                "told": told(changes, self.strategy.id),
            }
            write_atomic(context.run_dir / CHEAPER, json.dumps(document))
        except (PluginFailed, DiskFull, OSError) as error:
            context.log(f"What would need less memory could not be noted: {error}", "warning")

    def document(self) -> dict[str, Any]:
        """What was expected, beside what came of it."""
        return {
            "seconds": self.expected.seconds,
            "uncertainty": self.expected.uncertainty,
            "peak_memory_bytes": self.expected.peak_memory_bytes,
            "memory_uncertainty": self.expected.memory_uncertainty,
            "others": round(self.company.share(), 3),
        }

    def remember(self, seconds: float, memory_bytes: int, artifact: Artifact) -> None:
        """Keep how the run compared with its uncorrected estimate, so that later plans are better."""
        context = self.context
        # a foundation that was there already took none of the time and memory that its plan counts
        if not self.whole or artifact.details.get("foundation", {}).get("reused"):
            return
        raw = context.plugins.guarded(
            "strategy",
            self.strategy.id,
            self.strategy.estimate,
            self.settings,
            context.base,
            context.dataset,
            context.machine,
        )
        residual = Residual(
            strategy=self.strategy.id,
            created=now(),
            # beside other busy programs a run's time says more of them than of the plan
            seconds=round(seconds, 2) if self.company.share() < BUSY else 0.0,
            predicted_seconds=round(executed_seconds(raw, artifact), 2),
            memory_bytes=memory_bytes,
            predicted_memory_bytes=raw.peak_memory_bytes,
            modelled=bool(raw.parts),
        )
        try:
            remember_residual(self.home, context.machine, context.base, residual)
        except (OSError, Timeout, DiskFull) as error:
            # the training is done and saved: a forecast that learns nothing from it must not fail it
            context.log(f"How this run compared with its plan could not be kept: {error}.", "warning")


def executed_seconds(raw: Estimate, artifact: Artifact) -> float:
    """The prediction for the steps that were really taken: a run that stopped early is not compared with the whole."""
    done = artifact.fit.steps if artifact.fit else 0
    if not raw.parts or not raw.steps or not done or done >= raw.steps:
        return raw.seconds
    fixed = sum(raw.parts.get(name, 0.0) for name in FIXED_PARTS)
    return fixed + (raw.seconds - fixed) * done / raw.steps
