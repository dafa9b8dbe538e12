"""Small pieces of HTML and numbers in words, shared by the tabs. Everything that goes in as text comes out escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image

from persona_lab.home import write_atomic

AVATAR_PIXELS = 192

# Clicks (and Enter or Space: the items are real buttons) on anything with data-id become a `select` event.
PICK_SCRIPT = """
element.addEventListener('click', (event) => {
  const item = event.target.closest('[data-id]');
  if (item) trigger('select', {id: item.dataset.id});
});
"""


def esc(text: object) -> str:
    """Text made safe for HTML, quotes included."""
    return html.escape(str(text), quote=True)


def size(count: float) -> str:
    """Bytes in words: `1.2 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.0f} {unit}" if value >= 10 or unit == "kB" else f"{value:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def number(count: float) -> str:
    """A count in words: `4.9 million`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} billion"
    if count >= 1e6:
        return f"{count / 1e6:.1f} million"
    return f"{count:,.0f}"


def plural(count: int, noun: str) -> str:
    """`1 conversation`, `2 conversations`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def when(stamp: str) -> str:
    """An ISO 8601 time as `2026-01-31 18:05`; an empty string stays empty."""
    return stamp[:16].replace("T", " ")


def empty(title: str, hint: str) -> str:
    """What a place says when it has nothing to show: what it is, and what to do."""
    return f'<div class="pl-empty"><strong>{esc(title)}</strong><p>{esc(hint)}</p></div>'


def chip(text: str, tone: str = "") -> str:
    """A small rounded label; `tone`: `good`, `bad`, `warn`, `busy`, or none."""
    return f'<span class="pl-chip {f"pl-chip-{tone}" if tone else ""}">{esc(text)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table; `head` and `caption` are plain text, the cells are HTML already."""
    top = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="pl-scroll"><table class="pl-table"><caption>{esc(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def avatar(path: str | None, name: str, pixels: int = 64) -> str:
    """A round picture, or the name's first letter where there is none."""
    data = thumbnail(path)
    if data:
        return f'<img class="pl-avatar" src="{data}" alt="" width="{pixels}" height="{pixels}">'
    hue = sum(name.encode()) * 37 % 360
    style = f"width:{pixels}px;height:{pixels}px;background:hsl({hue} 45% 45%)"
    letter = esc(name[:1].upper() or "?")
    return f'<span class="pl-avatar pl-letter" aria-hidden="true" style="{style}">{letter}</span>'


def thumbnail(path: str | None) -> str:
    """A small picture as a data URL; empty if there is none."""
    return _thumbnail(path, _changed(path)) if path else ""


def thumbnail_file(path: str | None, folder: Path) -> str | None:
    """The same small picture as a file in `folder`, for components that take files only; None if there is none."""
    data = thumbnail(path)
    if not data:
        return None
    content = base64.b64decode(data.partition(",")[2])
    file = folder / f"avatar-{hashlib.sha256(content).hexdigest()[:12]}.webp"
    if not file.exists():
        write_atomic(file, content)
    return str(file)


def _changed(path: str) -> float:
    file = Path(path)
    return file.stat().st_mtime if file.is_file() else 0.0


@lru_cache(maxsize=256)
def _thumbnail(path: str, changed: float) -> str:
    """A small WebP as a data URL, so that the page serves no file; empty if there is no readable picture."""
    if not changed:
        return ""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((AVATAR_PIXELS, AVATAR_PIXELS))
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    out = io.BytesIO()
    small.save(out, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
