"""Numbers, sizes and user text as a report writes them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "–"


def number(value: float | None, unit: str = "") -> str:
    """A value with three significant places; a share as a percentage."""
    if value is None:
        return DASH
    if unit == "share":
        return _plain(f"{value:.1%}" if 0 < abs(value) < 0.095 else f"{value:.0%}")
    return _plain(_places(value))


def _places(value: float) -> str:
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if 0 < size < 0.01:
        return f"{value:.4f}" if size >= 0.00005 else f"{value:.0e}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def signed(difference: float, unit: str = "") -> str:
    """A difference with its sign and unit; of shares, in points."""
    if unit == "share":
        return _plain(f"{difference * 100:+.0f} points")
    text = _places(difference)
    return _plain(f"{text if text.startswith('-') else '+' + text} {unit}".rstrip())


def _plain(text: str) -> str:
    return text.replace("-", "−") if text[:1] == "-" else text


def interval(cell: Mapping[str, Any], unit: str = "") -> str:
    """`[low, high]`, or nothing."""
    if cell["low"] is None or cell["high"] is None:
        return ""
    return f"[{number(cell['low'], unit)}, {number(cell['high'], unit)}]"


def size(value: float | None) -> str:
    """Bytes, decimal."""
    if value is None:
        return DASH
    for name in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {name}" if name == "B" else f"{value:.1f} {name}"
        value /= 1000
    return f"{value:.1f} GB"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds."""
    if seconds is None:
        return DASH
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return DASH if value is None else f"{value:,.0f}"


def words(name: str) -> str:
    """An id as words: `held_out_gain` is `Held out gain`."""
    plain = name.replace("_", " ")
    return plain[:1].upper() + plain[1:]


def shared_note(notes: Sequence[str]) -> str:
    """The sentences that all notes begin with: what a metric means, without what is said of one variant only."""
    if len(set(notes)) == 1:
        return notes[0]
    same = itertools.takewhile(
        lambda sentences: len(set(sentences)) == 1, zip(*(note.split(". ") for note in notes), strict=False)
    )
    said = ". ".join(sentences[0] for sentences in same).rstrip(".")
    return f"{said}." if said else ""


def own_note(note: str, shared: str) -> str:
    """What a note says beyond the shared one."""
    return note.removeprefix(shared).strip()


def markdown(text: str) -> str:
    """User text inside Markdown: one line, with everything escaped that would be markup, HTML or a table's border."""
    escaped = re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", str(text))
    return " ".join(escaped.replace("<", "&lt;").replace(">", "&gt;").split())
