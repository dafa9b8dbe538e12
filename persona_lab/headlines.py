"""What is known of each variant in a few numbers: its losses, how specific it is, and what its newest report says.

Reads evaluations kept on disk; a sentence is said only where `evaluation.headline` says it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persona_lab.evaluation.headline import headline
from persona_lab.types import Comparison, Frozen, Metric, RunView, Variant

SHOWN = (("held_out_gain", "specificity"), ("voice", "percentile"), ("facts", "margin"))
"""Measures (evaluator, metric) that stand for a variant, where they were taken."""
SENTENCES = ("Gained over the base", "What it cost")


class VariantFacts(Frozen):
    """A variant with what was measured of it; `report`: the run of the evaluation that `numbers` come from."""

    variant: Variant
    loss_before: float | None = None
    loss_after: float | None = None
    numbers: tuple[Metric, ...] = ()
    sentences: tuple[str, ...] = ()
    report: str = ""


def facts_of(variant: Variant, run: RunView | None, evaluations: Sequence[Path], base: Variant | None) -> VariantFacts:
    """What is known of one variant.

    Args:
        run: the training that made it, None where it is gone.
        evaluations: metrics.json files of its persona, newest first; the first that has the variant counts.
        base: what it is compared with in them.
    """
    loss = (run.result.get("loss") or {}) if run is not None else {}
    known: dict[str, Any] = {
        "variant": variant,
        "loss_before": loss.get("validation_before"),
        "loss_after": loss.get("validation_after"),
    }
    for path in evaluations:
        found = metrics_in(path)
        metrics = _metrics_of(found, variant.id)
        if metrics:
            known |= {"numbers": _chosen(metrics), "report": path.parent.name}
            if base is not None:
                known["sentences"] = _sentences(variant, base, found)
            break
    return VariantFacts(**known)


def metrics_in(path: Path) -> Mapping[str, Any]:
    """An evaluation as it was kept; empty where its file is gone or damaged."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Mapping[str, Any]:
    try:
        kept = json.loads(path.read_text("utf-8"))
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _metrics_of(found: Mapping[str, Any], variant: str) -> list[Metric]:
    entries: Sequence[Mapping[str, Any]] = found.get("variants") or ()
    entry = next((e for e in entries if e.get("variant") == variant), {})
    try:
        return [Metric.model_validate(metric) for metric in entry.get("metrics") or ()]
    except ValidationError:
        return []  # of a version we cannot read


def _chosen(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    measured = {(m.evaluator, m.metric): m for m in metrics if m.value is not None}
    first = [measured[key] for key in SHOWN if key in measured]
    rest = [m for m in measured.values() if m.compared and m.better != "none" and m not in first]
    return tuple((first or rest)[:3])


def _sentences(variant: Variant, base: Variant, found: Mapping[str, Any]) -> tuple[str, ...]:
    metrics = {v.id: _metrics_of(found, v.id) for v in (variant, base)}
    try:
        rows = [Comparison.model_validate(row) for row in found.get("comparisons") or ()]
    except ValidationError:
        return ()
    mine = [row for row in rows if {row.a, row.b} == {variant.id, base.id}]
    if not mine or not metrics[base.id]:
        return ()
    blocks = headline([variant, base], metrics, mine)
    return tuple(str(line) for block in blocks if block["title"] in SENTENCES for line in block["lines"])  # type: ignore[attr-defined]
