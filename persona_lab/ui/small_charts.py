"""Small drawings beside the loss curve: what a run used over time, and two runs laid over each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from persona_lab.ui.curve import HEIGHT, LEFT, WIDTH, Frame, Points, smooth, thin
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.html import empty, esc, size

SPARK_WIDTH, SPARK_HEIGHT, SPARK_POINTS = 220, 44, 110


def rate(value: float) -> str:
    """A learning rate as one writes it."""
    return f"{value:.1e}" if value else "0"


MEASURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("learning_rate", "learning rate", rate),
    ("tokens_per_second", "tokens a second", lambda value: f"{value:,.0f}"),
    ("memory_bytes", "memory", size),
)


def measures(picture: RunPicture) -> str:
    """Learning rate, speed and memory of a run over its steps; empty where it tells none."""
    drawn = [
        _spark(points, title, words)
        for name, title, words in MEASURES
        if (points := picture.measure(name)) and len(points) > 1
    ]
    return f'<div class="pl-sparks">{"".join(drawn)}</div>' if drawn else ""


def _spark(points: Points, title: str, words: Callable[[float], str]) -> str:
    shown = thin(points, SPARK_POINTS)
    values = [y for _, y in shown]
    low, high = min(values), max(values)
    left, right = shown[0][0], max(shown[-1][0], shown[0][0] + 1)
    span = (high - low) or max(abs(high), 1e-12)
    base = low if high > low else low - span / 2  # a constant lies in the middle
    wide, high_up = SPARK_WIDTH / (right - left), (SPARK_HEIGHT - 6) / span
    path = " ".join(f"{(x - left) * wide:.1f},{SPARK_HEIGHT - 3 - (y - base) * high_up:.1f}" for x, y in shown)
    said = f"{title}: now {words(values[-1])}, between {words(low)} and {words(high)}"
    return (
        f'<div class="pl-tile pl-spark"><b>{esc(words(values[-1]))}</b><span>{esc(title)}</span>'
        f'<svg viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(said)}"><polyline class="pl-line" points="{path}"/></svg></div>'
    )


def overlay(runs: Sequence[tuple[str, Points, Points]]) -> str:
    """Two runs' losses in one frame.

    Args:
        runs: (name, training points, validation points); drawn in this order's colours, a and b.
    """
    drawn = [(name, smooth(train), validation) for name, train, validation in runs]
    if not any(train or validation for _, train, validation in drawn):
        return empty("No curves to lay over each other", "Neither run took a training step.")
    frame = Frame([p for _, train, _ in drawn for p in train], [p for _, _, v in drawn for p in v], smoothed=True)
    lines, legend = [], []
    for mark, (name, train, validation) in zip("ab", drawn, strict=False):
        lines.append(frame.line(thin(train), f"pl-line pl-raw pl-run-{mark}"))
        lines.append(
            frame.line(validation, f"pl-line pl-run-{mark}") + frame.dots(validation, f"pl-dot pl-fill-{mark}")
        )
        last = f", {validation[-1][1]:.3f} at the end" if validation else ""
        legend.append(f'<span><i class="pl-key pl-key-{mark}"></i>{mark.upper()}: {esc(name)}{last}</span>')
    axis = f'<text class="pl-axis" x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'
    said = "; ".join(f"{name}: {len(validation)} validation points" for name, _, validation in drawn)
    legend.append('<span class="pl-soft">thick: validation, faint: training · nats per token, lower is better</span>')
    return (
        f'<figure class="pl-chart pl-overlay"><figcaption>{"".join(legend)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(f"Two loss curves. {said}")}">'
        f"{frame.grid(())}{''.join(lines)}{axis}</svg></figure>"
    )
