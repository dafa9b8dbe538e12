"""Writes a report of an evaluation: HTML that opens offline, Markdown and JSON, from one document of plain data.

Names and replies are user text: the HTML template escapes everything, and the Markdown's are made harmless here.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from persona_lab.evaluation.history import History, history_of, repeat_command
from persona_lab.evaluation.plots import COLOURS, Curve, Dot, curve_plot, interval_plot
from persona_lab.home import Home, disk_errors, write_atomic
from persona_lab.types import Comparison, Job, Machine, Metric, Persona, Probe, Variant, now

_TEMPLATES = Path(__file__).parent / "templates"
_AVATAR_PIXELS = 160


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


def write_report(evaluated: Evaluated, folder: Path) -> dict[str, str]:
    """Write report.html, report.md and report.json into `folder`; each is replaced whole.

    Returns:
        The three paths, as `html`, `markdown` and `json`.

    Raises:
        DiskFull
    """
    histories = {v.id: history_of(v, evaluated.home) for v in evaluated.variants}
    document = build_document(evaluated, histories, folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = {"html": folder / "report.html", "markdown": folder / "report.md", "json": folder / "report.json"}
    write_atomic(paths["json"], json.dumps(document, indent=1, ensure_ascii=False))
    write_atomic(paths["markdown"], render_markdown(document))
    write_atomic(paths["html"], render_html(document, histories, _avatar(evaluated.persona)))
    return {kind: str(path) for kind, path in paths.items()}


def build_document(evaluated: Evaluated, histories: Mapping[str, History], folder: Path) -> dict[str, Any]:
    """The report as plain data: what report.json holds and the templates show."""
    job, names = evaluated.job, {v.id: v.name for v in evaluated.variants}
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
        "table": _table(evaluated),
        "failed": [{"variant": names[v], **failure} for v, rows in evaluated.failed.items() for failure in rows],
        "comparisons": [
            {**c.model_dump(mode="json"), "a_name": names[c.a], "b_name": names[c.b], "told_apart": c.p_holm < 0.05}
            for c in evaluated.comparisons
        ],
        "costs": [{"name": v.name, **histories[v.id].cost(v)} for v in evaluated.variants],
        "samples": [
            {
                "prompt": probe.messages[-1].content,
                "true": probe.reply,
                "replies": [{"variant": v.id, "name": v.name, "reply": replies[v.id]} for v in evaluated.variants],
            }
            for probe, replies in evaluated.samples
        ],
        "repeat": _commands(evaluated, folder),
    }


def render_markdown(document: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    return _environment(autoescape=False).get_template("report.md.jinja").render(d=document)


def render_html(document: Mapping[str, Any], histories: Mapping[str, History], avatar: str = "") -> str:
    """The report as one HTML page that loads nothing; `avatar` is a data URI or empty."""
    template = _environment(autoescape=True).get_template("report.html.jinja")
    return template.render(d=document, plots=_plots(document), curves=_curves(document, histories), avatar=avatar)


def _variant(variant: Variant, index: int) -> dict[str, Any]:
    keys = ("id", "name", "strategy", "base", "kind", "fingerprint", "dataset", "seed", "created", "run")
    return {**{key: getattr(variant, key) for key in keys}, "colour": COLOURS[index % len(COLOURS)]}


def _table(evaluated: Evaluated) -> list[dict[str, Any]]:
    """One row a metric, in the order evaluators gave them, with a cell for each variant."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for variant in evaluated.variants:
        for metric in evaluated.metrics.get(variant.id, ()):
            row = rows.setdefault(
                (metric.evaluator, metric.metric),
                {
                    **metric.model_dump(include={"evaluator", "metric", "unit", "better", "reference", "note"}),
                    "cells": {},
                },
            )
            row["cells"][variant.id] = metric.model_dump(include={"value", "low", "high", "n", "note", "reference"})
    for row in rows.values():
        row["note"] = _common([cell["note"] for cell in row["cells"].values()])
    return [{**row, "compared": row["better"] != "none"} for row in rows.values()]


def _common(notes: Sequence[str]) -> str:
    """The sentences that all notes begin with: what a metric means, without what is said of one variant only."""
    if len(set(notes)) == 1:
        return notes[0]
    same = itertools.takewhile(
        lambda sentences: len(set(sentences)) == 1, zip(*(n.split(". ") for n in notes), strict=False)
    )
    return ". ".join(sentences[0] for sentences in same).rstrip(".") + "."


def _plots(document: Mapping[str, Any]) -> list[dict[str, str]]:
    plots = []
    for row in document["table"]:
        cells = row["cells"]
        if not row["compared"] or not any(cell["low"] is not None for cell in cells.values()):
            continue
        dots = [
            Dot(v["name"], cells[v["id"]]["value"], cells[v["id"]]["low"], cells[v["id"]]["high"], index)
            for index, v in enumerate(document["variants"])
            if v["id"] in cells
        ]
        svg = interval_plot(
            f"{row['evaluator']}-{row['metric']}", dots, row["unit"], row["reference"], share=row["unit"] == "share"
        )
        plots.append({"title": row["metric"].replace("_", " "), "better": row["better"], "svg": svg})
    return plots


def _curves(document: Mapping[str, Any], histories: Mapping[str, History]) -> str:
    curves = [
        Curve(v["name"], histories[v["id"]].train, histories[v["id"]].validation, index)
        for index, v in enumerate(document["variants"])
        if v["id"] in histories and (histories[v["id"]].train or histories[v["id"]].validation)
    ]
    return curve_plot("training-curves", curves) if curves else ""


def _commands(evaluated: Evaluated, folder: Path) -> list[str]:
    trained = [command for v in evaluated.variants if (command := repeat_command(v, evaluated.home))]
    ids = " ".join(v.id for v in evaluated.variants)
    quick = " --quick" if evaluated.job.quick else ""
    return [*trained, f"persona-lab eval {ids}{quick}", f"persona-lab compare {ids} --out {folder.name}"]


def _avatar(persona: Persona) -> str:
    """The persona's picture, small, as a data URI; empty where there is none or it cannot be read."""
    if not persona.avatar or not Path(persona.avatar).is_file():
        return ""
    from PIL import Image, UnidentifiedImageError

    buffer = io.BytesIO()
    try:
        with Image.open(persona.avatar) as image:
            small = image.convert("RGBA")
            small.thumbnail((_AVATAR_PIXELS, _AVATAR_PIXELS))
            small.save(buffer, "PNG")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _environment(autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=autoescape, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=_number, interval=_interval, size=_size, duration=_duration, cell=_markdown_cell, words=_words
    )
    return environment


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:.0%}" if unit == "share" else f"{value:.3f}".replace("-", "−")


def _interval(cell: Mapping[str, Any], unit: str = "") -> str:
    if cell["low"] is None or cell["high"] is None:
        return ""
    return f"[{_number(cell['low'], unit)}, {_number(cell['high'], unit)}]"


def _size(value: float | None) -> str:
    if value is None:
        return "–"
    for name in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {name}" if name == "B" else f"{value:.1f} {name}"
        value /= 1000
    return f"{value:.1f} GB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _markdown_cell(text: str) -> str:
    """User text inside Markdown: one line, with everything escaped that would be markup, HTML or a table's border."""
    escaped = re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", text)
    return " ".join(escaped.replace("<", "&lt;").replace(">", "&gt;").split())
