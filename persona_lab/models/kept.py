"""Foundations: base models trained here and kept under `<home>/models/<id>`, to make several characters from.

The marker of such a folder says what it is made of, and `corpus_read.jsonl` holds the very passages it was trained on,
so that it can be told later whether it has read a line. It does not train; `training/foundation.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from persona_lab.datasets.corpus_filter import HeldText
from persona_lab.errors import BadInput, BadModel
from persona_lab.home import Home, write_atomic
from persona_lab.models import cache
from persona_lab.models.weights import read_json
from persona_lab.types import ID_PATTERN, BaseModelInfo

KIND = "foundation"
READ = "corpus_read.jsonl"
NAMED_LINES = 3


def find(home: Home, model_id: str) -> BaseModelInfo | None:
    """The kept foundation of this id, or None.

    Raises:
        BadModel: it is damaged.
    """
    if not re.fullmatch(ID_PATTERN, model_id) or not _is_kept(home, model_id):
        return None
    return cache.cached(home, model_id)


def find_made_of(home: Home, recipe: str) -> BaseModelInfo | None:
    """The kept foundation that was made of just this (see `recipe` in training/foundation.py), under whatever name."""
    return next((find(home, name) for name in ids(home) if marker(home, name).get("recipe") == recipe), None)


def ids(home: Home) -> list[str]:
    """The ids of all kept foundations, sorted."""
    return list(_ids(home))


def marker(home: Home, model_id: str) -> dict[str, Any]:
    """What is noted of a kept foundation: recipe, origin, corpus, fit; {} where there is none."""
    return read_json(home.model(model_id) / cache.MARKER) if _is_kept(home, model_id) else {}


def write_read(folder: Path, passages: Iterable[str]) -> None:
    """Note what a foundation was trained on, a passage a line."""
    write_atomic(folder / READ, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in passages))


def lines_read(home: Home, model_id: str, lines: Iterable[str], keys: Collection[str] = ()) -> list[str]:
    """The passages of a kept foundation that hold, or nearly repeat, one of these lines; [] of any other base.

    Args:
        keys: fingerprints (`held_out.reply_key`) of lines whose text is not at hand.

    Raises:
        BadModel: the foundation does not say any more what it has read.
    """
    if not _is_kept(home, model_id):
        return []
    path = home.model(model_id) / READ
    held = HeldText(lines, keys)
    try:
        passages = [str(json.loads(row)["text"]) for row in path.read_text(encoding="utf-8").split("\n") if row]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(
            f"What the foundation {model_id!r} was trained on cannot be read from {path}: {error}.",
            "Scores on it might be of lines that it has read. Train it again.",
        ) from error
    return [text for text in passages if held.held(text)]


def check_unread(home: Home, model_id: str, lines: Iterable[str], keys: Collection[str] = ()) -> None:
    """Refuse held-out lines that a kept foundation was trained on; any other base is passed.

    Raises:
        BadInput: with the first passages. BadModel: as `lines_read`.
    """
    found = lines_read(home, model_id, lines, keys)
    if found:
        told = "; ".join(repr(text[:100]) for text in found[:NAMED_LINES])
        raise BadInput(
            f"The foundation {model_id!r} was trained on lines that are held out here: {len(found)} of its passages "
            f"hold one ({told}).",
            "Scores would mean nothing. Train one with the strategy `foundation` now: it leaves these lines out.",
        )


def _ids(home: Home) -> Iterator[str]:
    for path in sorted((home.root / "models").glob(f"*/{cache.MARKER}")):
        if _is_kept(home, path.parent.name):
            yield path.parent.name


def _is_kept(home: Home, model_id: str) -> bool:
    path = home.model(model_id) / cache.MARKER
    try:
        return path.is_file() and read_json(path).get("kind") == KIND
    except BadModel:
        return False  # a damaged marker is named when the folder is asked for
