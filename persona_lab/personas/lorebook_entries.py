"""The lorebook of a card, read: entries ready to be matched, with their limits. lorebook.py matches them.

Source: character card specifications V2 and V3 (`character_book`, decorators); what SillyTavern keeps in an entry's
`extensions` (selectiveLogic, match_whole_words, scan_depth, exclude_recursion, prevent_recursion, probability, and
position 4 with depth and role) is used too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from persona_lab.types import Role

DEFAULT_SCAN_DEPTH = 4
MAX_SCAN_DEPTH = 100
DEFAULT_BUDGET = 1_000
MAX_BUDGET = 4_000
MAX_ENTRIES = 5_000
MAX_KEYS = 20_000
"""Of the whole book."""
MAX_CONTENT = 20_000
_LARGEST = 1_000_000_000
_DECORATOR = re.compile(r"@@(@?)([a-z_]{1,40})[ \t]*(.*)")
Logic = Literal["any", "not_all", "not_any", "all"]
_LOGIC: tuple[Logic, ...] = ("any", "not_all", "not_any", "all")
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
"""By their number in `extensions.role`."""
AT_DEPTH = 4
"""`extensions.position` of an entry that stands in the conversation."""
DEFAULT_DEPTH = 4
MAX_DEPTH = 10_000


@dataclass(frozen=True)
class Entry:
    """One entry, ready to be matched. `number`: its place in the book, from 0."""

    number: int
    title: str
    content: str
    keys: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    enabled: bool = True
    constant: bool = False
    selective: bool = False
    logic: Logic = "any"
    order: float = 100
    priority: float = 0
    before: bool = False
    depth: int | None = None
    """Messages between it and the end of the conversation; None: it stands in the system prompt."""
    role: Role = "system"
    """Whose words it is, where it stands in the conversation."""
    case_sensitive: bool = False
    whole_words: bool = False
    regex: bool = False
    scan_depth: int | None = None
    recursable: bool = True
    """Whether what other entries say can wake it."""
    recurses: bool = True
    """Whether what it says can wake others."""
    probability: float = 100
    after_replies: int = 0
    every_replies: int = 1
    ignored: tuple[str, ...] = ()
    """Decorators that are not understood here."""


@dataclass(frozen=True)
class Book:
    """A lorebook with its limits."""

    entries: tuple[Entry, ...] = ()
    scan_depth: int = DEFAULT_SCAN_DEPTH
    token_budget: int = DEFAULT_BUDGET
    recursive: bool = False


# --- reading --------------------------------------------------------------------------------------


def rows_of(book: Any) -> list[Any]:
    """A lorebook's entries as they were written, in a list or in an object by uid."""
    rows = book.get("entries") if isinstance(book, Mapping) else None
    return list(rows.values()) if isinstance(rows, Mapping) else rows if isinstance(rows, list) else []


def book_of(data: Mapping[str, Any]) -> Book:
    """The lorebook of a card's `data`; empty where there is none. What cannot be used of it is passed over."""
    raw = data.get("character_book")
    if not isinstance(raw, dict):
        return Book()
    rows = rows_of(raw)
    entries: list[Entry] = []
    keys = 0
    for number, row in enumerate(rows[:MAX_ENTRIES]):
        if isinstance(row, dict):
            entry = entry_of(row, number)
            keys += len(entry.keys) + len(entry.secondary) + len(entry.excluded)
            if keys > MAX_KEYS:
                break
            entries.append(entry)
    return Book(
        entries=tuple(entries),
        scan_depth=_whole(raw.get("scan_depth"), DEFAULT_SCAN_DEPTH, MAX_SCAN_DEPTH),
        token_budget=_whole(raw.get("token_budget"), DEFAULT_BUDGET, MAX_BUDGET),
        recursive=raw.get("recursive_scanning") is True,
    )


def entry_of(row: Mapping[str, Any], number: int) -> Entry:
    """One entry of a `character_book`; fields of the wrong type count as absent."""
    more = row.get("extensions")
    more = more if isinstance(more, dict) else {}
    written = row.get("content")
    content = written if isinstance(written, str) else ""
    title = next((t for t in (row.get("comment"), row.get("name")) if isinstance(t, str) and t.strip()), "")
    keys = _texts(row.get("keys"))
    logic = more.get("selectiveLogic")
    case = row.get("case_sensitive", more.get("case_sensitive"))
    entry = Entry(
        number=number,
        title=title.strip()[:100] or ", ".join(keys)[:100] or f"entry {number + 1}",
        content=content[:MAX_CONTENT],
        keys=keys,
        secondary=_texts(row.get("secondary_keys")),
        enabled=row.get("enabled") is not False,
        constant=row.get("constant") is True,
        selective=row.get("selective") is True,
        logic=_LOGIC[logic] if type(logic) is int and 0 <= logic < len(_LOGIC) else "any",
        order=_number(row.get("insertion_order"), 100),
        priority=_number(row.get("priority"), 0),
        before=row.get("position") == "before_char",
        depth=depth_of(more),
        role=role_of(more),
        case_sensitive=case is True,
        whole_words=more.get("match_whole_words") is True,
        regex=row.get("use_regex") is True,
        scan_depth=_whole(more["scan_depth"], 0, MAX_SCAN_DEPTH) if _is_number(more.get("scan_depth")) else None,
        recursable=more.get("exclude_recursion") is not True,
        recurses=more.get("prevent_recursion") is not True,
        probability=_number(more.get("probability"), 100) if more.get("useProbability") is not False else 100,
    )
    return _decorated(entry)


def depth_of(more: Mapping[str, Any]) -> int | None:
    """How deep in the conversation an entry with these `extensions` stands; None: not in it."""
    position = more.get("position")
    if type(position) is not int or position != AT_DEPTH:
        return None
    return _whole(more.get("depth"), DEFAULT_DEPTH, MAX_DEPTH)


def role_of(more: Mapping[str, Any]) -> Role:
    """Whose words an entry with these `extensions` is."""
    number = more.get("role")
    return ROLES[number] if type(number) is int and 0 <= number < len(ROLES) else "system"


def _decorated(entry: Entry) -> Entry:
    """The entry with the decorators at the head of its content obeyed and taken away."""
    lines = entry.content.split("\n")
    ignored: list[str] = []
    understood = True
    at = 0
    while at < len(lines) and (match := _DECORATOR.fullmatch(lines[at].strip())):
        fallback, name, value = match.groups()
        at += 1
        if fallback and understood:
            continue  # it stands in for a decorator that is not understood
        changed = _obeyed(entry, name, value.strip())
        understood = changed is not None
        entry = changed or entry
        if not understood:
            ignored.append(name)
    return replace(entry, content="\n".join(lines[at:]).strip(), ignored=tuple(ignored))


def _obeyed(entry: Entry, name: str, value: str) -> Entry | None:
    listed = tuple(part.strip() for part in value.split(",") if part.strip())
    count = int(value) if value.isdecimal() and len(value) < 9 else None
    if name in ("activate", "dont_activate"):
        return replace(entry, constant=True) if name == "activate" else replace(entry, enabled=False)
    if name == "additional_keys":
        return replace(entry, secondary=entry.secondary + listed, selective=True)
    if name == "exclude_keys":
        return replace(entry, excluded=entry.excluded + listed)
    if name == "position" and value in ("before_desc", "after_desc", "personality", "scenario"):
        return replace(entry, before=value == "before_desc")
    if name == "role" and value in ROLES:
        return replace(entry, role=next(role for role in ROLES if role == value))
    if count is not None and name == "depth":
        return replace(entry, depth=min(count, MAX_DEPTH))
    if count is not None and name == "scan_depth":
        return replace(entry, scan_depth=min(count, MAX_SCAN_DEPTH))
    if count is not None and name == "activate_only_after":
        return replace(entry, after_replies=count)
    if count and name == "activate_only_every":
        return replace(entry, every_replies=count)
    return None


# --- values ---------------------------------------------------------------------------------------


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any, otherwise: float) -> float:
    return min(max(value, -_LARGEST), _LARGEST) if _is_number(value) else otherwise


def _whole(value: Any, otherwise: int, most: int) -> int:
    return int(min(max(value, 0), most)) if _is_number(value) else otherwise
