"""Draws how often something occurs as bars, in inline SVG that is legible in light and dark. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from persona_lab.ui.html import esc

WIDTH, HEIGHT = 360, 150
LEFT, BOTTOM, TOP = 8, 30, 18
MOST_BARS = 8


def binned(values: Sequence[int], bars: int = MOST_BARS) -> dict[str, int]:
    """Sorted values as counts by range (`"10-19"`); the last range takes the longest 2% together (`"90+"`)."""
    if not values:
        return {}
    top = max(values[min(len(values) - 1, int(0.98 * len(values)))], 1)
    wide = max(-(-top // bars), 1)
    found: dict[str, int] = {}
    for start in range(0, top + 1, wide):
        last = start + wide > top
        label = f"{start}+" if last else f"{start}-{start + wide - 1}" if wide > 1 else f"{start}"
        found[label] = sum(start <= value and (last or value < start + wide) for value in values)
    return found


def chart(counts: Mapping[str, int], title: str, unit: str) -> str:
    """Bars with their labels below and their counts above; a table for those who cannot see it is in the titles.

    Args:
        counts: by label, in order.
        unit: what is counted, for the titles ("replies").
    """
    if not counts:
        return ""
    shown = dict(list(counts.items())[:MOST_BARS])
    rest = sum(counts.values()) - sum(shown.values())
    if rest:
        shown["more"] = rest
    highest = max(shown.values()) or 1
    step = (WIDTH - 2 * LEFT) / len(shown)
    bars = []
    for place, (label, count) in enumerate(shown.items()):
        tall = (HEIGHT - TOP - BOTTOM) * count / highest
        x, y = LEFT + place * step, HEIGHT - BOTTOM - tall
        middle = x + step / 2
        bars.append(
            f'<rect class="pl-column" x="{x + 2:.1f}" y="{y:.1f}" width="{max(step - 4, 2):.1f}" height="{tall:.1f}">'
            f"<title>{esc(label)}: {count:,} {esc(unit)}</title></rect>"
            f'<text class="pl-tick" x="{middle:.1f}" y="{y - 4:.1f}" text-anchor="middle">{_short(count)}</text>'
            f'<text class="pl-tick" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">'
            f"{esc(label)}</text>"
        )
    told = ", ".join(f"{label}: {count}" for label, count in shown.items())
    return (
        f'<figure class="pl-chart pl-bars"><figcaption>{esc(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{esc(title)}. {esc(told)}">{"".join(bars)}</svg></figure>'
    )


def _short(count: int) -> str:
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count}" if count else ""
