"""Earlier versions of a persona's card and picture, so that an edit can be taken back, and brought back again.

    <persona>/versions/00007.json     {"saved": time, "card": {...}, "avatar": "<sha256>.png" or null}
    <persona>/versions/undone/...     what was taken back; the next edit clears it
    <persona>/versions/<sha256>.png   the pictures that versions name

A version is what an edit replaced. The last 50 are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lab.datasets.toolkit import read_bytes
from persona_lab.errors import BadInput
from persona_lab.home import write_atomic
from persona_lab.personas.bounded import bounded_json
from persona_lab.personas.cards import card_to_json
from persona_lab.types import now

VERSIONS, UNDONE = "versions", "undone"
CARD, AVATAR = "card.json", "avatar.png"
MAX_VERSIONS = 50


@dataclass(frozen=True)
class Version:
    """One earlier version. `saved`: when it was replaced."""

    number: int
    saved: str
    card: dict[str, Any]
    avatar: str | None


def versions(folder: Path) -> list[Version]:
    """Earlier versions, newest first; damaged files are passed over."""
    return list(_read_all(folder / VERSIONS))


def can_redo(folder: Path) -> bool:
    """Whether something was taken back since the last edit."""
    return next(_read_all(folder / VERSIONS / UNDONE), None) is not None


def can_undo(folder: Path) -> bool:
    """Whether there is an earlier version."""
    return next(_read_all(folder / VERSIONS), None) is not None


def keep_version(folder: Path) -> None:
    """Keep the card as it is now, before an edit replaces it; nothing where there is no card yet.

    Raises:
        DiskFull: nothing was changed.
    """
    if not (folder / CARD).is_file():
        return
    _push(folder, folder / VERSIONS)
    for path in (folder / VERSIONS / UNDONE).glob("*.json"):
        path.unlink()
    _prune(folder)


def undo_edit(folder: Path) -> None:
    """Put the version before the last edit back.

    Raises:
        BadInput: there is none.
    """
    _swap(folder, folder / VERSIONS, folder / VERSIONS / UNDONE, "There is no earlier version of this card.")


def redo_edit(folder: Path) -> None:
    """Bring back what `undo_edit` took back.

    Raises:
        BadInput: nothing was taken back since the last edit.
    """
    _swap(folder, folder / VERSIONS / UNDONE, folder / VERSIONS, "Nothing was taken back since the last edit.")


def _swap(folder: Path, source: Path, target: Path, none: str) -> None:
    version = next(_read_all(source), None)
    if version is None:
        raise BadInput(none, "Edit the card first.")
    _push(folder, target)
    if version.avatar is not None:
        write_atomic(folder / AVATAR, (folder / VERSIONS / version.avatar).read_bytes())
    else:
        (folder / AVATAR).unlink(missing_ok=True)
    write_atomic(folder / CARD, card_to_json(version.card))
    _file(source, version.number).unlink()


def _push(folder: Path, stack: Path) -> None:
    card = bounded_json(read_bytes(folder / CARD).decode(), str(folder / CARD))
    avatar = None
    if (folder / AVATAR).is_file():
        content = (folder / AVATAR).read_bytes()
        avatar = f"{hashlib.sha256(content).hexdigest()}.png"
        if not (folder / VERSIONS / avatar).is_file():
            write_atomic(folder / VERSIONS / avatar, content)
    # of every file, also of one that cannot be read: it must not be written over
    number = max((int(path.stem) for path in stack.glob("[0-9]*.json") if path.stem.isdecimal()), default=0) + 1
    document = {"saved": now(), "card": card, "avatar": avatar}
    write_atomic(_file(stack, number), json.dumps(document, ensure_ascii=False))


def _prune(folder: Path) -> None:
    """Let go of the oldest versions, and of pictures that none names."""
    kept = versions(folder)
    for version in kept[MAX_VERSIONS:]:
        _file(folder / VERSIONS, version.number).unlink(missing_ok=True)
    named = {version.avatar for version in kept[:MAX_VERSIONS]}
    for path in (folder / VERSIONS).glob("*.png"):
        if path.name not in named:
            path.unlink()


def _file(stack: Path, number: int) -> Path:
    return stack / f"{number:05}.json"


def _read_all(stack: Path) -> Iterator[Version]:
    for path in sorted(stack.glob("[0-9]*.json"), reverse=True):
        try:
            row = json.loads(path.read_text("utf-8"))
            version = Version(int(path.stem), str(row["saved"]), dict(row["card"]), row["avatar"])
        except (ValueError, KeyError, TypeError, OSError):
            continue
        if version.avatar is None or (stack / version.avatar).is_file() or (stack.parent / version.avatar).is_file():
            yield version
