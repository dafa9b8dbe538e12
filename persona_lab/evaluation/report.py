"""Writes a report of an evaluation: HTML that opens offline, Markdown and JSON, from one document of plain data.

Names and replies are user text: the HTML template escapes everything, and the Markdown's are made harmless.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from persona_lab.evaluation import wording
from persona_lab.evaluation.document import Evaluated, build_document
from persona_lab.evaluation.figures import (
    Bar,
    Cells,
    Fade,
    Point,
    Spread,
    fade_plot,
    map_plot,
    plane_plot,
    scale_of,
    scale_plot,
    stack_plot,
)
from persona_lab.evaluation.history import History, history_of
from persona_lab.evaluation.plots import COLOURS, ON_DARK, Curve, Dot, curve_plot, interval_plot
from persona_lab.home import disk_errors, write_atomic
from persona_lab.types import Persona

__all__ = ["Evaluated", "build_document", "render_html", "render_markdown", "write_report"]

_TEMPLATES = Path(__file__).parent / "templates"
_AVATAR_PIXELS = 160
Document = Mapping[str, Any]


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


def render_markdown(document: Document) -> str:
    """The report as Markdown."""
    return _environment(autoescape=False).get_template("report.md.jinja").render(d=document, map=_by_kind(document))


def render_html(document: Document, histories: Mapping[str, History], avatar: str = "") -> str:
    """The report as one HTML page that loads nothing; `avatar` is a data URI or empty."""
    drawn = {
        "dots": _dots(document),
        "plane": _plane(document),
        "breaks": _breaks(document),
        "drift": _drift(document),
        "traits": _traits(document),
        "maps": _maps(document),
        "curves": _curves(document, histories),
    }
    template = _environment(autoescape=True).get_template("report.html.jinja")
    return template.render(d=document, drawn=drawn, avatar=avatar, colours=list(zip(COLOURS, ON_DARK, strict=True)))


# --- drawings, from the document ------------------------------------------------------------------


def _dots(document: Document) -> list[dict[str, str]]:
    """A plot a metric that variants are compared on."""
    plots = []
    for row in (row for group in document["evaluators"] for row in group["rows"]):
        cells = row["cells"]
        if not row["compared"] or not any(cell["low"] is not None for cell in cells.values()):
            continue
        dots = [
            Dot(v["drawn"], cells[v["id"]]["value"], cells[v["id"]]["low"], cells[v["id"]]["high"], v["index"])
            for v in document["variants"]
            if v["id"] in cells
        ]
        share = row["unit"] == "share"
        svg = interval_plot(f"{row['evaluator']}-{row['metric']}", dots, row["unit"], row["reference"], share=share)
        plots.append({"title": row["title"], "better": row["better"], "svg": svg})
    return plots


def _named(document: Document) -> dict[str, dict[str, Any]]:
    return {v["id"]: v for v in document["variants"]}


def _plane(document: Document) -> str:
    variants = _named(document)
    points = [
        Point(
            variants[row["variant"]]["drawn"],
            Spread(**row["specificity"]),
            Spread(**row["kl_text"]),
            variants[row["variant"]]["index"],
        )
        for row in document["plane"]
    ]
    if len(points) < 2:
        return ""
    return plane_plot("plane", points, "specificity, nats/byte →", "KL on generic text, nats/token")


def _breaks(document: Document) -> str:
    rows = document["breaks"]
    bars = [
        Bar(row["name"], tuple(row[part] for part in ("aligned", "minor", "off")), row["n"], not row["variant"])
        for row in rows
    ]
    return stack_plot("breaks", bars, ("stays in character", "voice slips", "breaks")) if bars else ""


def _drift(document: Document) -> str:
    variants = _named(document)
    fades = [
        Fade(
            variants[row["variant"]]["drawn"],
            [(level["turns"], Spread(level["value"], level["low"], level["high"])) for level in row["levels"]],
            variants[row["variant"]]["index"],
        )
        for row in document["drift"]
    ]
    return fade_plot("drift", fades, "turns of small talk before", "gain over the base, nats/byte") if fades else ""


def _traits(document: Document) -> list[dict[str, str]]:
    """A plot a trait; the dashed line is the base, whatever its prompt."""
    variants = _named(document)
    plots = []
    for row in document["traits"]:
        others = itertools.count(len(variants))
        dots = [
            Dot(
                line["name"],
                line["value"],
                line["low"],
                line["high"],
                variants[line["variant"]]["index"] if line["variant"] else next(others),
            )
            for line in row["lines"]
        ]
        plots.append({"title": row["title"], "svg": interval_plot(f"traits-{row['trait']}", dots, row["unit"], 0.0)})
    return plots


def _maps(document: Document) -> dict[str, Any]:
    """A panel a variant in one scale, and the scale."""
    rows = [row for row in document["map"] if row["cells"]]
    if not rows:
        return {}
    every = [cell for row in rows for cell in row["cells"]]
    layers = sorted({cell["layer"] for cell in every}, key=lambda layer: (not layer.isdigit(), layer.zfill(6)))
    kinds = list(dict.fromkeys(cell["kind"] for cell in every))
    cells = [Cells(layers, kinds, {(c["layer"], c["kind"]): c["value"] for c in row["cells"]}) for row in rows]
    scale, variants = scale_of(cells), _named(document)
    panels = [
        {"variant": variants[row["variant"]], "svg": map_plot(f"map-{row['variant']}", panel, scale)}
        for row, panel in zip(rows, cells, strict=True)
    ]
    return {"panels": panels, "key": scale_plot("map-key", scale, "size of the update, ||dW|| / ||W||")}


def _by_kind(document: Document) -> list[dict[str, Any]]:
    """The map in words: of each variant, the mean of each kind of matrix and the layer that moved most."""
    rows = []
    for row in document["map"]:
        kinds: dict[str, list[float]] = {}
        for cell in row["cells"]:
            kinds.setdefault(cell["kind"], []).append(cell["value"])
        most = max(row["cells"], key=lambda cell: float(cell["value"]))
        means = {kind: sum(values) / len(values) for kind, values in kinds.items()}
        rows.append({"name": _named(document)[row["variant"]]["label"], "kinds": means, "most": most})
    return rows


def _curves(document: Document, histories: Mapping[str, History]) -> str:
    curves = [
        Curve(v["drawn"], histories[v["id"]].train, histories[v["id"]].validation, v["index"])
        for v in document["variants"]
        if v["id"] in histories and (histories[v["id"]].train or histories[v["id"]].validation)
    ]
    return curve_plot("training-curves", curves) if curves else ""


# --- pages ----------------------------------------------------------------------------------------


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
        number=wording.number,
        signed=wording.signed,
        interval=wording.interval,
        size=wording.size,
        duration=wording.duration,
        count=wording.count,
        words=wording.words,
        cell=wording.markdown,
        by_metric=_by_metric,
    )
    return environment


def _by_metric(comparisons: Sequence[Document]) -> list[tuple[str, list[Document]]]:
    """(title, comparisons) of each metric, in the order of the table."""
    groups: dict[tuple[str, str], list[Document]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison["evaluator"], comparison["metric"]), []).append(comparison)
    return [(str(group[0]["title"]), group) for group in groups.values()]
