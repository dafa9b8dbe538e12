"""Runs as the page shows them: state, progress, result, samples, log and history. From views to HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.events import Sample
from persona_lab.types import Change, PlanRow, RunView
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.html import chip, duration, empty, esc, number, size, table, when
from persona_lab.ui.notices import problem_box, title_of

ACTIVE = ("queued", "running")
TONES = {
    "queued": "",
    "running": "busy",
    "done": "good",
    "failed": "bad",
    "cancelled": "warn",
    "interrupted": "warn",
}
SHOWN_STEPS = 6
SHOWN_LINES = 200
SHOWN_RUNS = 20


def change_text(change: Change, strategy: str) -> str:
    """A change that needs less memory, in a few words for a button."""
    sets = [f"{key.replace('_', ' ')} {value}" for key, value in change.set.items()]
    return ", ".join([*([change.strategy] if change.strategy != strategy else []), *sets])


def status_line(run: RunView, picture: RunPicture) -> str:
    """State, phase, progress bar and time left."""
    share = min(run.step / run.total, 1) if run.total else 0.0
    if run.status == "done":
        share = 1.0
    parts = [run.phase if run.status == "running" else ""]
    if run.ending:
        parts[0] = "Ending; the best weights so far are kept"
    if run.total:
        parts.append(f"step {run.step:,} of {run.total:,}")
    if run.status == "running" and run.eta_seconds is not None:
        parts.append(f"about {duration(run.eta_seconds)} left")
    last = picture.last
    if run.status == "running" and last:
        if last.tokens_per_second:
            parts.append(f"{last.tokens_per_second:,.0f} tokens/s")
        if last.memory_bytes:
            parts.append(f"{size(last.memory_bytes)} memory")
    bar_class = f"pl-bar pl-bar-{TONES.get(run.status) or 'idle'}" + (
        " pl-bar-wait" if run.status == "running" and not run.total else ""
    )
    return (
        f'<div class="pl-status" data-run="{esc(run.id)}" data-status="{run.status}">'
        f"<h3>{esc(run.name)} {chip(run.status, TONES.get(run.status, ''))}</h3>"
        f'<div class="{bar_class}" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}"><i style="width:{share * 100:.1f}%"></i></div>'
        f'<p class="pl-soft">{esc(" · ".join(part for part in parts if part)) or "&nbsp;"}</p>'
        f"{_outcome(run, picture)}</div>"
    )


def _outcome(run: RunView, picture: RunPicture) -> str:
    if run.status in ("failed", "interrupted", "cancelled"):
        tone = "bad" if run.status == "failed" else "warn"
        title = title_of(run.cause or run.status)
        hint = run.fix or ("Press Resume to go on." if run.resumable else "")
        return problem_box(title, run.message or f"The run is {run.status}.", hint, tone)
    if run.status == "queued":
        return '<p class="pl-soft">Waiting for the run before it; it starts by itself.</p>'
    if run.status == "done" and run.kind == "train":
        return result_box(run.result, picture)
    return ""


def result_box(result: dict[str, Any], picture: RunPicture) -> str:
    """What a finished training did: did it change anything (in numbers and in words), and what did it cost."""
    loss = result.get("loss") or {}
    seconds = result.get("seconds") or {}
    tiles = []
    before, after = loss.get("validation_before"), loss.get("validation_after")
    if before is not None and after is not None:
        tiles.append((f"{before:.3f} → {after:.3f}", "validation loss"))
    if seconds.get("total"):
        tiles.append((duration(seconds["total"]), "in all"))
    if result.get("trainable_parameters"):
        tiles.append((number(result["trainable_parameters"]), "numbers trained"))
    if result.get("peak_memory_bytes"):
        tiles.append((size(result["peak_memory_bytes"]), "most memory"))
    if result.get("artifact_bytes"):
        tiles.append((size(result["artifact_bytes"]), "on disk"))
    drawn = "".join(f'<div class="pl-tile"><b>{esc(value)}</b><span>{esc(name)}</span></div>' for value, name in tiles)
    changed = result.get("changed") or ""
    tone = "warn" if changed.startswith(("No measurable", "There are no")) else "good"
    said = problem_box("Did it change anything?", changed, tone=tone) if changed else ""
    return f'{said}<div class="pl-tiles">{drawn}</div>{_heard(picture)}'


def _heard(picture: RunPicture) -> str:
    """One reply of the untrained model beside one of the kept weights; the same prompt and seed."""
    if not picture.pairs():
        return ""
    prompt, before, after = picture.pairs()[0]
    return (
        f'<div class="pl-heard"><p class="pl-soft">To the same words: {esc(prompt)}</p><div class="pl-pair">'
        f"<section><h4>Before</h4><blockquote>{esc(before)}</blockquote></section>"
        f"<section><h4>After</h4><blockquote>{esc(after)}</blockquote></section></div></div>"
    )


def samples(found: Sequence[Sample]) -> str:
    """Replies written during training, newest first, so that one sees the voice form."""
    if not found:
        return empty("No sample replies yet", "While it trains, the character answers now and then; you read it here.")
    steps = sorted({(sample.stage, sample.step) for sample in found}, key=lambda key: _order(found, key))[-SHOWN_STEPS:]
    blocks = []
    for stage, step in reversed(steps):
        said = "".join(
            f'<p class="pl-soft">{esc(sample.prompt)}</p><blockquote>{esc(sample.reply)}</blockquote>'
            for sample in found
            if (sample.stage, sample.step) == (stage, step)
        )
        kept = any(sample.kept for sample in found if (sample.stage, sample.step) == (stage, step))
        title = "before training" if step == 0 else f"after step {step}{', the weights that are kept' if kept else ''}"
        blocks.append(f'<section class="pl-sample"><h4>{esc(title)}</h4>{said}</section>')
    return f'<div class="pl-samples">{"".join(blocks)}</div>'


def _order(found: Sequence[Sample], key: tuple[str, int]) -> int:
    return next(i for i, sample in enumerate(found) if (sample.stage, sample.step) == key)


def log_text(picture: RunPicture) -> str:
    """The log as plain lines, phases marked."""
    marks = {"phase": "▸ ", "warning": "! ", "error": "✗ "}
    lines = [f"{marks.get(level, '  ')}{text}" for level, text in picture.lines[-SHOWN_LINES:]]
    if picture.details:
        lines += ["", picture.details]
    return "\n".join(lines)


def history(runs: Sequence[RunView], chosen: str) -> str:
    """Runs, newest first; each can be clicked to be shown. Waiting ones say their place in the queue."""
    if not runs:
        return empty("No runs yet", "Press Start training; every run stays here with its curve, also after a restart.")
    waiting = [run.id for run in sorted(runs, key=lambda run: run.created) if run.status == "queued"]
    body = []
    for run in runs[:SHOWN_RUNS]:
        status = f"queued, number {waiting.index(run.id) + 1}" if run.id in waiting else run.status
        mark = ' aria-current="true"' if run.id == chosen else ""
        body.append(
            [
                f'<button type="button" class="pl-rowbutton" data-id="{esc(run.id)}"{mark}>{esc(run.name)}</button>',
                chip(status, TONES.get(run.status, "")),
                esc(run.strategy or run.kind),
                _gain(run),
                esc(when(run.created)),
            ]
        )
    return table(["Run", "State", "What", "Validation loss", "Begun (UTC)"], body, "Runs, newest first")


def _gain(run: RunView) -> str:
    loss = run.result.get("loss") or {}
    before, after = loss.get("validation_before"), loss.get("validation_after")
    return f"{before:.3f} → {after:.3f}" if before is not None and after is not None else "–"


def newest_shown(runs: Sequence[RunView], kinds: Sequence[str]) -> str:
    """The run to show without being told: the one in progress, else the newest; empty if there is none."""
    mine = [run for run in runs if run.kind in kinds]
    active = [run for run in mine if run.status == "running"] or [run for run in mine if run.status == "queued"]
    return (active or mine)[0].id if mine else ""


def strategy_choices(
    rows: Sequence[PlanRow], summaries: Mapping[str, str], needs: Mapping[str, str] | None = None, asked: bool = True
) -> list[tuple[str, str]]:
    """(text of the card, strategy id): title, why, and what it costs here. The style sheet sets line one bold.

    Args:
        needs: by strategy id, what it needs before it can start, in words (`a variant`).
        asked: False while the costs are still being worked out.
    """
    choices = []
    for row in rows:
        why = summaries.get(row.strategy) or row.reason
        costs = cost(row) if asked else "working out what it costs here …"
        text = f"{row.title}{_badge(row, needs or {})}\n{why if row.fits else row.reason}\n{costs}"
        choices.append((text, row.strategy))
    return choices


def _badge(row: PlanRow, needs: Mapping[str, str]) -> str:
    if row.fits:
        return " ★ recommended" if row.rank == 1 else ""
    if row.blocked_by == "settings":
        return f" — needs {needs[row.strategy]}" if row.strategy in needs else " — not ready yet"
    return " — does not fit" if row.blocked_by == "machine" else " — cannot be asked"


def cost(row: PlanRow) -> str:
    """A plan's numbers in one line; empty where there are none."""
    if not (row.seconds or row.peak_memory_bytes):
        return ""
    parts = [f"{_span(row)}", f"{size(row.peak_memory_bytes)} memory", f"{size(row.disk_bytes)} disk"]
    if row.trainable_parameters:
        parts.append(f"{number(row.trainable_parameters)} numbers trained")
    return " · ".join(parts)


def _span(row: PlanRow) -> str:
    """The time with its error bar, in few words."""
    low, high = duration(row.seconds / row.uncertainty), duration(row.seconds * row.uncertainty)
    return f"about {duration(row.seconds)}" if low == high else f"about {duration(row.seconds)} ({low} to {high})"


def plan_box(row: PlanRow) -> str:
    """What the chosen strategy with these settings will cost here, before the button is pressed."""
    low, high = row.seconds / row.uncertainty, row.seconds * row.uncertainty
    least, most = row.peak_memory_bytes / row.memory_uncertainty, row.peak_memory_bytes * row.memory_uncertainty
    tiles = "".join(
        f'<div class="pl-tile"><b>{esc(value)}</b><span>{esc(name)}</span></div>'
        for value, name in (
            (duration(row.seconds), f"time ({duration(low)} to {duration(high)})"),
            (size(row.peak_memory_bytes), f"memory ({size(least)} to {size(most)})"),
            (size(row.disk_bytes), "disk"),
            (number(row.trainable_parameters), "numbers trained"),
        )
    )
    refused = "Does not fit" if row.blocked_by == "machine" else "Not ready yet"
    kinds = {"error": (refused, "bad"), "warning": ("Worth knowing", "warn")}
    boxes = "".join(
        problem_box(kinds[problem.severity][0], problem.message, problem.fix, kinds[problem.severity][1])
        for problem in row.problems
    )
    known = "".join(f'<p class="pl-soft">{esc(line)}</p>' for line in row.evidence)
    fits = chip("fits", "good") if row.fits else chip("does not fit", "bad") if row.blocked_by == "machine" else ""
    if row.fits and any(problem.field == "batch_size" for problem in row.problems):
        fits = chip("may not fit", "warn")
    return (
        f'<div class="pl-plan" data-strategy="{esc(row.strategy)}"><h4>On this machine {fits}</h4>'
        f'<div class="pl-tiles">{tiles}</div>{boxes}{known}</div>'
    )
