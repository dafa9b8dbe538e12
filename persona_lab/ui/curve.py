"""Draws loss curves as inline SVG, legible in light and dark. Pure functions from points to text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from persona_lab.ui.html import empty, esc

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 40
MOST_POINTS = 400


def smooth(points: Points, weight: float = 0.85) -> list[tuple[float, float]]:
    """Exponential moving average with bias correction, so that the first values are not pulled to zero."""
    out = []
    average = 0.0
    for count, (x, y) in enumerate(points, start=1):
        average = weight * average + (1 - weight) * y
        out.append((x, average / (1 - weight**count)))
    return out


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points, the last one always among them."""
    if len(points) <= most:
        return list(points)
    stride = math.ceil(len(points) / (most - 1))
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover low..high."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / about))
    gap = next(step * power for step in (1, 2, 5, 10) if step * power * about >= span)
    first = math.ceil(low / gap - 1e-9)
    last = math.floor(high / gap + 1e-9)
    return [round(i * gap, 10) for i in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """With a little air; a few wild first losses must not flatten the rest, so the top is the 98th percentile."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, math.ceil(len(ordered) * 0.98))]
    air = max((high - low) * 0.08, 0.02)
    return low - air, high + air


class Frame:
    """Maps steps and losses to pixels; `smoothed`: the training points are averages already."""

    def __init__(self, train: Points, validation: Points, smoothed: bool = False) -> None:
        both = [*train, *validation]
        self.x_high = max([x for x, _ in both] + [1.0])
        shown = train if smoothed else smooth(train)
        self.low, self.high = _range([y for _, y in validation] + [y for _, y in shown])

    def x(self, step: float) -> float:
        return LEFT + step / self.x_high * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        share = (min(max(loss, self.low), self.high) - self.low) / (self.high - self.low)
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Points, css: str) -> str:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline class="{css}" points="{path}"/>'

    def dots(self, points: Points, css: str = "pl-dot") -> str:
        return "".join(
            f'<circle class="{css}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4">'
            f"<title>step {x:.0f}: validation loss {y:.3f}</title></circle>"
            for x, y in points
        )

    def grid(self, borders: Sequence[tuple[float, str]]) -> str:
        bottom = HEIGHT - BOTTOM
        rows = "".join(
            f'<line class="pl-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>'
            f'<text class="pl-tick" x="{LEFT - 8}" y="{self.y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
            for v in ticks(self.low, self.high)
        )
        columns = "".join(
            f'<text class="pl-tick" x="{self.x(v):.1f}" y="{bottom + 18}" text-anchor="middle">{v:g}</text>'
            for v in ticks(0, self.x_high, 6)
            if v == int(v)
        )
        stages = "".join(
            f'<line class="pl-stage" x1="{self.x(v):.1f}" x2="{self.x(v):.1f}" y1="{TOP}" y2="{bottom}"/>'
            f'<text class="pl-tick" x="{self.x(v) + 5:.1f}" y="{TOP + 10}">{esc(name)}</text>'
            for v, name in borders
        )
        return rows + columns + stages


def loss_chart(train: Points, validation: Points, borders: Sequence[tuple[float, str]] = ()) -> str:
    """The curve of a run as HTML.

    Args:
        train: (step, loss) of training, in nats a token; drawn faint, with its moving average on top.
        validation: (step, loss) of validation; drawn as dots on a line.
        borders: (step, name) where a later stage begins.
    """
    if not train and not validation:
        return empty("No loss yet", "The curve appears with the first training step.")
    frame = Frame(train, validation)
    label = f"Loss curve: {len(train)} training and {len(validation)} validation points"
    if validation:
        label += f"; validation went from {validation[0][1]:.3f} to {validation[-1][1]:.3f}"
    drawing = (
        frame.grid(borders)
        + frame.line(thin(train), "pl-line pl-raw")
        + frame.line(thin(smooth(train)), "pl-line pl-train")
        + frame.line(validation, "pl-line pl-val")
        + frame.dots(validation)
        + f'<text class="pl-axis" x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'
    )
    first = f"{validation[0][1]:.3f}" if validation else ""
    now = f"{validation[-1][1]:.3f}" if validation else ""
    return (
        f'<figure class="pl-chart" data-train-points="{len(train)}" data-validation-points="{len(validation)}" '
        f'data-validation-first="{first}" data-validation-last="{now}">'
        f"<figcaption>{_legend(train, validation)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(label)}">{drawing}</svg></figure>'
    )


def _legend(train: Points, validation: Points) -> str:
    parts = []
    if train:
        parts.append(f'<span><i class="pl-key pl-key-train"></i>training loss {smooth(train)[-1][1]:.3f}</span>')
    if validation:
        parts.append(f'<span><i class="pl-key pl-key-val"></i>validation loss {validation[-1][1]:.3f}</span>')
    parts.append('<span class="pl-soft">lower is better · nats per token</span>')
    return "".join(parts)
