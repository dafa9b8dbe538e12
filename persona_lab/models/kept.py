"""Foundations: base models trained here and kept under `<home>/models/<id>`, to make several characters from.

The marker of such a folder says what it is made of. It does not train; `training/foundation.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from persona_lab.errors import BadModel
from persona_lab.home import Home
from persona_lab.models import cache
from persona_lab.models.weights import read_json
from persona_lab.types import ID_PATTERN, BaseModelInfo

KIND = "foundation"


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
