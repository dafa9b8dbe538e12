"""Home in HTML: what to do next, examples to begin with, recent runs, variants with their numbers. Asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from persona_lab.evaluation.wording import number as measured
from persona_lab.headlines import VariantFacts
from persona_lab.types import Metric, PersonaSummary, RunView
from persona_lab.ui.html import avatar, chip, duration, empty, esc, plural, table, when
from persona_lab.ui.runs import ACTIVE, TONES

SHOWN_RUNS = 6


@dataclass(frozen=True)
class Standing:
    """How far one character has come. `active`: its run in progress or waiting; `scored`: an evaluation was kept."""

    persona: PersonaSummary | None = None
    conversations: int = 0
    variants: Sequence[VariantFacts] = field(default_factory=tuple)
    active: RunView | None = None
    scored: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage of the path: `action` is what its button asks for (see `home_tab`)."""

    title: str
    done: bool
    said: str
    action: str
    button: str


def stages(at: Standing) -> list[Stage]:
    """The path from nobody to a character one talks to; the first stage that is not done is what to do next."""
    who = at.persona.name if at.persona else ""
    chosen = at.persona is not None
    active = at.active is not None
    return [
        Stage(
            "Choose a character", chosen,
            f"{who} is in use." if chosen else "Take an example, import a card, or write your own.",
            "go:personas", "Change or edit" if chosen else "Import or write one",
        ),
        Stage(
            "Look at its data", chosen and at.conversations > 0,
            f"{plural(at.conversations, 'conversation')} to learn from; some are held out for tests."
            if at.conversations else f"{who or 'A character'} learns from conversations; the examples bring theirs.",
            "go:data", "Look at them" if at.conversations else "Add conversations",
        ),
        Stage(
            "Train", bool(at.variants) and not active, _training(at),
            f"run:{at.active.id}" if at.active else "go:train", "Watch" if active else "Train",
        ),
        Stage(
            "Evaluate", at.scored,
            "Scored on lines it never saw." if at.scored else "Find out how well it worked, on lines it never saw.",
            "go:evaluate", "See scores" if at.scored else "Evaluate",
        ),
        Stage(
            "Chat", False, f"Talk to {who or 'the character'}, trained and untrained side by side.", "go:chat", "Chat",
        ),
    ]  # fmt: skip


def _training(at: Standing) -> str:
    if at.active is not None:
        if at.active.status == "queued":
            return "Waiting in the queue; it starts by itself."
        left = f", about {duration(at.active.eta_seconds)} left" if at.active.eta_seconds else ""
        share = f"step {at.active.step:,} of {at.active.total:,}" if at.active.total else "getting ready"
        return f"Training now: {share}{left}."
    if at.variants:
        return f"{plural(len(at.variants), 'variant')} trained."
    return "Choose a way, see what it costs on this machine, press Start."


def path(at: Standing) -> str:
    """The stages as a list; the next one stands out."""
    found = stages(at)
    current = next((place for place, stage in enumerate(found) if not stage.done), len(found) - 1)
    items = "".join(_stage(stage, place, current, at) for place, stage in enumerate(found))
    return f'<ol class="pl-path">{items}</ol>'


def _stage(stage: Stage, place: int, current: int, at: Standing) -> str:
    now = place == current
    out_of_reach = place > 0 and at.persona is None
    mark = "✓" if stage.done else str(place + 1)
    kind = "pl-stage-now" if now else "pl-stage-done" if stage.done else ""
    named = stage.button if stage.button == stage.title else f"{stage.title}: {stage.button}"
    button = (
        f'<button type="button" class="{"pl-do" if now else "pl-small"}" data-id="{esc(stage.action)}" '
        f'aria-label="{esc(named)}"{" disabled" if out_of_reach else ""}>'
        f"{esc(stage.button)}{' →' if now else ''}</button>"
    )
    return (
        f'<li class="pl-stage-item {kind}"{" aria-current=step" if now else ""}>'
        f'<span class="pl-mark" aria-hidden="true">{mark}</span><div><h3>{esc(stage.title)}'
        f"{'<span class=pl-hidden> (done)</span>' if stage.done else ''}</h3>"
        f"<p>{esc(stage.said)}</p></div>{button}</li>"
    )


def beginnings(people: Sequence[PersonaSummary], chosen: str | None) -> str:
    """Characters that can be trained at once: each with a button that prepares its training, and one to look closer."""
    ready = [person for person in people if person.conversations or person.example]
    if not ready:
        return empty("Nobody is here yet", "Import a character card or write a character in the Persona tab.")
    return f'<div class="pl-gallery">{"".join(_beginning(person, person.id == chosen) for person in ready)}</div>'


def _beginning(person: PersonaSummary, chosen: bool) -> str:
    facts = " · ".join(
        part for part in (
            plural(person.conversations, "conversation") if person.conversations else "",
            plural(person.variants, "variant") if person.variants else "",
        ) if part
    )  # fmt: skip
    badge = chip("example") if person.example else ""
    return (
        f'<article class="pl-begin {"pl-mine" if chosen else ""}">{avatar(person.avatar, person.name, 72)}'
        f'<div class="pl-card-text"><h3>{esc(person.name)} {badge}</h3>'
        f'<p class="pl-card-line">{esc(person.tagline)}</p><p class="pl-soft">{esc(facts)}</p><p class="pl-buttons">'
        f'<button type="button" class="pl-do" data-id="train:{esc(person.id)}" '
        f'aria-label="Train {esc(person.name)}">Train →</button>'
        f'<button type="button" class="pl-small" data-id="persona:{esc(person.id)}" '
        f'aria-label="Look closer at {esc(person.name)}">Look closer</button></p></div></article>'
    )


def recent(runs: Sequence[RunView]) -> str:
    """The newest runs, each to be opened."""
    if not runs:
        return empty("No runs yet", "Trainings and evaluations appear here as soon as there are any.")
    rows = [
        [
            f'<button type="button" class="pl-rowbutton" data-id="run:{esc(run.id)}">{esc(run.name)}</button>',
            chip(run.status, TONES.get(run.status, "")) + _how_far(run),
            esc(when(run.created)),
        ]
        for run in runs[:SHOWN_RUNS]
    ]
    return table(["Run", "State", "Begun (UTC)"], rows, "Newest first")


def _how_far(run: RunView) -> str:
    if run.status not in ACTIVE or not run.total:
        return ""
    return f'<br><span class="pl-soft">{min(run.step / run.total, 1):.0%}</span>'


def variants(found: Sequence[VariantFacts]) -> str:
    """Variants with their headline numbers and what their newest evaluation says."""
    if not found:
        return empty("No variants yet", "A variant is what a training makes: a character you can talk to and score.")
    return f'<div class="pl-variants">{"".join(_variant(facts) for facts in found)}</div>'


def _variant(facts: VariantFacts) -> str:
    variant = facts.variant
    tiles = [_tile(metric) for metric in facts.numbers]
    if facts.loss_before is not None and facts.loss_after is not None:
        tiles.append((f"{facts.loss_before:.3f} → {facts.loss_after:.3f}", "validation loss"))
    drawn = "".join(f'<div class="pl-tile"><b>{esc(value)}</b><span>{esc(name)}</span></div>' for value, name in tiles)
    said = "".join(f"<li>{esc(line)}</li>" for line in facts.sentences)
    hint = "" if facts.report else '<p class="pl-soft">Not evaluated yet.</p>'
    return (
        f'<article class="pl-variant"><h3>{esc(variant.name)} {chip(variant.strategy)}</h3>'
        f'<p class="pl-soft">on {esc(_short(variant.base))} · {esc(when(variant.created))}</p>'
        f'<div class="pl-tiles">{drawn}</div>{f"<ul>{said}</ul>" if said else hint}<p class="pl-buttons">'
        f'<button type="button" class="pl-small" data-id="chat:{esc(variant.persona)}" '
        f'aria-label="Chat with {esc(variant.name)}">Chat</button>'
        f'<button type="button" class="pl-small" data-id="score:{esc(variant.persona)}" '
        f'aria-label="Evaluate {esc(variant.name)}">Evaluate</button></p></article>'
    )


def _short(base: str) -> str:
    """A base's id without the folders of this machine."""
    return base.replace("\\", "/").rsplit("/", 1)[-1] if base[:1] in ("/", "~") or base[1:2] == ":" else base


def _tile(metric: Metric) -> tuple[str, str]:
    unit = metric.unit or ""
    span = ""
    if metric.low is not None and metric.high is not None:
        span = f" [{measured(metric.low, unit)}, {measured(metric.high, unit)}]"
    name = metric.title or metric.metric.replace("_", " ")
    return (
        f"{measured(metric.value, unit)}{span}",
        f"{name.split(', ')[0]}{'' if unit in ('', 'share') else f', {unit}'}",
    )
