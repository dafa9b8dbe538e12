"""World-info and lorebook files of chat front-ends, as entries of a card's `character_book`; unknown keys are kept.

Known: SillyTavern's world info (`entries` by uid), a bare `character_book`, `lorebook_v3`, NovelAI, Agnai and RisuAI.
What an entry of another shape held beyond the book's own fields stays in its `extensions`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from persona_lab.datasets.toolkit import json_type
from persona_lab.errors import BadInput
from persona_lab.personas.lorebook_entries import MAX_ENTRIES, rows_of

_SILLY = {
    "key", "keysecondary", "content", "comment", "constant", "selective", "order", "position", "disable", "uid",
    "extensions", "caseSensitive", "useRegex",
}  # fmt: skip
# a name of SillyTavern's world info -> its name in an entry's `extensions`, where the two differ
_RENAMED = {
    "selectiveLogic": "selectiveLogic",
    "scanDepth": "scan_depth",
    "matchWholeWords": "match_whole_words",
    "excludeRecursion": "exclude_recursion",
    "preventRecursion": "prevent_recursion",
    "delayUntilRecursion": "delay_until_recursion",
    "useProbability": "useProbability",
    "displayIndex": "display_index",
    "groupOverride": "group_override",
    "groupWeight": "group_weight",
    "useGroupScoring": "use_group_scoring",
    "automationId": "automation_id",
}


@dataclass(frozen=True)
class WorldInfo:
    """A lorebook on its own. `book` is a `character_book`; `kind` what the file was, for people."""

    book: dict[str, Any]
    kind: str

    @property
    def entries(self) -> list[dict[str, Any]]:
        return self.book["entries"]


def is_world_info(raw: Any) -> bool:
    """Whether a JSON document is a lorebook rather than a card."""
    if not isinstance(raw, dict) or "first_mes" in raw or "char_name" in raw:
        return False
    if raw.get("spec") == "lorebook_v3" or raw.get("type") == "risu" or "lorebookVersion" in raw:
        return True
    entries = raw.get("entries")
    if raw.get("spec") or not isinstance(entries, (dict, list)) or ("description" in raw and "personality" in raw):
        return False
    found = list(entries.values()) if isinstance(entries, dict) else entries
    return all(isinstance(entry, dict) for entry in found)


def read_world_info(raw: Mapping[str, Any], name: str) -> WorldInfo:
    """A lorebook file's content as a book.

    Raises:
        BadInput: an entry is of a shape that nothing can be made of; too many entries.
    """
    if raw.get("spec") == "lorebook_v3" and isinstance(raw.get("data"), dict):
        book, kind = dict(raw["data"]), "a lorebook (V3)"
        book["entries"] = [dict(entry) for entry in _rows(book.get("entries"), name)]
    elif raw.get("type") == "risu":
        book, kind = {"entries": [_of_risu(e) for e in _rows(raw.get("data"), name)]}, "a RisuAI lorebook"
    elif "lorebookVersion" in raw:
        book, kind = {"entries": [_of_novel(e) for e in _rows(raw.get("entries"), name)]}, "a NovelAI lorebook"
    elif raw.get("kind") == "memory":
        rows = _rows(raw.get("entries"), name)
        book, kind = {"name": raw.get("name") or "", "entries": [_of_agnai(e) for e in rows]}, "an Agnai memory book"
    else:
        book, kind = _of_tavern(raw, name)
    if len(book["entries"]) > MAX_ENTRIES:
        raise BadInput(
            f"{name} has {len(book['entries']):,} lorebook entries; at most {MAX_ENTRIES:,} are read.", "Split it."
        )
    book.setdefault("extensions", {})
    return WorldInfo(book, kind)


def _of_tavern(raw: Mapping[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """SillyTavern's world info, or a `character_book` on its own: the entries tell which."""
    original = raw.get("originalData")
    rows = _rows(raw.get("entries"), name)
    silly = any("key" in row or "keysecondary" in row for row in rows)
    head = {key: copy.deepcopy(value) for key, value in raw.items() if key not in ("entries", "originalData")}
    if isinstance(original, dict):
        for key in ("name", "description", "scan_depth", "token_budget", "recursive_scanning", "extensions"):
            if key in original:
                head.setdefault(key, copy.deepcopy(original[key]))
    entries = [_of_silly(row) if silly else copy.deepcopy(dict(row)) for row in rows]
    return {**head, "entries": entries}, "a SillyTavern world-info file" if silly else "a lorebook"


def _rows(entries: Any, name: str) -> list[Mapping[str, Any]]:
    rows = list(entries.values()) if isinstance(entries, dict) else entries
    if not isinstance(rows, list):
        raise BadInput(f"{name}: `entries` is a JSON {json_type(entries)}, not a list.", "Export the lorebook again.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadInput(
                f"{name}: entry {number} is a JSON {json_type(row)}, not an object.", "Export the lorebook again."
            )
    return rows


def _of_silly(row: Mapping[str, Any]) -> dict[str, Any]:
    extensions = dict(row["extensions"]) if isinstance(row.get("extensions"), dict) else {}
    for key, value in row.items():
        if key not in _SILLY:
            extensions[_RENAMED.get(key, key)] = copy.deepcopy(value)
    position = row.get("position")
    if isinstance(position, int) and not isinstance(position, bool):
        extensions["position"] = position
    entry: dict[str, Any] = {
        "id": row.get("uid"),
        "keys": _texts(row.get("key")),
        "secondary_keys": _texts(row.get("keysecondary")),
        "comment": _text(row.get("comment")),
        "content": _text(row.get("content")),
        "constant": bool(row.get("constant")),
        "selective": bool(row.get("selective", True)),
        "insertion_order": _number(row.get("order"), 100),
        "enabled": not row.get("disable"),
        "position": "before_char" if position == 0 else "after_char",
        "extensions": extensions,
    }
    if row.get("caseSensitive") is not None:
        entry["case_sensitive"] = bool(row["caseSensitive"])
    return entry


def _of_risu(row: Mapping[str, Any]) -> dict[str, Any]:
    regex = row.get("useRegex")
    return {
        "keys": _texts(row.get("key")),
        "secondary_keys": _texts(row.get("secondkey")),
        "comment": _text(row.get("comment")),
        "content": _text(row.get("content")),
        "constant": bool(row.get("alwaysActive")),
        "selective": bool(row.get("selective")),
        "insertion_order": _number(row.get("insertorder"), 100),
        "enabled": True,
        "extensions": {"risuai": copy.deepcopy(dict(row))},
        **({"use_regex": True} if regex else {}),
    }


def _of_novel(row: Mapping[str, Any]) -> dict[str, Any]:
    config = row.get("contextConfig")
    order = config.get("budgetPriority") if isinstance(config, dict) else None
    return {
        "keys": _texts(row.get("keys")),
        "comment": _text(row.get("displayName")),
        "content": _text(row.get("text")),
        "constant": bool(row.get("forceActivation")),
        "insertion_order": _number(order, 100),
        "enabled": row.get("enabled") is not False,
        "extensions": {"novelai": copy.deepcopy(dict(row))},
    }


def _of_agnai(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "keys": _texts(row.get("keywords")),
        "name": _text(row.get("name")),
        "content": _text(row.get("entry")),
        "insertion_order": _number(row.get("weight"), 100),
        "priority": _number(row.get("priority"), 0),
        "enabled": row.get("enabled") is not False,
        "extensions": {"agnai": copy.deepcopy(dict(row))},
    }


def added_to(book: Mapping[str, Any] | None, more: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
    """The book with more entries at its end, and how many were new; one that is there already is passed over."""
    merged: dict[str, Any] = copy.deepcopy(dict(book)) if isinstance(book, Mapping) else {"extensions": {}}
    merged["entries"] = entries = rows_of(merged)
    known = {_identity(entry) for entry in entries if isinstance(entry, dict)}
    added = 0
    for entry in more:
        if _identity(entry) not in known:
            known.add(_identity(entry))
            entries.append(copy.deepcopy(dict(entry)))
            added += 1
    if len(entries) > MAX_ENTRIES:
        raise BadInput(
            f"The lorebook would have {len(entries):,} entries; at most {MAX_ENTRIES:,} are kept.", "Add fewer."
        )
    return merged, added


def _identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(_texts(entry.get("keys")))), _text(entry.get("content")).strip()


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any, otherwise: int) -> int | float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise
