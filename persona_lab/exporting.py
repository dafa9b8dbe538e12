"""What an export is told besides format and folder: what the variant was trained on, and its newest evaluation."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from persona_lab.catalog import Catalog
from persona_lab.errors import UnknownName
from persona_lab.types import ExportOrder, Metric, Variant


def export_order(catalog: Catalog, variant: Variant, license: str, check: bool) -> ExportOrder:
    """The order for a variant's export, from the library and the reports on disk."""
    report, metrics = _newest_evaluation(catalog, variant)
    return ExportOrder(
        license=license.strip().lower(),
        check=check,
        dataset=_dataset(catalog, variant),
        metrics=metrics,
        report=report,
    )


def dataset_file(catalog: Catalog, variant: Variant) -> str:
    """Path of the dataset that the variant was trained on; empty where it is gone."""
    try:
        return str(catalog.dataset_path(variant.dataset)) if variant.dataset else ""
    except UnknownName:
        return ""


def _dataset(catalog: Catalog, variant: Variant) -> dict[str, Any]:
    for summary in catalog.datasets(variant.persona):
        if summary.id == variant.dataset:
            count = sum(summary.counts.get(split, 0) for split in ("train", "validation", "test"))
            return {
                "name": f"{summary.name}, version {summary.version}",
                "conversations": count,
                "fingerprint": summary.fingerprint,
                "source": summary.source,
            }
    return {}


def _newest_evaluation(catalog: Catalog, variant: Variant) -> tuple[str, tuple[Metric, ...]]:
    for report in catalog.reports(variant.persona):
        if variant.id not in report.variants:
            continue
        try:
            kept = json.loads((catalog.home.run(report.id) / "metrics.json").read_text(encoding="utf-8"))
            rows = next(entry["metrics"] for entry in kept["variants"] if entry["variant"] == variant.id)
            return report.id, tuple(Metric.model_validate(row).model_copy(update={"items": ()}) for row in rows)
        except (OSError, ValueError, KeyError, StopIteration, ValidationError):
            continue  # its file is gone or damaged: an older one will do
    return "", ()
