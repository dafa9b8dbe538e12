"""Inline SVG plots for reports: dots with intervals, and training curves. Legible on light and on dark paper.

Text and lines that should follow the page's ink are drawn in marker colours and replaced by CSS variables afterwards.
Colours of variants are Okabe and Ito's, which colour-blind readers can tell apart; each also has its own marker.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/, without black and yellow, which vanish on dark or light paper.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_INK, _MUTED, _GRID = "#010203", "#040506", "#070809"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--line)"}
_MAX_LABEL = 18
_MAX_POINTS = 400


@dataclass(frozen=True)
class Dot:
    """A variant's value with its interval; None where a metric was withheld or has no interval."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    colour: int


@dataclass(frozen=True)
class Curve:
    """Losses over steps: the training loss as a thin line, validation as marked points."""

    label: str
    train: Sequence[tuple[int, float]]
    validation: Sequence[tuple[int, float]]
    colour: int


def interval_plot(name: str, dots: Sequence[Dot], unit: str, reference: float | None, share: bool = False) -> str:
    """Dots with 95% intervals, one row a variant, and a dashed line at the reference.

    Args:
        name: makes the ids inside the SVG unique on the page.
        share: the values are proportions; the axis then runs from 0 to 1.
    """
    figure, axes = _figure(3.9, 0.66 + 0.32 * len(dots))
    for row, dot in enumerate(dots):
        colour, marker = COLOURS[dot.colour % len(COLOURS)], MARKERS[dot.colour % len(MARKERS)]
        if dot.value is None:
            axes.text(0.01, row, "withheld", transform=axes.get_yaxis_transform(), va="center", color=_MUTED)
            continue
        if dot.low is not None and dot.high is not None:
            axes.plot([dot.low, dot.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round", alpha=0.75)
        axes.plot([dot.value], [row], marker=marker, color=colour, markersize=7, linestyle="none")
    if reference is not None:
        axes.axvline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(dots)), [_short(dot.label) for dot in dots])
    axes.set_ylim(len(dots) - 0.4, -0.6)
    if share:
        axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(unit)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    return _svg(figure, name)


def curve_plot(name: str, curves: Sequence[Curve]) -> str:
    """Training (thin) and validation (marked) losses of several runs over their steps."""
    figure, axes = _figure(9.4, 3.4)
    for curve in curves:
        colour, marker = COLOURS[curve.colour % len(COLOURS)], MARKERS[curve.colour % len(MARKERS)]
        stride = max(1, len(curve.train) // _MAX_POINTS)
        train = list(curve.train)[::stride]
        if train:
            axes.plot(*zip(*train, strict=True), color=colour, linewidth=0.9, alpha=0.45)
        if curve.validation:
            steps, losses = zip(*curve.validation, strict=True)
            axes.plot(steps, losses, color=colour, marker=marker, linewidth=2, markersize=6, label=_short(curve.label))
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss, nats a token")
    axes.grid(color=_GRID, linewidth=0.8)
    if any(curve.validation for curve in curves):
        legend = axes.legend(frameon=False, loc="upper right")
        for text in legend.get_texts():
            text.set_color(_INK)
    return _svg(figure, name)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot, so that no display, no global state and no backend is touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_MUTED, labelcolor=_INK, length=0, labelsize=10)
    axes.xaxis.label.set_color(_MUTED)
    axes.yaxis.label.set_color(_MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, name: str) -> str:
    import matplotlib

    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plain, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plain}-", text)  # several drawings share one page
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # the page's own font
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    return text


def _short(label: str) -> str:
    # A dollar sign would start a formula.
    plain = label.replace("$", r"\$")
    return plain if len(label) <= _MAX_LABEL else plain[: _MAX_LABEL - 1] + "…"
