"""Evaluations as the page shows them: metrics with their intervals, and comparisons in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.types import RunView
from persona_lab.ui.html import empty, esc, table

DIRECTIONS = {"higher": "↑ higher is better", "lower": "↓ lower is better", "none": "neither way is better"}


def results(run: RunView, names: Mapping[str, str]) -> str:
    """The table of a finished evaluation and what it says.

    Args:
        names: of variants, by id.
    """
    if run.status != "done":
        return ""
    measured = run.result.get("variants") or []
    if not measured:
        return empty("Nothing was measured", "The log says why.")
    notes = "".join(f'<p class="pl-soft">{esc(note)}</p>' for note in run.result.get("notes") or [])
    parts = (metric_table(measured, names), comparison_list(run.result.get("comparisons") or [], names))
    return notes + failures(measured, names) + "".join(parts)


def metric_table(measured: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Metrics down, variants across.

    Args:
        measured: `result["variants"]` of an evaluate run.
    """
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for entry in measured:
        for metric in entry["metrics"]:
            cells.setdefault((metric["evaluator"], metric["metric"]), {})[entry["variant"]] = metric
    variants = [entry["variant"] for entry in measured]
    body = []
    for (_, name), found in cells.items():
        any_metric = next(iter(found.values()))
        body.append([_meaning(name, any_metric), *(_cell(found.get(variant)) for variant in variants)])
    head = ["What was measured", *(names.get(variant, variant) for variant in variants)]
    return table(head, body, "Values with their 95% intervals")


def _meaning(name: str, metric: Mapping[str, Any]) -> str:
    label = metric.get("title") or name.replace("_", " ").capitalize()
    note = metric.get("note") or ""
    unit = metric.get("unit") or ""
    reference = metric.get("reference")
    facts = [unit, DIRECTIONS.get(metric.get("better", "none"), "")]
    if reference is not None:
        facts.append(f"reference {reference:.3g}")
    line = " · ".join(fact for fact in facts if fact)
    said = f'<br><span class="pl-soft">{esc(note)}</span>' if note else ""
    return f'<b>{esc(label)}</b><br><span class="pl-soft">{esc(line)}</span>{said}'


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return '<span class="pl-soft">not measured</span>'
    if metric.get("value") is None:
        return f'<span class="pl-soft">withheld<br>{esc(_reason(metric))}</span>'
    interval = ""
    if metric.get("low") is not None and metric.get("high") is not None:
        interval = f"{metric['low']:.3f} to {metric['high']:.3f}"
    count = f"n = {metric['n']}" if metric.get("n") else ""
    detail = " · ".join(part for part in (interval, count) if part)
    return f'<b class="pl-value">{metric["value"]:.3f}</b><br><span class="pl-soft">{esc(detail)}</span>'


def _reason(metric: Mapping[str, Any]) -> str:
    """Why a value is withheld: what its note says last."""
    note = str(metric.get("note") or "")
    return note.split("Withheld:")[-1].strip()


def failures(measured: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """What could not be scored, and why; empty where everything could."""
    items = [
        f"<li><b>{esc(names.get(entry['variant'], entry['variant']))}</b>: {esc(failed['message'])}</li>"
        for entry in measured
        for failed in entry.get("failed", ())
    ]
    return f'<h4>What could not be scored</h4><ul class="pl-verdicts">{"".join(items)}</ul>' if items else ""


def comparison_list(comparisons: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """The verdicts, one sentence each."""
    if not comparisons:
        return ""
    items = []
    for found in comparisons:
        metric = f"{found['metric'].replace('_', ' ')}"
        pair = f"{names.get(found['a'], found['a'])} and {names.get(found['b'], found['b'])}"
        items.append(f'<li>{esc(found["verdict"])} <span class="pl-soft">({esc(metric)}; {esc(pair)})</span></li>')
    return f'<h4>What can be said</h4><ul class="pl-verdicts">{"".join(items)}</ul>'


def report_frame(document: str) -> str:
    """A report inside the page: isolated, so nothing in it can run."""
    return f'<iframe class="pl-report" title="Report" sandbox="" srcdoc="{esc(document)}"></iframe>'
