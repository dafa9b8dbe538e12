"""Evaluations as the page shows them: metrics with their intervals, and comparisons in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.evaluation.compare import ALPHA
from persona_lab.evaluation.wording import number, own_note, shared_note, words
from persona_lab.types import RunView
from persona_lab.ui.html import empty, esc, plural, table

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
    parts = (metric_table(measured, names), comparison_list(run.result.get("comparisons") or []))
    return notes + failures(measured, names) + "".join(parts)


def metric_table(measured: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Metrics down, variants across; second views of the same things folded away.

    Args:
        measured: `result["variants"]` of an evaluate run.
    """
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for entry in measured:
        for metric in entry["metrics"]:
            cells.setdefault((metric["evaluator"], metric["metric"]), {})[entry["variant"]] = metric
    variants = [entry["variant"] for entry in measured]
    head = ["What was measured", *(names.get(variant, variant) for variant in variants)]
    main: list[list[str]] = []
    more: list[list[str]] = []
    for (_, name), found in cells.items():
        row = [_meaning(name, found), *(_cell(found.get(variant), found) for variant in variants)]
        (main if _is_compared(next(iter(found.values()))) else more).append(row)
    if not main:
        return table(head, more, "Values with their 95% intervals")
    folded = table(head, more, "Second views, diagnostics, and what to compare with") if more else ""
    return table(head, main, "Values with their 95% intervals") + _folded(f"{len(more)} more measures", folded)


def _is_compared(metric: Mapping[str, Any]) -> bool:
    return bool(metric.get("compared", True)) and metric.get("better") != "none"


def _folded(title: str, content: str) -> str:
    return f'<details class="pl-more"><summary>{esc(title)}</summary>{content}</details>' if content else ""


def _meaning(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    metric = next(iter(found.values()))
    label = metric.get("title") or words(name)
    note = _shared(found)
    reference = metric.get("reference")
    facts = [metric.get("unit") or "", DIRECTIONS.get(metric.get("better", "none"), "")]
    if reference is not None:
        facts.append(f"reference {number(reference, metric.get('unit', ''))}")
    line = " · ".join(fact for fact in facts if fact)
    said = f'<br><span class="pl-soft">{esc(note)}</span>' if note else ""
    # wide enough to be read beside four variants; the table scrolls where they do not fit
    return f'<div style="min-width:14rem"><b>{esc(label)}</b><br><span class="pl-soft">{esc(line)}</span>{said}</div>'


def _shared(found: Mapping[str, Mapping[str, Any]]) -> str:
    return shared_note([str(metric.get("note") or "") for metric in found.values()])


def _cell(metric: Mapping[str, Any] | None, found: Mapping[str, Mapping[str, Any]]) -> str:
    if metric is None:
        return '<span class="pl-soft">not measured</span>'
    if metric.get("value") is None:
        reason = own_note(str(metric.get("note") or ""), _shared(found))  # empty: said beside the name, for all
        return f'<span class="pl-soft">withheld{"<br>" if reason else ""}{esc(reason)}</span>'
    unit = metric.get("unit") or ""
    span = ""
    if metric.get("low") is not None and metric.get("high") is not None:
        span = f"{number(metric['low'], unit)} to {number(metric['high'], unit)}"
    count = f"n = {metric['n']}" if metric.get("n") else ""
    detail = "<br>".join(esc(part) for part in (span, count) if part)
    said = f'<span class="pl-soft" style="white-space:nowrap">{detail}</span>'
    return f'<b class="pl-value">{number(metric["value"], unit)}</b><br>{said}'


def failures(measured: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """What could not be scored, and why; empty where everything could."""
    items = [
        f"<li><b>{esc(names.get(entry['variant'], entry['variant']))}</b>: {esc(failed['message'])}</li>"
        for entry in measured
        for failed in entry.get("failed", ())
    ]
    return f'<h4>What could not be scored</h4><ul class="pl-verdicts">{"".join(items)}</ul>' if items else ""


def comparison_list(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts, one sentence each: what is different, then, folded, what cannot be told apart."""
    if not comparisons:
        return ""
    apart = [found for found in comparisons if found["p_holm"] < ALPHA]
    rest = [found for found in comparisons if found["p_holm"] >= ALPHA]
    said = _verdicts(apart) if apart else '<p class="pl-soft">None of the differences is beyond chance.</p>'
    folded = _folded(f"{plural(len(rest), 'comparison')} that cannot be told apart", _verdicts(rest))
    return f"<h4>What can be said</h4>{said}{folded if rest else ''}"


def _verdicts(comparisons: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(f"<li>{esc(found['verdict'])}</li>" for found in comparisons)
    return f'<ul class="pl-verdicts">{items}</ul>'


def report_frame(document: str) -> str:
    """A report inside the page: isolated, so nothing in it can run."""
    return f'<iframe class="pl-report" title="Report" sandbox="" srcdoc="{esc(document)}"></iframe>'
