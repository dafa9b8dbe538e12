"""Ranks strategies for this machine before anything is started: what fits, what it costs, and why this one first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.errors import PluginFailed
from persona_lab.plugins import Plugins
from persona_lab.settings import validate_settings
from persona_lab.types import BaseModelInfo, Dataset, Estimate, Machine, Persona, PlanRow, Problem

# a run may use this share of what is free before the machine starts to swap
MEMORY_SHARE = 0.9
NO_ESTIMATE = Estimate(trainable_parameters=0, peak_memory_bytes=0, seconds=0, disk_bytes=0)


def plan_strategies(
    plugins: Plugins,
    strategies: Sequence[Any],
    persona: Persona,
    dataset: Dataset | None,
    base: BaseModelInfo,
    machine: Machine,
    settings: Mapping[str, Any],
    strict: bool,
) -> list[PlanRow]:
    """Rows in order of recommendation.

    Args:
        settings: applied to each strategy that has such fields.
        strict: a setting that the strategy does not have is an error (one strategy was named).

    Raises:
        BadSetting. PluginFailed: of the one strategy that was named.
    """
    rows = []
    for part in strategies:
        values = settings if strict else {k: v for k, v in settings.items() if k in part.Config.model_fields}
        config = validate_settings(part.Config, values, f"strategy {part.id!r}")
        try:
            problems = plugins.guarded("strategy", part.id, part.check, config, persona, dataset, machine)
            estimate = plugins.guarded("strategy", part.id, part.estimate, config, base, dataset, machine)
        except PluginFailed as error:
            if strict:
                raise
            # one plugin's fault must not hide what the others would cost
            problems, estimate = [Problem(message=error.message, fix=error.fix)], NO_ESTIMATE
        rows.append((part, estimate, [*problems, *_resource_problems(estimate, machine)]))
    rows.sort(key=lambda row: (_blocked(row[2]), getattr(row[0], "rank", 100), row[1].seconds))
    return [_row(number, *row) for number, row in enumerate(rows, start=1)]


def _blocked(problems: Sequence[Problem]) -> bool:
    return any(problem.severity == "error" for problem in problems)


def _resource_problems(estimate: Estimate, machine: Machine) -> list[Problem]:
    found = []
    memory = machine.accelerator_bytes if machine.device == "cuda" else machine.memory_free_bytes
    if estimate.peak_memory_bytes > MEMORY_SHARE * memory:
        need, have = estimate.peak_memory_bytes / 2**30, memory / 2**30
        found.append(
            Problem(message=f"Needs about {need:.1f} GB of memory; {have:.1f} GB are free.", field="batch_size")
        )
    if estimate.disk_bytes > machine.disk_free_bytes:
        need, have = estimate.disk_bytes / 2**30, machine.disk_free_bytes / 2**30
        found.append(Problem(message=f"Needs about {need:.1f} GB of disk; {have:.1f} GB are free."))
    return found


def _row(rank: int, part: Any, estimate: Estimate, problems: Sequence[Problem]) -> PlanRow:
    blocked = _blocked(problems)
    reason = " ".join(problem.message for problem in problems) if blocked else estimate.reason or part.summary
    return PlanRow(
        strategy=part.id,
        title=part.title,
        fits=not blocked,
        rank=rank,
        reason=reason,
        trainable_parameters=estimate.trainable_parameters,
        peak_memory_bytes=estimate.peak_memory_bytes,
        seconds=round(estimate.seconds, 1),
        disk_bytes=estimate.disk_bytes,
        uncertainty=estimate.uncertainty,
        problems=tuple(problems),
    )
