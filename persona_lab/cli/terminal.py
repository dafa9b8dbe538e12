"""What the command line shows: JSON documents, tables, progress and errors. Logs and progress go to standard error."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from persona_lab.errors import PersonaLabError
from persona_lab.events import AnyEvent
from persona_lab.types import PlanRow, RunView

PLAIN_SECONDS = 5.0


def print_json(data: Any) -> None:
    """Exactly one JSON document on standard output."""
    sys.stdout.write(json.dumps(_plain(data), ensure_ascii=False, indent=1) + "\n")
    sys.stdout.flush()


def _plain(data: Any) -> Any:
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json")
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    return data


def print_error(error: PersonaLabError) -> None:
    """One paragraph on standard error."""
    text = f"persona-lab: {error}"
    sys.stderr.write(textwrap.fill(text, width=100, break_long_words=False, break_on_hyphens=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """A table on standard output, or `empty`, which says what to do."""
    from rich.console import Console
    from rich.table import Table

    listed = [[_cell(value) for value in row] for row in rows]
    if not listed:
        print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in listed:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def print_plan(rows: Sequence[PlanRow]) -> None:
    """The plan as a table, then what speaks for the first, and what would make it fit where it does not."""
    table = [
        (r.rank, r.strategy, r.fits, _about(r), size(r.peak_memory_bytes), size(r.disk_bytes), r.reason) for r in rows
    ]
    print_table(("rank", "strategy", "fits", "time", "memory", "disk", "why"), table, "No strategies.")
    for row in rows[:1]:
        lines = [*row.evidence, *(f"{problem.message} {problem.fix}".strip() for problem in row.problems)]
        print("\n".join(f"  {line}" for line in [f"{row.title}:", *lines]))


def _about(row: PlanRow) -> str:
    """The time with its error bar."""
    low, high = row.seconds / row.uncertainty, row.seconds * row.uncertainty
    return f"{duration(row.seconds)} ({duration(low)} to {duration(high)})"


class Progress:
    """Shows a run's events on standard error: a live line in a terminal, a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = 0.0
        self._open_line = False
        self._phase = ""

    def __call__(self, event: AnyEvent) -> None:
        """Show one event."""
        if event.kind == "phase":
            self._phase = event.title
            self._line(f"{event.title} ...")
        elif event.kind == "step":
            self._step(event)
        elif event.kind == "validation":
            self._line(
                f"  validation loss {event.loss:.4f} after {event.step} steps{' (best so far)' if event.best else ''}"
            )
        elif event.kind == "sample":
            self._line(f"  > {event.prompt[:80]}\n    {event.reply[:160]}")
        elif event.kind == "log":
            self._line(f"  {'' if event.level == 'info' else event.level + ': '}{event.message}")

    def _step(self, event: Any) -> None:
        moment = time.monotonic()
        if not self._live and moment - self._last < PLAIN_SECONDS:
            return
        self._last = moment
        loss = f", loss {event.loss:.4f}" if event.loss is not None else ""
        left = f", {duration(event.eta_seconds)} left" if event.eta_seconds is not None else ""
        text = f"  {self._phase}: {event.step}/{event.total}{loss}{left}"
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text[:110]}")
            sys.stderr.flush()
            self._open_line = True
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        if self._open_line:
            sys.stderr.write("\r\x1b[K")
            self._open_line = False
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._open_line:
            sys.stderr.write("\n")


def run_document(run: RunView) -> dict[str, Any]:
    """What `train --json` prints: the promise of the command line."""
    head = {"run": run.id, "status": run.status, "variant": run.variant or None, "strategy": run.strategy}
    if run.status != "done":
        return head | {"base": run.base, "seed": run.seed, "cause": run.cause, "message": run.message, "fix": run.fix}
    hidden = ("artifact", "system", "strategy", "checksums")
    return head | {key: value for key, value in run.result.items() if key not in hidden}


def print_metrics(result: dict[str, Any]) -> None:
    """An evaluation as a table, a column a variant; then what is withheld, and what can and cannot be told apart."""
    from persona_lab.evaluation.compare import ALPHA

    entries = result.get("variants", ())
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        for metric in entry["metrics"]:
            rows.setdefault((metric["evaluator"], metric["metric"]), {})[entry["variant"]] = metric
    columns = ("measure", *(entry["variant"] for entry in entries), "unit", "better")
    table = [_metric_row(found, [entry["variant"] for entry in entries]) for found in rows.values()]
    print_table(columns, table, "Nothing was measured.")
    for note in result.get("notes", ()):
        print(f"Note: {note}")
    _print_gaps(rows.values(), entries)
    # what is different comes first; sorting keeps the order otherwise
    for comparison in sorted(result.get("comparisons", ()), key=lambda found: found["p_holm"] >= ALPHA):
        print(comparison["verdict"])


def _metric_row(found: dict[str, Any], variants: Sequence[str]) -> list[str]:
    first = next(iter(found.values()))
    return [_title(first), *(_metric_cell(found.get(variant)) for variant in variants), first["unit"], first["better"]]


def _title(metric: dict[str, Any]) -> str:
    return metric.get("title") or f"{metric['evaluator']}.{metric['metric']}"


def _metric_cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    if metric["value"] is None:
        return "withheld"
    span = f" [{metric['low']:.3f}, {metric['high']:.3f}]" if metric["low"] is not None else ""
    return f"{metric['value']:.3f}{span}\n  n = {metric['n']}"


def _print_gaps(rows: Iterable[dict[str, Any]], entries: Sequence[dict[str, Any]]) -> None:
    """What was withheld, each reason once, and what failed."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for found in rows:
        missing = {variant: metric for variant, metric in found.items() if metric["value"] is None}
        for metric in missing.values():
            which = "every variant" if len(missing) == len(found) else ", ".join(missing)
            titles = reasons.setdefault((metric["note"].split("Withheld:")[-1].strip(), which), [])
            titles += [_title(metric)] if _title(metric) not in titles else []
    for (reason, which), titles in reasons.items():
        print(f"Withheld for {which}: {'; '.join(titles)}. {reason}")
    for entry in entries:
        for failed in entry.get("failed", ()):
            print(f"{entry['variant']} failed: {failed['message']}")
