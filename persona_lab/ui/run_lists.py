"""The queue, the history's filters, and two runs compared, as HTML. From views and plain data; asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.types import RunView
from persona_lab.ui.html import duration, empty, esc, number, plural, size, table
from persona_lab.ui.small_charts import overlay

ALL = ""
STATES = ("running", "queued", "done", "failed", "cancelled", "interrupted")


def queue_list(waiting: Sequence[RunView]) -> str:
    """Runs that wait, next first, each with buttons; empty where none does."""
    if not waiting:
        return ""
    items = "".join(_waiting(run, number, len(waiting)) for number, run in enumerate(waiting, start=1))
    return f'<h4>Waiting: {plural(len(waiting), "run")}</h4><ol class="pl-queue">{items}</ol>'


def _waiting(run: RunView, number: int, count: int) -> str:
    buttons = "".join(
        f'<button type="button" class="pl-small" data-id="{action}:{esc(run.id)}" aria-label="{label} {esc(run.name)}"'
        f"{' disabled' if off else ''}>{mark}</button>"
        for action, label, mark, off in (
            ("up", "Sooner:", "↑", number == 1),
            ("down", "Later:", "↓", number == count),
            ("remove", "Remove from the queue:", "✕", False),
        )
    )
    return (
        f'<li data-run="{esc(run.id)}"><span><b>{esc(run.name)}</b> '
        f'<span class="pl-soft">{esc(run.strategy or run.kind)}</span></span>'
        f'<span class="pl-buttons">{buttons}</span></li>'
    )


def filtered(runs: Sequence[RunView], persona: str, strategy: str, state: str) -> list[RunView]:
    """Runs that pass every filter; ALL lets everything pass."""
    return [
        run
        for run in runs
        if persona in (ALL, run.persona) and strategy in (ALL, run.strategy) and state in (ALL, run.status)
    ]


def none_left(runs: Sequence[RunView], shown: Sequence[RunView]) -> str:
    """What to say where the filters leave nothing; empty else."""
    if shown or not runs:
        return ""
    return empty("No run passes these filters", f"There are {plural(len(runs), 'run')} in all: choose Any above.")


def comparison(found: Mapping[str, Any]) -> str:
    """What `Engine.compare_runs` gives: differences only, outcomes, and both curves in one frame."""
    a, b = found["a"]["name"], found["b"]["name"]
    if a == b:
        a, b = found["a"]["id"], found["b"]["id"]
    head = ["Setting", f"A: {a}", f"B: {b}"]
    rows = [[esc(row["setting"].replace("_", " ")), _said(row["a"]), _said(row["b"])] for row in found["differences"]]
    same = f'<p class="pl-soft">The same in both: {esc(", ".join(found["same"]))}.</p>' if found["same"] else ""
    settings = (
        table(head, rows, "What was set differently")
        if rows
        else "<p><b>Both were started with the same settings.</b></p>"
    )
    outcomes = [[esc(r["measure"].split(",")[0]), _told(r, "a"), _told(r, "b")] for r in found["outcomes"]]
    results = table(["Outcome", "A", "B"], outcomes, "What came of it") if outcomes else ""
    curves = overlay(
        [
            (name, found["curves"][side]["train"], found["curves"][side]["validation"])
            for side, name in (("a", a), ("b", b))
        ]
    )
    return f'<div class="pl-comparison">{settings}{same}{curves}{results}</div>'


def _said(value: Any) -> str:
    if value is None or value == "":
        return '<span class="pl-soft">–</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    return esc(f"{value:g}" if isinstance(value, float) else value)


def _told(row: Mapping[str, Any], side: str) -> str:
    value, measure = row[side], row["measure"]
    if value is None:
        return '<span class="pl-soft">–</span>'
    if isinstance(value, str):
        return esc(value)
    if "bytes" in measure:
        return esc(size(value))
    if measure == "seconds":
        return esc(duration(value))
    return esc(f"{value:.3f}" if isinstance(value, float) else number(value))
