"""Drawings of a report that show several measures together: what was learnt against what was forgotten, where the
update sits, how prompts that attack are answered, and what a long chat leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from persona_lab.evaluation.plots import GRID, INK, MUTED, PAPER, WIDTH, legend, new_figure, short, style, to_svg

STACK = ("#0072B2", "#E69F00", "#D55E00")
"""Aligned, minor, off: blue, orange and vermilion differ in lightness as well."""
_ON_STACK = (PAPER, "#1d1f23", PAPER)
MAP = "cividis"
"""Perceptually uniform, and the same for colour-blind readers (Nunez et al. 2018, https://arxiv.org/abs/1712.01662)."""
LOG_FROM = 30.0
"""Largest over smallest value from which the map's colours follow the logarithm."""


@dataclass(frozen=True)
class Spread:
    """A value with its interval, which may be missing."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A variant in the plane of two measures."""

    label: str
    x: Spread
    y: Spread
    colour: int


@dataclass(frozen=True)
class Bar:
    """Shares of one row, adding up to one; None where a share was withheld. `of`: how many there were."""

    label: str
    shares: tuple[float | None, ...]
    of: int
    reference: bool = False
    """Not a variant: drawn apart from the variants."""


@dataclass(frozen=True)
class Fade:
    """A measure after so many turns."""

    label: str
    levels: Sequence[tuple[int, Spread]]
    colour: int


@dataclass(frozen=True)
class Cells:
    """Values by (row, column) of one map; what is absent was not changed, or not looked at."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: dict[tuple[str, str], float]


def plane_plot(name: str, points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Each variant as a cross of its two 95% intervals; right is better, down is better."""
    figure, axes = new_figure(WIDTH, 3.7)
    for point in points:
        colour, marker = style(point.colour)
        axes.errorbar(
            [point.x.value],
            [point.y.value],
            xerr=_reach(point.x),
            yerr=_reach(point.y),
            color=colour,
            marker=marker,
            markersize=8,
            linewidth=1.8,
            linestyle="none",
            label=short(point.label),
        )
    axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.margins(0.12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=GRID, linewidth=0.8)
    legend(figure, len(points))
    return to_svg(figure, name)


def _reach(spread: Spread) -> list[list[float]] | None:
    if spread.low is None or spread.high is None:
        return None
    return [[max(0.0, spread.value - spread.low)], [max(0.0, spread.high - spread.value)]]


def stack_plot(name: str, bars: Sequence[Bar], parts: Sequence[str]) -> str:
    """One bar a row, cut into shares, each with its percentage where there is room."""
    rows = [place + 0.45 * bar.reference for place, bar in enumerate(bars)]
    figure, axes = new_figure(WIDTH, 0.9 + 0.36 * (rows[-1] + 1))
    for row, bar in zip(rows, bars, strict=True):
        start = 0.0
        for part, share in enumerate(bar.shares):
            if not share:
                continue
            axes.barh(row, share, left=start, height=0.68, color=STACK[part], edgecolor=PAPER, linewidth=1.5)
            if share >= 0.1:
                place = (start + share / 2, row, f"{share:.0%}")
                axes.text(*place, ha="center", va="center", color=_ON_STACK[part], fontsize=9.5)
            start += share
    for part, title in enumerate(parts):
        axes.barh(0, 0, color=STACK[part], label=title)
    axes.set_yticks(rows, [f"{short(bar.label)}  ({bar.of})" for bar in bars])
    axes.set_ylim(rows[-1] + 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
    legend_of = figure.legend(
        frameon=False, loc="outside lower left", ncols=len(parts), fontsize=10, handlelength=1, columnspacing=1.2
    )
    for text in legend_of.get_texts():
        text.set_color(INK)
    return to_svg(figure, name)


def fade_plot(name: str, fades: Sequence[Fade], x_label: str, y_label: str) -> str:
    """Lines over turns with 95% intervals, variants a little beside each other so that intervals stay apart."""
    figure, axes = new_figure(WIDTH, 3.2)
    turns = sorted({turn for fade in fades for turn, _ in fade.levels})
    step = 0.018 * (turns[-1] - turns[0] or 1)
    for place, fade in enumerate(fades):
        colour, marker = style(fade.colour)
        shift = (place - (len(fades) - 1) / 2) * step
        at = [turn + shift for turn, _ in fade.levels]
        values = [spread.value for _, spread in fade.levels]
        axes.plot(at, values, color=colour, marker=marker, linewidth=1.8, markersize=6, label=short(fade.label))
        for x, (_, spread) in zip(at, fade.levels, strict=True):
            if spread.low is not None and spread.high is not None:
                axes.plot([x, x], [spread.low, spread.high], color=colour, linewidth=1.4)
    axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xticks(turns)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=GRID, linewidth=0.8)
    legend(figure, len(fades))
    return to_svg(figure, name)


def scale_of(maps: Sequence[Cells]) -> tuple[float, float, bool]:
    """(lowest, highest, logarithmic) of the colours that several maps share."""
    positive = [value for cells in maps for value in cells.values.values() if value > 0]
    if not positive:
        return 0.0, 1.0, False
    low, high = min(positive), max(positive)
    return (low, high, True) if high / low >= LOG_FROM else (0.0, high, False)


def map_plot(name: str, cells: Cells, scale: tuple[float, float, bool]) -> str:
    """A heat map in the shared scale; cells without a value stay empty."""
    import numpy as np

    figure, axes = new_figure(2.9, 1.25 + 0.105 * max(len(cells.rows), 8))
    grid = np.full((len(cells.rows), len(cells.columns)), np.nan)
    for row, row_name in enumerate(cells.rows):
        for column, column_name in enumerate(cells.columns):
            grid[row, column] = cells.values.get((row_name, column_name), np.nan)
    masked = np.ma.masked_invalid(grid) if not scale[2] else np.ma.masked_where(~(grid > 0), grid)
    axes.pcolormesh(masked, cmap=MAP, norm=_norm(scale), edgecolor=PAPER, linewidth=0.4)
    axes.set_xticks([i + 0.5 for i in range(len(cells.columns))], [short(c) for c in cells.columns], rotation=60)
    for label in axes.get_xticklabels():
        label.set(rotation_mode="anchor", ha="right", fontsize=9)
    every = max(1, -(-len(cells.rows) // 8))
    shown = [i for i, row in enumerate(cells.rows) if i % every == 0 or not row.isdigit()]
    axes.set_yticks([i + 0.5 for i in shown], [cells.rows[i] for i in shown], fontsize=9)
    axes.set_ylabel("layer")
    axes.spines["bottom"].set_visible(False)
    axes.invert_yaxis()
    return to_svg(figure, name)


def scale_plot(name: str, scale: tuple[float, float, bool], label: str) -> str:
    """The colours' key."""
    from matplotlib.cm import ScalarMappable

    figure, axes = new_figure(WIDTH, 0.75)
    bar = figure.colorbar(ScalarMappable(_norm(scale), MAP), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)
    bar.solids.set_edgecolor("face")
    axes.tick_params(colors=MUTED, labelcolor=INK, length=3, labelsize=9)
    axes.set_xlabel(label + (", logarithmic" if scale[2] else ""), color=MUTED)
    return to_svg(figure, name)


def _norm(scale: tuple[float, float, bool]) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    low, high, logarithmic = scale
    return LogNorm(low, high) if logarithmic else Normalize(low, high)
