"""Writes what `bench-strategies` measured: a Markdown page for people and the same numbers as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from persona_lab.bench.measure import CONTROL, Measured
from persona_lab.home import write_atomic
from persona_lab.types import Comparison, Machine, Metric, now

QUALITY = (
    ("held_out_gain", "specificity", "specificity, nats/byte ↑"),
    ("reply_ranking", "voice_wins_g", "voice ranking, wins ↑"),
    ("reply_ranking", "relevance_wins_g", "relevance ranking, wins ↑"),
    ("voice", "percentile", "voice of its replies, percentile ↑"),
    ("facts", "accuracy", "facts ↑"),
    ("held_out_gain", "bpb_variant", "held-out bits/byte ↓"),
)
CHARACTER = (
    ("break_character", "aligned", "aligned ↑"),
    ("break_character", "minor", "minor ↓"),
    ("break_character", "off", "off ↓"),
    ("drift", "fade", "fade over 16 turns, nats/byte ↓"),
    ("parroting", "copying", "copying"),
)
PRICE = (
    ("forgetting", "kl_text", "KL on text, nats/token ↓"),
    ("forgetting", "kl_instructions", "KL on instructions ↓"),
    ("forgetting", "bpb_change_text", "change of bits/byte on text ↓"),
    ("geometry", "relative_update", "relative size of the update"),
    ("geometry", "intruder_dimensions", "intruder dimensions"),
)
_REFERENCES = (("real", "its real lines"), ("others", "other people's lines"))


def write_page(
    measured: Sequence[Measured],
    combined: Mapping[str, Mapping[str, Sequence[Metric]]],
    comparisons: Mapping[str, Sequence[Comparison]],
    machine: Machine,
    commands: Sequence[str],
    out: Path,
) -> dict[str, str]:
    """Write measured.md and measured.json into `out`; each is replaced whole.

    Args:
        combined: of each persona, the metrics of each group over its seeds.
        comparisons: of each persona, between groups.
        commands: what makes this page again.

    Raises:
        DiskFull
    """
    paths = {"markdown": out / "measured.md", "json": out / "measured.json"}
    document = {
        "created": now(),
        "machine": machine.model_dump(mode="json"),
        "commands": list(commands),
        "personas": [_plain(m, combined[m.persona], comparisons[m.persona]) for m in measured],
    }
    write_atomic(paths["json"], json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    lines = _head(machine, commands)
    for part in measured:
        lines += _section(part, combined[part.persona], comparisons[part.persona])
    write_atomic(paths["markdown"], "\n".join(lines).rstrip() + "\n")
    return {kind: str(path) for kind, path in paths.items()}


def _plain(
    part: Measured, combined: Mapping[str, Sequence[Metric]], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    return {
        "persona": part.persona,
        "name": part.name,
        "dataset": part.dataset.model_dump(mode="json", include={"id", "counts", "fingerprint", "format"}),
        "wrong_character": part.control_of,
        "problems": part.problems,
        "groups": {
            group: {
                "seeds": len(part.groups[group]),
                "metrics": [m.model_dump(mode="json", exclude={"items"}) for m in metrics],
                "costs": part.costs.get(group, []),
                "losses": part.losses.get(group, []),
            }
            for group, metrics in combined.items()
        },
        "comparisons": [c.model_dump(mode="json") for c in comparisons],
    }


def _head(machine: Machine, commands: Sequence[str]) -> list[str]:
    return [
        "# Measured: strategies on real characters",
        "",
        f"Written by `persona-lab bench-strategies` on {now()[:10]}; {_machine(machine)}. To measure it again:",
        "",
        "```sh",
        *commands,
        "```",
        "",
        "Values are means over training seeds, with 95% intervals that cover both the choice of held-out lines and",
        "the luck of the seed (crossed bootstrap). `wrong character` is a model trained on somebody else and scored",
        "here under this card: a measure that lets it win would measure genre. What each number means, and what it",
        "does not: [evaluation.md](evaluation.md). The same as JSON: [measured.json](measured.json).",
        "Times are each run's own clock, whatever else the machine did meanwhile: the lowest is the fairest.",
        "",
    ]


def _section(part: Measured, combined: Mapping[str, Sequence[Metric]], comparisons: Sequence[Comparison]) -> list[str]:
    counts = part.dataset.counts
    lines = [
        f"## {part.name}",
        "",
        f"Dataset `{part.dataset.id}`: {counts.get('train', 0)} conversations to train on, "
        f"{counts.get('validation', 0)} to validate, {counts.get('test', 0)} held out, "
        f"{counts.get('others', 0)} lines of other speakers."
        + (f" Wrong character: {part.control_of}." if part.control_of else ""),
        "",
        "### Is it the character?",
        "",
        *_table(combined, QUALITY, part),
        "### Does it stay the character?",
        "",
        *_table(combined, CHARACTER, part, references=True),
        "### What did it cost the model?",
        "",
        *_table(combined, PRICE, part),
        "### What did it cost to make?",
        "",
        *_costs(part),
        "### What can be told apart",
        "",
        *_verdicts(comparisons),
    ]
    if part.problems:
        lines += ["### What failed", "", *(f"- {_cell(problem)}" for problem in part.problems), ""]
    return lines


def _table(
    combined: Mapping[str, Sequence[Metric]],
    columns: Sequence[tuple[str, str, str]],
    part: Measured,
    references: bool = False,
) -> list[str]:
    """One row a group; columns that nobody has are left out, and why something is withheld stands below."""
    found = {g: {(m.evaluator, m.metric): m for m in metrics} for g, metrics in combined.items()}
    shown = [c for c in columns if any((c[0], c[1]) in metrics for metrics in found.values())]
    if not shown:
        return ["Not measured.", ""]
    lines = ["| | seeds | " + " | ".join(title for *_, title in shown) + " |", "|---|---|" + "---|" * len(shown)]
    withheld: dict[str, None] = {}
    for group, metrics in found.items():
        cells = [_value(metrics.get((evaluator, metric))) for evaluator, metric, _ in shown]
        lines.append(f"| {group} | {len(part.groups[group])} | {' | '.join(cells)} |")
        for evaluator, metric, _ in shown:
            entry = metrics.get((evaluator, metric))
            if entry is not None and entry.value is None:
                withheld[f"{metric.replace('_', ' ')}: {_reason(entry.note)}"] = None
    if references:
        lines += _reference_rows(found, shown)
    return [*lines, "", *(f"- Withheld: {_cell(reason)}" for reason in withheld), *([""] if withheld else [])]


def _reference_rows(
    found: Mapping[str, Mapping[tuple[str, str], Metric]], shown: Sequence[tuple[str, str, str]]
) -> list[str]:
    """The same measures on real lines and on other people's, which say what a share means."""
    any_group = next(iter(found.values()), {})
    rows = []
    for prefix, title in _REFERENCES:
        cells = [_value(any_group.get((evaluator, f"{prefix}_{metric}"))) for evaluator, metric, _ in shown]
        if any(cell != "–" for cell in cells):
            rows.append(f"| *{title}* | | {' | '.join(cells)} |")
    return rows


def _value(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    if metric.value is None:
        return "withheld"
    interval = "" if metric.low is None or metric.high is None else f" [{_number(metric.low)}, {_number(metric.high)}]"
    return f"{_number(metric.value)}{interval}"


def _number(value: float) -> str:
    text = f"{value:.0f}" if value == int(value) and abs(value) >= 2 else f"{value:.3f}"
    if 0 < abs(value) < 0.01:
        text = f"{value:.4f}"
    return text.replace("-", "−")


def _reason(note: str) -> str:
    return note.split("Withheld:")[-1].strip()


def _costs(part: Measured) -> list[str]:
    lines = [
        "| | trainable parameters | peak memory | time | on disk | validation loss before → after |",
        "|---|---|---|---|---|---|",
    ]
    for strategy, costs in part.costs.items():
        if not costs:
            continue
        losses = part.losses.get(strategy, [])
        cells = (
            strategy,
            _span([c.get("trainable_parameters") for c in costs], lambda v: f"{v / 1e6:.1f} M"),
            _span([c.get("peak_memory_bytes") for c in costs], lambda v: f"{v / 1e9:.1f} GB"),
            _span([c.get("seconds") for c in costs], lambda v: f"{v:.0f} s"),
            _span([c.get("artifact_bytes") for c in costs], lambda v: f"{v / 1e6:.0f} MB"),
            f"{_span([row.get('validation_before') for row in losses], lambda v: f'{v:.3f}')} → "
            f"{_span([row.get('validation_after') for row in losses], lambda v: f'{v:.3f}')}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _span(values: Sequence[float | None], text: Any) -> str:
    """`mean (lowest to highest)` of what was recorded."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = text(min(known)), text(max(known))
    return low if low == high else f"{text(fmean(known))} ({low} to {high})"


def _verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    shown = {(evaluator, metric) for evaluator, metric, _ in (*QUALITY, *CHARACTER, *PRICE)}
    rows = [c for c in comparisons if (c.evaluator, c.metric) in shown]
    apart = [c for c in rows if c.p_holm < 0.05 and "cannot be told apart" not in c.verdict]
    same = [c for c in rows if c not in apart]
    against = [c for c in apart if CONTROL in (c.a, c.b)]
    told = [c for c in apart if c not in against]
    lines = [
        "All comparisons are corrected together by Holm's method, those with the wrong character by themselves.",
        "",
    ]
    lines += [f"- {_cell(c.verdict)}" for c in told] or ["- Nothing: no difference is beyond chance."]
    if against:
        lines += ["", "Against the wrong character, which tests the measures:", ""]
        lines += [f"- {_cell(c.verdict)}" for c in against]
    if same:
        lines += ["", "<details><summary>What cannot be told apart</summary>", ""]
        lines += [*(f"- {_cell(c.verdict)}" for c in same), "", "</details>"]
    return [*lines, ""]


def _cell(text: str) -> str:
    """User text on one line, harmless in Markdown."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").split())


def _machine(machine: Machine) -> str:
    name = machine.device_name or platform.processor() or platform.machine()
    return f"{name}, {machine.cores or os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
