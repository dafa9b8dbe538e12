"""A report as plain data: what report.json holds, and what the page and the Markdown show. Draws and writes nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lab.evaluation.compare import ALPHA
from persona_lab.evaluation.headline import headline
from persona_lab.evaluation.history import History, repeat_command
from persona_lab.evaluation.wording import own_note, shared_note, words
from persona_lab.home import Home
from persona_lab.types import Comparison, ItemScore, Job, Machine, Metric, Persona, Probe, Variant, now

CONTROL = "wrong character (control)"
WORST = 3
"""Items shown of each variant and measure."""
_TO_READ = (
    ("held_out_gain", "specificity", "Least its own: lines on which it gained least over other people's"),
    ("voice", "percentile", "Least like the character, of what it wrote"),
    ("break_character", "aligned", "Out of character, under attack"),
    ("facts", "margin", "Facts it has wrong, or nearly"),
)
_LABELS = ("aligned", "minor", "off")
_AFTER = re.compile(r"g_at_(\d+)")


@dataclass(frozen=True)
class Evaluated:
    """Everything a report is made of."""

    job: Job
    persona: Persona
    machine: Machine
    home: Home
    variants: Sequence[Variant]
    metrics: Mapping[str, Sequence[Metric]]
    """Of each variant, by its id."""
    failed: Mapping[str, Sequence[Mapping[str, str]]]
    comparisons: Sequence[Comparison]
    probes: Sequence[Probe]
    samples: Sequence[tuple[Probe, Mapping[str, str]]]
    """Probes with each variant's reply, by its id."""
    notes: Sequence[str] = ()
    """What was left out of the run, and why, for people."""

    def metric(self, variant: Variant, evaluator: str, name: str) -> Metric | None:
        """One metric of a variant, or None where it was not asked or is withheld."""
        for metric in self.metrics.get(variant.id, ()):
            if (metric.evaluator, metric.metric) == (evaluator, name):
                return metric if metric.value is not None else None
        return None


def build_document(evaluated: Evaluated, histories: Mapping[str, History], folder: Path) -> dict[str, Any]:
    """Everything the report says; `folder` is named in the commands that repeat it."""
    job, labels = evaluated.job, {v.id: _label(v) for v in evaluated.variants}
    return {
        "persona": {"id": evaluated.persona.id, "name": evaluated.persona.name},
        "created": now(),
        "run": job.id,
        "base": sorted({v.base for v in evaluated.variants}),
        "machine": evaluated.machine.model_dump(mode="json"),
        "dataset": job.dataset_id,
        "seed": job.seed,
        "quick": job.quick,
        "probes": {kind: sum(p.kind == kind for p in evaluated.probes) for kind in ("reply", "fact", "adversarial")},
        "variants": [_variant(v, i) for i, v in enumerate(evaluated.variants)],
        "headline": headline(evaluated.variants, evaluated.metrics, evaluated.comparisons),
        "evaluators": _evaluators(evaluated),
        "notes": list(evaluated.notes),
        "failed": [{"variant": labels[v], **failure} for v, rows in evaluated.failed.items() for failure in rows],
        "comparisons": _comparisons(evaluated, labels),
        "plane": _plane(evaluated),
        "map": _map(evaluated),
        "breaks": _breaks(evaluated),
        "drift": _drift(evaluated),
        "traits": _traits(evaluated),
        "costs": [{"name": labels[v.id], **histories[v.id].cost(v)} for v in evaluated.variants],
        "worst": _worst(evaluated),
        "samples": [_sample(probe, replies, evaluated) for probe, replies in evaluated.samples],
        "repeat": _commands(evaluated, folder),
    }


def _label(variant: Variant) -> str:
    return f"{variant.name}: {CONTROL}" if variant.control else variant.name


def _drawn_name(variant: Variant) -> str:
    """A name short enough for a drawing that still says what a control is."""
    if not variant.control:
        return variant.name
    return f"{variant.name if len(variant.name) <= 12 else variant.name[:11] + '…'} (control)"


def _variant(variant: Variant, index: int) -> dict[str, Any]:
    keys = ("id", "name", "strategy", "base", "kind", "fingerprint", "dataset", "seed", "created", "run", "control")
    role = CONTROL if variant.control else variant.strategy
    shown = {"label": _label(variant), "role": role, "drawn": _drawn_name(variant), "index": index}
    return {key: getattr(variant, key) for key in keys} | shown


# --- the table ------------------------------------------------------------------------------------


def _evaluators(evaluated: Evaluated) -> list[dict[str, Any]]:
    """A group an evaluator, a row a metric, in the order evaluators gave them, a cell for each variant."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for variant in evaluated.variants:
        for metric in evaluated.metrics.get(variant.id, ()):
            row = groups.setdefault(metric.evaluator, {}).setdefault(metric.metric, _row(metric))
            row["cells"][variant.id] = metric.model_dump(include={"value", "low", "high", "n", "note", "reference"})
    for row in (row for rows in groups.values() for row in rows.values()):
        row["note"] = shared_note([cell["note"] for cell in row["cells"].values()])
        for cell in row["cells"].values():
            cell["why"] = own_note(cell["note"], row["note"]) if cell["value"] is None else ""
    names = {v.id: _label(v) for v in evaluated.variants}
    return [_group(evaluator, list(rows.values()), names) for evaluator, rows in groups.items()]


def _row(metric: Metric) -> dict[str, Any]:
    kept = metric.model_dump(include={"evaluator", "metric", "unit", "better", "reference", "note"})
    compared = metric.compared and metric.better != "none"
    return {**kept, "title": metric.title or words(metric.metric), "compared": compared, "cells": {}}


def _group(evaluator: str, rows: list[dict[str, Any]], names: Mapping[str, str]) -> dict[str, Any]:
    """`rows`: what variants are compared on, or all where that is nothing; `more`: second views; `remarks`."""
    main = [row for row in rows if row["compared"]] or rows
    more = [row for row in rows if row not in main]
    remarks = [remark for row in [*main, *more] for remark in _remarks(row, names)]
    return {"evaluator": evaluator, "title": words(evaluator), "rows": main, "more": more, "remarks": remarks}


def _remarks(row: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, str]]:
    """What a metric's notes say of single variants, beyond what they say of all."""
    said: dict[str, list[str]] = {}
    for variant, cell in row["cells"].items():
        if cell["value"] is not None and (rest := own_note(cell["note"], row["note"])):
            said.setdefault(rest, []).append(names[variant])
    return [{"title": row["title"], "of": ", ".join(of), "text": text} for text, of in said.items()]


def _comparisons(evaluated: Evaluated, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    kinds = {(m.evaluator, m.metric): m for found in evaluated.metrics.values() for m in found}
    rows = []
    for c in evaluated.comparisons:
        metric = kinds[c.evaluator, c.metric]
        rows.append(
            {
                **c.model_dump(mode="json"),
                "a_name": labels[c.a],
                "b_name": labels[c.b],
                "title": metric.title or words(c.metric),
                "unit": metric.unit,
                "told_apart": c.p_holm < ALPHA,
            }
        )
    return rows


# --- what the drawings show -----------------------------------------------------------------------


def _spread(metric: Metric) -> dict[str, Any]:
    return metric.model_dump(include={"value", "low", "high"})


def _plane(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Learning (specificity) and forgetting (KL on generic text), where both were measured."""
    points = []
    for variant in evaluated.variants:
        learnt = evaluated.metric(variant, "held_out_gain", "specificity")
        moved = evaluated.metric(variant, "forgetting", "kl_text")
        if learnt is not None and moved is not None:
            points.append({"variant": variant.id, "specificity": _spread(learnt), "kl_text": _spread(moved)})
    return points


def _map(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Of each variant, ||dW|| / ||W|| of every matrix with its layer and kind."""
    maps = []
    for variant in evaluated.variants:
        metric = evaluated.metric(variant, "geometry", "relative_update")
        if metric is not None and metric.items:
            cells = [{"layer": i.cluster, "kind": i.note or i.id, "value": i.value} for i in metric.items]
            maps.append({"variant": variant.id, "cells": cells})
    return maps


def _breaks(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Shares aligned, minor and off of each variant, then of real lines and of other people's."""
    rows = []
    for variant in evaluated.variants:
        rows.append({"name": _drawn_name(variant), "variant": variant.id, **_shares(evaluated, variant, "")})
    for prefix, name in (("real_", "its real lines"), ("others_", "other people's lines")):
        found = [_shares(evaluated, variant, prefix) for variant in evaluated.variants]
        best = next((shares for shares in found if shares["aligned"] is not None), None)
        if best is not None:
            rows.append({"name": name, "variant": "", **best})
    return [row for row in rows if row["aligned"] is not None]


def _shares(evaluated: Evaluated, variant: Variant, prefix: str) -> dict[str, Any]:
    metrics = {label: evaluated.metric(variant, "break_character", prefix + label) for label in _LABELS}
    of = max((m.n for m in metrics.values() if m is not None), default=0)
    return {**{label: m.value if m is not None else None for label, m in metrics.items()}, "n": of}


def _drift(evaluated: Evaluated) -> list[dict[str, Any]]:
    """The gain after so many turns; the base has none by definition."""
    lines = []
    for variant in evaluated.variants:
        levels: list[dict[str, Any]] = [
            {"turns": int(found[1]), **_spread(metric)}
            for metric in evaluated.metrics.get(variant.id, ())
            if metric.evaluator == "drift" and metric.value is not None and (found := _AFTER.fullmatch(metric.metric))
        ]
        if levels and variant.kind != "base":
            levels.sort(key=lambda level: int(level["turns"]))
            lines.append({"variant": variant.id, "levels": levels})
    return lines


def _traits(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Of each trait that was read, where every variant stands, then the real lines and the card's own."""
    named = {m.metric: m for found in evaluated.metrics.values() for m in found if m.evaluator == "traits"}
    rows = []
    for name, kind in named.items():
        if "." in name or all(evaluated.metric(v, "traits", name) is None for v in evaluated.variants):
            continue
        lines: list[dict[str, Any]] = []
        for variant in evaluated.variants:
            metric = evaluated.metric(variant, "traits", name)
            if metric is not None:
                lines.append({"name": _drawn_name(variant), "variant": variant.id, **_spread(metric)})
        for part, who in (("real", "its real lines"), ("card", "the card's own lines")):
            found = [evaluated.metric(variant, "traits", f"{name}.{part}") for variant in evaluated.variants]
            best = next((metric for metric in found if metric is not None), None)
            if best is not None:
                lines.append({"name": who, "variant": "", **_spread(best)})
        rows.append({"trait": name, "title": kind.title or words(name), "unit": kind.unit, "lines": lines})
    return rows


# --- what to read ---------------------------------------------------------------------------------


def _worst(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Of each trained or prompted variant, the items on which it did worst, with what was asked."""
    probes = {probe.id: probe for probe in evaluated.probes}
    groups = []
    for variant in evaluated.variants:
        if variant.kind == "base" or variant.control:
            continue
        for evaluator, name, title in _TO_READ:
            metric = evaluated.metric(variant, evaluator, name)
            lowest = _lowest(metric, evaluator) if metric is not None else []
            if metric is not None and lowest:
                items = [_item(item, probes.get(item.id), evaluator) for item in lowest]
                head = {"variant": variant.id, "name": variant.name, "evaluator": evaluator, "metric": name}
                groups.append({**head, "title": title, "unit": metric.unit, "items": items})
    return groups


def _lowest(metric: Metric, evaluator: str) -> list[ItemScore]:
    """The lowest, one a cluster; of yes/no items only those that failed."""
    failed = [item for item in metric.items if evaluator != "break_character" or item.value < 1]
    by_cluster: dict[str, ItemScore] = {}
    for item in sorted(failed, key=lambda item: item.value):
        by_cluster.setdefault(item.cluster, item)
    return list(by_cluster.values())[:WORST]


def _item(item: ItemScore, probe: Probe | None, evaluator: str) -> dict[str, Any]:
    wrote = item.text if evaluator in ("voice", "break_character") else ""
    asked = probe.messages[-1].content if probe else (item.text if not wrote else "")
    other = probe.other if probe and evaluator == "held_out_gain" else ""
    said = {"asked": asked, "true": probe.reply if probe else "", "other": other, "wrote": wrote}
    return {"id": item.id, "value": item.value, **said, "note": item.note}


def _sample(probe: Probe, replies: Mapping[str, str], evaluated: Evaluated) -> dict[str, Any]:
    written = [
        {"variant": v.id, "name": _label(v), "index": index, "reply": replies[v.id]}
        for index, v in enumerate(evaluated.variants)
        if v.id in replies  # a variant whose weights are damaged writes nothing
    ]
    return {"prompt": probe.messages[-1].content, "true": probe.reply, "replies": written}


def _commands(evaluated: Evaluated, folder: Path) -> list[str]:
    trained = [command for v in evaluated.variants if (command := repeat_command(v, evaluated.home))]
    asked = [*(v.id for v in evaluated.variants), *_options(evaluated)]
    return [
        *trained,
        shlex.join(["persona-lab", "eval", *asked]),
        shlex.join(["persona-lab", "compare", *asked, "--out", folder.name]),
    ]


def _options(evaluated: Evaluated) -> list[str]:
    job = evaluated.job
    options = ["--persona", evaluated.persona.id] if any(v.control for v in evaluated.variants) else []
    options += ["--quick"] if job.quick else []
    options += ["--evaluators", ",".join(job.evaluators)] if job.evaluators else []
    for evaluator, settings in job.evaluator_settings.items():
        for key, value in settings.items():
            options += ["--set", f"{evaluator}.{key}={value}"]
    return options
