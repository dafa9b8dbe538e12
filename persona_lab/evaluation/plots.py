"""Inline SVG plots for reports: what they share (paper, colours, markers), dots with intervals, and training curves.

Legible on light and on dark paper: ink and colours are drawn as markers and replaced by CSS variables of the page
afterwards. Colours of variants are Okabe and Ito's, which colour-blind readers can tell apart; each also has its own
marker. The other drawings are in figures.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/, without black and yellow, which vanish on dark or light paper.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
ON_DARK = ("#57A9DE", "#F0B23D", "#35C499", "#E09AC3", "#F08A4B", "#9AD6F7")
"""The same hues, lighter, for dark paper."""
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, MUTED, GRID, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--card)"} | {
    colour.lower(): f"var(--v{index})" for index, colour in enumerate(COLOURS)
}
WIDTH = 4.8
"""Inches; drawn so small that text stays readable on a telephone."""
_MAX_LABEL = 22
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
        share: the values are proportions; unless one is a difference of two, the axis then runs from 0 to 1.
    """
    figure, axes = new_figure(3.9, 0.66 + 0.32 * len(dots))
    for row, dot in enumerate(dots):
        colour, marker = style(dot.colour)
        if dot.value is None:
            axes.text(0.01, row, "withheld", transform=axes.get_yaxis_transform(), va="center", color=MUTED)
            continue
        if dot.low is not None and dot.high is not None:
            axes.plot([dot.low, dot.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot([dot.value], [row], marker=marker, color=colour, markersize=7, linestyle="none")
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(dots)), [short(dot.label) for dot in dots])
    axes.set_ylim(len(dots) - 0.4, -0.6)
    if share and all(end is None or 0 <= end <= 1 for dot in dots for end in (dot.value, dot.low, dot.high)):
        axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(unit)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    return to_svg(figure, name)


def curve_plot(name: str, curves: Sequence[Curve]) -> str:
    """Training (thin) and validation (marked) losses of several runs over their steps."""
    figure, axes = new_figure(WIDTH, 3.2)
    for curve in curves:
        colour, marker = style(curve.colour)
        stride = max(1, len(curve.train) // _MAX_POINTS)
        train = list(curve.train)[::stride]
        if train:
            axes.plot(*zip(*train, strict=True), color=colour, linewidth=0.8, alpha=0.4)
        steps, losses = zip(*curve.validation, strict=True) if curve.validation else ((), ())
        axes.plot(steps, losses, color=colour, marker=marker, linewidth=2, markersize=6, label=short(curve.label))
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss, nats a token")
    axes.grid(color=GRID, linewidth=0.8)
    legend(figure, len(curves))
    return to_svg(figure, name)


def style(index: int) -> tuple[str, str]:
    """Colour and marker of a variant."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot, so that no display, no global state and no backend is touched; inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=0, labelsize=10)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.set_axisbelow(True)
    return figure, axes


def legend(figure: Any, entries: int) -> None:
    """Names below the drawing, two in a row."""
    made = figure.legend(frameon=False, loc="outside lower left", ncols=min(entries, 2), fontsize=10, handlelength=1.4)
    for text in made.get_texts():
        text.set_color(INK)


def to_svg(figure: Any, name: str) -> str:
    """The figure as an inline `<svg>` whose ids begin with `name` and whose colours are the page's."""
    import matplotlib

    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plain, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plain}-", text)  # several drawings share one page
    text = re.sub(r"font: (?:[a-z0-9]+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # the page's own font
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    return text


def short(label: str) -> str:
    """A label that fits; a dollar sign would start a formula."""
    plain = label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…"
    return plain.replace("$", r"\$")
