"""Runs an evaluation in the worker: probes, evaluators, comparisons, and the report if it is asked for.

An evaluator is a plugin: if it fails, that is reported and the others go on.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona_lab.api import Evaluator, Reporter
from persona_lab.datasets.store import load_dataset
from persona_lab.errors import BadInput, BadModel, Cancelled, DiskFull, OutOfMemory, PersonaLabError, PluginFailed
from persona_lab.evaluation.compare import compare_all
from persona_lab.evaluation.context import Models, VariantContext
from persona_lab.evaluation.health import check_weights
from persona_lab.evaluation.history import job_of
from persona_lab.evaluation.languages import in_other_languages
from persona_lab.evaluation.leaks import check_leaks, check_probes
from persona_lab.evaluation.probes import build_probes, sample_probes, spread
from persona_lab.evaluation.report import Evaluated, write_report
from persona_lab.home import Home, write_atomic
from persona_lab.models import kept
from persona_lab.models.machine import worker_machine
from persona_lab.personas.probe_file import ProbeFile, probes_of
from persona_lab.personas.store import PROBES
from persona_lab.settings import validate_settings
from persona_lab.types import Dataset, Job, Metric, Persona, Probe, Sampling, Variant

SAMPLES = 6
"""Reply probes whose replies the report shows side by side."""


@dataclass(frozen=True)
class _Chosen:
    """An evaluator and its validated settings."""

    evaluator: Evaluator
    settings: Any


@dataclass
class _Scores:
    metrics: dict[str, list[Metric]] = field(default_factory=dict)
    failed: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    details: list[PersonaLabError] = field(default_factory=list)


def run(job: Job, reporter: Reporter, plugins: Any) -> dict[str, Any]:
    """Evaluate `job.variants` on the same probes and compare them in pairs.

    Args:
        job: all variants belong to `job.persona`; `job.dataset` is the path of the data to probe with.
        plugins: gives evaluators: `get(kind, id)` and `all(kind)`.

    Returns:
        {"variants": [{"variant", "metrics": [...], "failed": [...]}], "comparisons": [...], "report": {...} if asked}.

    Raises:
        BadInput: no variants, variants of several personas, or probes that a variant was trained on.
        BadSetting: before anything is scored. BadModel, PluginFailed: nothing at all could be scored.
        Cancelled, OutOfMemory, DiskFull
    """
    home = Home.resolve(job.home)
    persona, dataset = _subject(job)
    reporter.phase("Collecting probes", None)
    evaluators = _evaluators(job, plugins)
    probes, notes = _probes(persona, dataset, probes_of(home.persona(persona.id)), job.quick)
    for note in notes:
        reporter.log(note, "warning")
    _check_training_data(job, dataset, probes, home, reporter)
    machine = worker_machine(home.root)
    models = Models(home, machine, reporter)
    contexts = {
        v.id: VariantContext(models, reporter, v, persona, dataset, machine, job.seed, job.quick) for v in job.variants
    }
    scores = _score_all(job.variants, evaluators, probes, contexts, reporter)
    comparisons = compare_all(job.variants, scores.metrics, job.seed)
    result: dict[str, Any] = {
        "variants": [_entry(v, scores, items=False) for v in job.variants],
        "comparisons": [c.model_dump(mode="json") for c in comparisons],
        "notes": notes,
    }
    whole = {**result, "variants": [_entry(v, scores, items=True) for v in job.variants]}
    write_atomic(home.run(job.id) / "metrics.json", json.dumps(whole, ensure_ascii=False))
    if job.report:
        samples = _samples(job, [v for v in job.variants if v.id in scores.metrics], probes, contexts, reporter)
        folder = Path(job.out) if job.out else home.report(job.id)
        evaluated = Evaluated(
            job,
            persona,
            machine,
            home,
            job.variants,
            scores.metrics,
            scores.failed,
            comparisons,
            probes,
            samples,
            notes,
        )
        result["report"] = write_report(evaluated, folder)
    return result


def _evaluators(job: Job, plugins: Any) -> list[_Chosen]:
    found = [plugins.get("evaluator", name) for name in job.evaluators] or list(plugins.all("evaluator"))
    given = job.evaluator_settings
    return [_Chosen(e, validate_settings(e.Config, given.get(e.id, {}), f"evaluator {e.id!r}")) for e in found]


def _probes(persona: Persona, dataset: Dataset | None, own: ProbeFile, quick: bool) -> tuple[list[Probe], list[str]]:
    """The probes to ask, and what had to be left out, for people."""
    built = build_probes(persona, dataset, own=own)
    foreign = {probe.id for probe in in_other_languages(built, dataset)}
    notes = [f"{PROBES}, line {number} {what}: it is left out." for number, what in own.problems]
    if foreign:
        replies = sum(probe.kind == "reply" for probe in built)
        example = next(probe.reply for probe in built if probe.id in foreign)
        notes.append(
            f"{len(foreign)} of {replies} held-out lines seem to be in another language than the lines trained on "
            f"({example[:60]!r}): they are left out, because a score on them says nothing about the character."
        )
    return sample_probes([probe for probe in built if probe.id not in foreign], quick), notes


def _subject(job: Job) -> tuple[Persona, Dataset | None]:
    if job.persona is None or not job.variants:
        raise BadInput("There is nothing to evaluate.", "Name at least one variant.")
    strangers = sorted({v.persona for v in job.variants} - {job.persona.id})
    if strangers:
        raise BadInput(
            f"These variants play different characters: {', '.join([job.persona.id, *strangers])}.",
            "Compare variants of one persona: scores on different characters' lines do not compare.",
        )
    if len({v.id for v in job.variants}) < len(job.variants):
        raise BadInput("A variant is named twice.", "Name each variant once.")
    return job.persona, load_dataset(Path(job.dataset)) if job.dataset else None


def _check_training_data(
    job: Job, dataset: Dataset | None, probes: Sequence[Probe], home: Home, reporter: Reporter
) -> None:
    """What each variant was trained on must not hold what it is probed with, whichever version of the data it was."""
    if dataset is None:
        reporter.log("There is no dataset: only prompts that need none are asked.", "warning")
    for variant in job.variants:
        kept.check_unread(home, variant.base, [probe.reply for probe in probes if probe.kind == "reply"])
        if variant.kind == "base" or not variant.dataset:
            continue
        if dataset is not None and variant.dataset == dataset.id:
            check_probes(probes, dataset)
            continue
        made_by = job_of(variant, home)
        if made_by is not None and made_by.dataset and Path(made_by.dataset).is_file():
            trained = load_dataset(Path(made_by.dataset))
            if dataset is not None:
                check_leaks(dataset, trained)
            check_probes(probes, trained)
        elif any(probe.kind == "reply" for probe in probes):
            reporter.log(
                f"{variant.name} was made with the data {variant.dataset!r}, which is gone: whether it saw today's "
                "probes in training cannot be checked.",
                "warning",
            )


def _score_all(
    variants: Sequence[Variant],
    evaluators: Sequence[_Chosen],
    probes: Sequence[Probe],
    contexts: dict[str, VariantContext],
    reporter: Reporter,
) -> _Scores:
    """Every evaluator on every variant; whatever fails is recorded, and the rest goes on."""
    scores = _Scores()

    def failed(variant: Variant, evaluator: str, failure: PersonaLabError) -> None:
        reporter.log(failure.message, "error")
        entry = {"evaluator": evaluator, "message": f"{failure.message} {failure.fix}".strip()}
        scores.failed.setdefault(variant.id, []).append(entry)
        scores.details.append(failure)

    for variant in variants:
        try:
            check_weights(variant)
        except BadModel as failure:
            failed(variant, "", failure)
            continue
        for chosen in evaluators:
            context = contexts[variant.id].with_settings(chosen.settings)
            try:
                scores.metrics.setdefault(variant.id, []).extend(_score(chosen.evaluator, variant, probes, context))
            except (PluginFailed, BadModel, BadInput) as failure:
                failed(variant, chosen.evaluator.id, failure)
    if scores.details and not any(scores.metrics.values()):
        raise scores.details[0]
    return scores


def _score(evaluator: Evaluator, variant: Variant, probes: Sequence[Probe], context: VariantContext) -> list[Metric]:
    try:
        metrics = [Metric.model_validate(metric) for metric in evaluator.score(variant, probes, context)]
    except (Cancelled, OutOfMemory, DiskFull, MemoryError, BadModel, BadInput):
        raise
    except Exception as error:  # the plugin border: whatever an evaluator raises is its own failure, not the run's
        if type(error).__name__ == "OutOfMemoryError":  # torch's; the worker names it and says what would fit
            raise
        message = f"The evaluator {evaluator.id!r} failed on {variant.name!r}: {type(error).__name__}: {error}"
        raise PluginFailed(
            message, "The other evaluators are not affected.", plugin=evaluator.id, details=traceback.format_exc()
        ) from error
    return [_finite(metric) for metric in metrics]


def _finite(metric: Metric) -> Metric:
    """A value that is no number is withheld: it would turn every mean, plot and comparison into nonsense."""
    numbers = [metric.value, metric.low, metric.high, *(item.value for item in metric.items)]
    if all(number is None or math.isfinite(number) for number in numbers):
        return metric
    note = f"{metric.note} Withheld: the scores are not numbers (NaN or infinite).".strip()
    return metric.model_copy(update={"value": None, "low": None, "high": None, "n": 0, "items": (), "note": note})


def _entry(variant: Variant, scores: _Scores, items: bool) -> dict[str, Any]:
    left_out = None if items else {"items"}
    entry: dict[str, Any] = {
        "variant": variant.id,
        "metrics": [m.model_dump(mode="json", exclude=left_out) for m in scores.metrics.get(variant.id, [])],
    }
    if variant.id in scores.failed:
        entry["failed"] = scores.failed[variant.id]
    return entry


def _samples(
    job: Job,
    variants: Sequence[Variant],
    probes: Sequence[Probe],
    contexts: dict[str, VariantContext],
    reporter: Reporter,
) -> list[tuple[Probe, dict[str, str]]]:
    """What each variant answers to a few held-out prompts, with the seed that the chat would use."""
    replies = [p for p in probes if p.kind == "reply"] or [p for p in probes if p.kind == "adversarial"]
    chosen = spread(replies, [p.cluster for p in replies], SAMPLES, job.seed)
    reporter.phase("Writing sample replies", len(variants))
    written = {
        v.id: contexts[v.id].generate(v, [p.messages for p in chosen], Sampling(seed=job.seed, max_new_tokens=80))
        for v in variants
    }
    return [(probe, {v: texts[i] for v, texts in written.items()}) for i, probe in enumerate(chosen)]
