"""Does one training run, in the worker: checks first, then the strategy, then an account of what came of it."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

from persona_lab.api import Problem, TrainJob
from persona_lab.datasets.held_out import check_training, read_ledger
from persona_lab.datasets.rendering import ChatRenderer, check_trainable
from persona_lab.datasets.replay import learned_rows
from persona_lab.datasets.store import load_dataset
from persona_lab.errors import BadInput, BadSetting, DiskFull
from persona_lab.home import Home
from persona_lab.models import kept, registry
from persona_lab.models.counting import informed
from persona_lab.models.machine import worker_machine
from persona_lab.models.weights import checksums, fingerprint, folder_bytes
from persona_lab.personas.prompt import system_prompt
from persona_lab.settings import validate_settings
from persona_lab.training import randomness
from persona_lab.training.context import LESS_MEMORY, Context
from persona_lab.training.forecast import Forecast
from persona_lab.training.memory import memory_errors, peak_memory
from persona_lab.types import Artifact, BaseModelInfo, Conversation, Dataset, Job, Machine, Persona

NAMED_ROWS = 5
NO_CHANGE = 0.01
"""A validation loss that fell by less than this (nats a token) has not changed: seeds alone differ by 0.03."""


def run(job: Job, reporter: Any, plugins: Any) -> dict[str, Any]:
    """Train `job` and describe the outcome; goes on from checkpoints in the run's folder if there are any.

    Args:
        reporter: a `Reporter` that also has `emit(event)`.
        plugins: where strategies come from.

    Returns:
        The result of a train run: artifact, seconds, counts, memory, losses and a sentence on what changed.

    Raises:
        BadInput, BadSetting, UnknownName, WillNotFit: before anything is trained. BadModel, DiskFull, OutOfMemory,
        Cancelled, PluginFailed, WorkFailed
    """
    started = time.perf_counter()
    strategy = plugins.get("strategy", job.strategy)
    settings = validate_settings(strategy.Config, job.config, f"strategy {job.strategy!r}")
    persona = _persona(job)
    dataset = load_dataset(Path(job.dataset))
    home = Home(Path(job.home))
    check_training(dataset, read_ledger(home.persona(persona.id)), Path(job.dataset))
    reporter.phase("Preparing")
    base = registry.ensure(job.base, home, reporter)
    _check_unread(dataset, home, base)
    fetched = time.perf_counter()
    parent = job.variants[0] if job.variants else None
    context = Context(
        reporter=reporter,
        plugins=plugins,
        persona=persona,
        dataset=dataset,
        base=base,
        machine=informed(worker_machine(home.root), home, base, dataset, persona),
        seed=job.seed,
        run_dir=home.run(job.id),
        system=system_prompt(persona),
        renderer=ChatRenderer(Path(base.path)),
        parent=parent,
        learned=_learned(job, dataset, home) if parent else (),
        max_tokens=getattr(settings, "max_tokens", 1024),
        home=home,
    )
    context.seconds["load"] += fetched - started
    context.run_dir.mkdir(parents=True, exist_ok=True)
    if parent is not None:
        strategy = strategy.going_on(parent, context.learned)
    _check(context, strategy, settings)
    forecast = Forecast(context, strategy, settings, home)
    forecast.measure_first()
    forecast.refuse_misfit(job.force)
    forecast.keep_cheaper()
    randomness.seed_all(job.seed)
    with memory_errors(LESS_MEMORY):
        train_job = TrainJob(settings=settings)
        artifact = plugins.guarded("strategy", job.strategy, strategy.train, train_job, context)
    total = time.perf_counter() - started
    # fetching models and measuring steps are not part of what a training was predicted to take
    apart = (fetched - started) + forecast.seconds + context.fetched_seconds
    result = _result(job, context, artifact, total) | {"predicted": forecast.document()}
    forecast.remember(total - apart, result["peak_memory_bytes"], artifact)
    shutil.rmtree(context.run_dir / "checkpoints", ignore_errors=True)  # of no more use, and large
    return result


def _check_unread(dataset: Dataset, home: Home, base: BaseModelInfo) -> None:
    """A foundation trained here must not have read what the persona holds out.

    Raises:
        BadInput, BadModel
    """
    if base.origin:
        rows = (*dataset.of("test"), *dataset.of("validation"))
        ledger = read_ledger(home.persona(dataset.persona)).entries
        keys = {key for key, entry in ledger.items() if entry.kind == "reply"}
        kept.check_unread(home, base.id, [m.content for c in rows for m in c.messages if m.role == "assistant"], keys)


def _learned(job: Job, dataset: Dataset, home: Home) -> tuple[Conversation, ...]:
    ledger = read_ledger(home.persona(_persona(job).id))
    return learned_rows([load_dataset(Path(path)) for path in job.parent_datasets], ledger, dataset)


def _persona(job: Job) -> Persona:
    if job.persona is None:
        raise BadInput(f"The job {job.id!r} names no persona.", "Start it again from the page or with --persona ID.")
    return job.persona


def _check(context: Context, strategy: Any, settings: Any) -> None:
    """Refuse what cannot work, with every reason at once; mention what may not.

    Raises:
        BadSetting, BadInput, DiskFull
    """
    persona, dataset, machine = context.persona, context.dataset, context.machine
    guarded = context.plugins.guarded
    problems = list(guarded("strategy", strategy.id, strategy.check, settings, persona, dataset, machine))
    problems += _unfit(settings, machine)
    if context.parent is not None:
        asked = (settings, context.parent, context.learned, dataset)
        told = guarded("strategy", strategy.id, strategy.check_parent, *asked)
        problems += [problem for problem in told if problem not in problems]
    rows = check_trainable(context.renderer, context.system, dataset.of("train"), context.max_tokens)
    for problem in [*problems, *rows]:
        if problem.severity == "warning":
            context.log(f"{problem.message} {problem.fix}".strip(), "warning")
    _refuse(problems, BadSetting, f"The strategy {strategy.id!r} cannot run")
    _refuse(rows, BadInput, f"The dataset {dataset.name!r} cannot be trained on")
    estimate = guarded("strategy", strategy.id, strategy.estimate, settings, context.base, dataset, machine)
    free = shutil.disk_usage(context.run_dir).free
    # a resumed run has a part of what it needs already
    needed = estimate.disk_bytes - folder_bytes(context.run_dir / "checkpoints")
    if needed > free:
        raise DiskFull(
            f"This run needs about {needed / 1e6:.0f} MB of disk; {free / 1e6:.0f} MB are free.",
            "Free some space, or use another disk with --home DIR.",
        )


def _unfit(settings: Any, machine: Machine) -> list[Problem]:
    """What this machine lacks for the fit loop's own settings, whatever strategy has them."""
    optimizer = str(getattr(settings, "optimizer", ""))
    if not optimizer.startswith("paged") or machine.device == "cuda":
        return []
    message = f"The optimizer {optimizer!r} needs a CUDA device."
    return [Problem(message=message, fix="Use `adamw` or `adamw_8bit` here.", field="optimizer")]


def _refuse(problems: list[Problem], error: type[BadInput] | type[BadSetting], what: str) -> None:
    serious = [problem for problem in problems if problem.severity == "error"]
    if not serious:
        return
    named = " ".join(problem.message for problem in serious[:NAMED_ROWS])
    more = f" (and {len(serious) - NAMED_ROWS} more)" if len(serious) > NAMED_ROWS else ""
    raise error(f"{what}: {named}{more}", next((problem.fix for problem in serious if problem.fix), ""))


def _result(job: Job, context: Context, artifact: Artifact, total_seconds: float) -> dict[str, Any]:
    folder = Path(artifact.path) if artifact.path else None
    before, after, train = _losses(artifact, context.dataset)
    return {
        "artifact": artifact.model_dump(mode="json"),
        "seconds": {"total": round(total_seconds, 2)} | {k: round(v, 2) for k, v in context.seconds.items()},
        "examples": artifact.fit.examples if artifact.fit else artifact.details.get("pool", len(artifact.examples)),
        "supervised_tokens": artifact.fit.supervised_tokens if artifact.fit else 0,
        "trainable_parameters": artifact.trainable_parameters,
        "total_parameters": artifact.total_parameters,
        "peak_memory_bytes": peak_memory(context.machine.device),
        "artifact_bytes": folder_bytes(folder) if folder else 0,
        "loss": {"train": train, "validation_before": before, "validation_after": after},
        "base": job.base,
        # a variant on a foundation is scored against what was there before the foundation was trained
        "anchor": context.base.origin or (job.base if artifact.base not in ("", job.base) else ""),
        "strategy": job.strategy,
        "seed": job.seed,
        "fingerprint": fingerprint(folder if folder and artifact.kind != "prompt" else Path(context.base.path)),
        "checksums": checksums(folder) if folder else {},
        "system": context.system,
        "changed": changed(before, after, artifact),
    }


def _losses(artifact: Artifact, dataset: Dataset) -> tuple[float | None, float | None, float | None]:
    """Validation loss before and after, and training loss; None for what was not measured."""
    fit, details = artifact.fit, artifact.details
    before = details.get("validation_before", fit.validation_before if fit else None)
    after = details.get("validation_after", fit.validation_after if fit else None)
    measured = bool(dataset.of("validation"))
    return (before if measured else None, after if measured else None, fit.train_loss if fit else None)


def changed(before: float | None, after: float | None, artifact: Artifact) -> str:
    """One sentence for people: did it change anything?"""
    update = artifact.details.get("relative_update")
    size = f"; its weights moved by {update:.2%} of their size" if isinstance(update, float) else ""
    if before is None or after is None or math.isnan(before) or math.isnan(after):
        return f"There are no validation conversations to measure a change on{size}."
    numbers = f"the loss on conversations it was not trained on went from {before:.3f} to {after:.3f} nats a token"
    if before - after < NO_CHANGE:
        return f"No measurable change: {numbers}{size}."
    return f"Yes: {numbers} ({(before - after) / before:.0%} lower){size}."
