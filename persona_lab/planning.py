"""What each strategy would cost on this machine before anything is started, and which one to take.

The order comes from `advisor`; what would make a run fit, from `training.remedies`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lab.advisor import Advice, Advisor
from persona_lab.errors import BadSetting, PluginFailed
from persona_lab.plugins import Plugins
from persona_lab.settings import validate_settings
from persona_lab.training.remedies import Remedies, estimate_of, memory_problem, verdict
from persona_lab.types import BaseModelInfo, Change, Dataset, Estimate, Machine, Persona, PlanRow, Problem

NO_ESTIMATE = Estimate(trainable_parameters=0, peak_memory_bytes=0, seconds=0, disk_bytes=0)


@dataclass(frozen=True)
class _Considered:
    """One strategy and what was found out about it."""

    part: Any
    estimate: Estimate
    problems: tuple[Problem, ...]
    changes: tuple[Change, ...]
    advice: Advice
    short: bool = False
    """There is too little memory or disk."""
    refused: BadSetting | None = None
    """It does not take one of the settings."""

    @property
    def blocked(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)


def plan_strategies(
    plugins: Plugins,
    strategies: Sequence[Any],
    persona: Persona,
    dataset: Dataset | None,
    base: BaseModelInfo,
    machine: Machine,
    settings: Mapping[str, Any],
    strict: bool,
    advisor: Advisor | None = None,
) -> list[PlanRow]:
    """Rows in order of recommendation.

    Args:
        machine: with what was measured on it (`models.counting.informed`), else with wider error bars.
        settings: applied to each strategy that has such fields.
        strict: a setting that the strategy does not have is an error (one strategy was named).
        advisor: knows the evidence and the time budget; None: the packaged evidence, no budget.

    Raises:
        BadSetting. PluginFailed: of the one strategy that was named.
    """
    remedies = Remedies(plugins, persona, base, dataset, machine)
    judge = advisor or Advisor()
    found = []
    if not strict:
        _refuse_unknown(strategies, settings)
    for part in strategies:
        values = settings if strict else {k: v for k, v in settings.items() if k in part.Config.model_fields}
        try:
            config = validate_settings(part.Config, values, f"strategy {part.id!r}")
        except BadSetting as error:
            if strict:
                raise
            # what one strategy does not take must not hide what the others would cost
            problem = Problem(message=error.message, fix=error.fix)
            found.append(_Considered(part, NO_ESTIMATE, (problem,), (), Advice(), refused=error))
            continue
        try:
            problems = plugins.guarded("strategy", part.id, part.check, config, persona, dataset, machine)
            estimate = estimate_of(plugins, part, config, base, dataset, machine)
        except PluginFailed as error:
            if strict:
                raise
            # one plugin's fault must not hide what the others would cost
            problems, estimate = [Problem(message=error.message, fix=error.fix)], NO_ESTIMATE
        changes = () if verdict(estimate, machine) == "fits" else remedies.changes(part, config)
        lacking = _resource_problems(part, estimate, machine, changes)
        short = any(problem.severity == "error" for problem in lacking)
        problems = [*problems, *lacking]
        advice = judge.advise(part, config, estimate, dataset, machine)
        found.append(_Considered(part, estimate, tuple(problems), changes, advice, short))
    refusals = [one.refused for one in found if one.refused is not None]
    if refusals and len(refusals) == sum(any(k in part.Config.model_fields for k in settings) for part in strategies):
        raise refusals[0]  # nobody takes it
    found.sort(key=lambda one: (one.blocked, *one.advice.order, getattr(one.part, "rank", 100), one.estimate.seconds))
    return [_row(number, one) for number, one in enumerate(found, start=1)]


def _refuse_unknown(strategies: Sequence[Any], settings: Mapping[str, Any]) -> None:
    """A setting that none of the strategies has is a slip of the pen."""
    known = {name for part in strategies for name in part.Config.model_fields}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            message = f"No strategy has a setting {name!r}{hint}."
            raise BadSetting(
                message, f"Known settings: {', '.join(sorted(known))}.", [(name, "there is no such setting")]
            )


def _resource_problems(part: Any, estimate: Estimate, machine: Machine, changes: Sequence[Change]) -> list[Problem]:
    memory = memory_problem(estimate, machine, changes, part.id)
    found = [memory] if memory else []
    if estimate.disk_bytes > machine.disk_free_bytes:
        need, have = estimate.disk_bytes / 2**30, machine.disk_free_bytes / 2**30
        message = f"Needs about {need:.1f} GB of disk; {have:.1f} GB are free."
        found.append(Problem(message=message, fix="Free some space, or use another disk with --home DIR."))
    return found


def _row(rank: int, one: _Considered) -> PlanRow:
    part, estimate = one.part, one.estimate
    serious = " ".join(problem.message for problem in one.problems if problem.severity == "error")
    reason = serious or one.advice.reason or estimate.reason or part.summary
    return PlanRow(
        strategy=part.id,
        title=part.title,
        fits=not one.blocked,
        rank=rank,
        reason=reason,
        trainable_parameters=estimate.trainable_parameters,
        peak_memory_bytes=estimate.peak_memory_bytes,
        seconds=round(estimate.seconds, 1),
        disk_bytes=estimate.disk_bytes,
        uncertainty=estimate.uncertainty,
        problems=one.problems,
        recommended=rank == 1 and not one.blocked and not one.advice.late,
        evidence=(*one.advice.evidence, *([estimate.reason] if estimate.reason != reason else [])),
        changes=one.changes,
        memory_uncertainty=estimate.memory_uncertainty or estimate.uncertainty,
        host_memory_bytes=estimate.host_memory_bytes,
        parts=estimate.parts,
        blocked_by="" if not one.blocked else ("machine" if one.short else "settings"),
    )
