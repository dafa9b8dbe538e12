"""Trains what is missing and evaluates everything: the measured comparison of strategies; stopped, it can go on.

A finished run with the same data, settings and seed is used again, and scores are kept on disk, so a second call goes
on where the first one stopped. The first trained variant of another character is scored as well: a wrong character
that must not win.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from persona_lab.engine import Engine
from persona_lab.errors import BadInput, PersonaLabError, UserError, WorkFailed
from persona_lab.evaluation.history import history_of, job_of
from persona_lab.settings import validate_settings
from persona_lab.types import DatasetSummary, Metric, RunView, Variant

MAX_CARD = 300
"""Characters of a card that is quoted whole in the commands that repeat a measurement."""
BASE, CONTROL = "base", "wrong character"
Follow = Callable[[Engine, str], RunView]


@dataclass(frozen=True)
class Plan:
    """What is to be measured. `seeds`: how many trainings of each strategy that trains anything."""

    personas: tuple[str, ...]
    strategies: tuple[str, ...]
    seeds: int = 3
    base: str = "starter"
    evaluators: tuple[str, ...] = ()
    quick: bool = False


@dataclass
class Trained:
    """The variants of one strategy of one persona, one a seed, and why some are missing."""

    strategy: str
    variants: list[Variant] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Measured:
    """One persona's part: metrics with their items by group (base, strategies, wrong character) and seed."""

    persona: str
    name: str
    dataset: DatasetSummary
    groups: dict[str, list[list[Metric]]]
    costs: dict[str, list[dict[str, Any]]]
    """Of each strategy's seeds: what the cost table of a report holds."""
    losses: dict[str, list[dict[str, Any]]]
    problems: list[str]
    run: str
    control_of: str = ""
    """Who the wrong character is, for people."""
    prepared: tuple[str, ...] = ()
    """Commands that put the persona and its data into a home; none for a shipped example."""


def measure(engine: Engine, plan: Plan, follow: Follow, say: Callable[[str], None]) -> list[Measured]:
    """Train and evaluate everything in the plan.

    Args:
        follow: waits for a run, showing its progress.
        say: is told what happens next, for people.

    Raises:
        UnknownName, BadInput: before anything is trained. WorkFailed: nothing of a persona could be trained.
    """
    _check(engine, plan)
    trained = {p: [_train_all(engine, plan, p, s, follow, say) for s in plan.strategies] for p in plan.personas}
    return [_evaluate(engine, plan, persona, trained, follow, say) for persona in plan.personas]


def _check(engine: Engine, plan: Plan) -> None:
    for strategy in plan.strategies:
        engine.plugins.get("strategy", strategy)
    for evaluator in plan.evaluators:
        engine.plugins.get("evaluator", evaluator)
    engine.base_model(plan.base)
    for persona in plan.personas:
        engine.persona(persona)
        if not engine.datasets(persona):
            raise BadInput(
                f"Persona {persona!r} has no dataset to learn from.",
                f"Import one: persona-lab datasets import FILE --persona {persona}.",
            )


def _train_all(
    engine: Engine, plan: Plan, persona: str, strategy: str, follow: Follow, say: Callable[[str], None]
) -> Trained:
    """All seeds of a strategy; a training that fails is noted, and the others go on."""
    made = Trained(strategy)
    for seed in range(plan.seeds):
        found = _finished(engine, plan, persona, strategy, seed)
        if found is None:
            say(f"Training {strategy} on {persona}, seed {seed}.")
            try:
                run = follow(engine, engine.train(persona, strategy, plan.base, seed=seed, name=f"{strategy}-s{seed}"))
                if run.status != "done":
                    raise WorkFailed(run.message or f"The run is {run.status}.", run.fix)
                found = engine.variant(run.variant)
            except (UserError, WorkFailed) as error:
                made.problems.append(f"{strategy}, seed {seed}: {error}")
                say(f"{strategy} on {persona}, seed {seed}, could not be trained: {error}")
                continue
        made.variants.append(found)
        if found.kind in ("base", "prompt"):
            break  # nothing is trained, so every seed gives the same
    return made


def _finished(engine: Engine, plan: Plan, persona: str, strategy: str, seed: int) -> Variant | None:
    """A variant that this very training has made before."""
    part = engine.plugins.get("strategy", strategy)
    settings = validate_settings(part.Config, {}, f"strategy {strategy!r}").model_dump(mode="json")
    dataset, base = engine.datasets(persona)[0].id, engine.base_model(plan.base).id
    card = engine.persona(persona).card
    for variant in engine.variants(persona):
        wanted = (variant.strategy, variant.compared_with, variant.seed, variant.dataset)
        if wanted != (strategy, base, seed, dataset):
            continue
        job = job_of(variant, engine.home)
        if job is not None and job.config == settings and job.persona is not None and job.persona.card == card:
            return variant
    return None


def _evaluate(
    engine: Engine,
    plan: Plan,
    persona: str,
    trained: dict[str, list[Trained]],
    follow: Follow,
    say: Callable[[str], None],
) -> Measured:
    own = trained[persona]
    variants = [variant for made in own for variant in made.variants]
    if not variants:
        reasons = " ".join(problem for made in own for problem in made.problems)
        raise WorkFailed(f"Nothing could be trained for {persona!r}. {reasons}", "")
    control = _control(engine, persona, trained)
    base = engine.base_variant(persona, plan.base)
    scored = [*variants, *([control[0]] if control else [])]
    say(f"Evaluating {1 + len(scored)} variants of {persona}.")
    # a report has the base of its first variant in front, which no id could name
    asked = engine.evaluate(
        [variant.id for variant in scored], plan.evaluators, plan.quick, report=True, persona_id=persona
    )
    run = follow(engine, asked)
    if run.status != "done":
        raise WorkFailed(f"The evaluation of {persona!r} is {run.status}: {run.message}", run.fix)
    metrics, failed = _metrics(engine, run.id)
    problems = [problem for made in own for problem in made.problems] + failed
    groups = {BASE: [metrics[base.id]]}
    groups |= {m.strategy: [metrics[v.id] for v in m.variants if v.id in metrics] for m in own if m.variants}
    if control:
        groups[CONTROL] = [metrics[control[0].id]]
    histories = {made.strategy: [(v, history_of(v, engine.home)) for v in made.variants] for made in own}
    return Measured(
        persona=persona,
        name=engine.persona(persona).name,
        dataset=engine.datasets(persona)[0],
        groups=groups,
        costs={s: [history.cost(v) for v, history in rows] for s, rows in histories.items()},
        losses={s: [history.result.get("loss") or {} for _, history in rows] for s, rows in histories.items()},
        problems=problems,
        run=run.id,
        control_of=control[1] if control else "",
        prepared=_prepared(engine, persona),
    )


def _prepared(engine: Engine, persona_id: str) -> tuple[str, ...]:
    """How a stranger gets the same persona; a long card is only named."""
    persona = engine.persona(persona_id)
    if persona.example:
        return ()
    said = {key: persona.data[key] for key in ("name", "description") if persona.data.get(key)}
    card = json.dumps(said, ensure_ascii=False)
    file = f"{persona_id}.json"
    made = [f"echo {shlex.quote(card)} > {file}"] if len(card) <= MAX_CARD else [f"# {file}: the character card"]
    source = PurePath(engine.datasets(persona_id)[0].source).name
    return (
        *made,
        f"persona-lab personas import {file} --id {persona_id}",
        f"persona-lab datasets import {shlex.quote(source)} --persona {persona_id}",
    )


def _control(engine: Engine, persona: str, trained: dict[str, list[Trained]]) -> tuple[Variant, str] | None:
    """The first trained variant of another character in the plan, and that character's name."""
    for other, strategies in trained.items():
        for made in strategies if other != persona else ():
            for variant in made.variants:
                if variant.kind in ("adapter", "weights"):
                    return variant, f"{engine.persona(other).name}, {made.strategy}"
    return None


def _metrics(engine: Engine, run_id: str) -> tuple[dict[str, list[Metric]], list[str]]:
    """Metrics with their items by variant id, and what failed, for people."""
    path = engine.home.run(run_id) / "metrics.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PersonaLabError(f"{path} cannot be read: {error}.", "Run the command again.") from error
    metrics = {e["variant"]: [Metric.model_validate(m) for m in e["metrics"]] for e in document["variants"]}
    failed = [f"{e['variant']}: {f['message']}" for e in document["variants"] for f in e.get("failed", ())]
    return metrics, failed
