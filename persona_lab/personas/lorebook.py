"""The lorebook of a card: which entries a conversation wakes, in bounded time. It reads; world_info.py writes.

Source: character card specifications V2 and V3 (`character_book`, decorators); what SillyTavern keeps in an entry's
`extensions` (selectiveLogic, match_whole_words, scan_depth, exclude_recursion, prevent_recursion, probability) is used
too. As in those programs, a key may stand anywhere in a word unless the entry asks for whole words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from persona_lab.personas.lorebook_keys import Patience, Search

DEFAULT_SCAN_DEPTH = 4
MAX_SCAN_DEPTH = 100
MAX_SCANNED = 20_000
"""Characters of the conversation that are scanned, the newest."""
DEFAULT_BUDGET = 1_000
MAX_BUDGET = 4_000
MAX_ENTRIES = 5_000
MAX_KEYS = 20_000
"""Of the whole book."""
MAX_CONTENT = 20_000
MAX_ROUNDS = 5
"""Of scanning what woken entries say for the keys of others."""
_DECORATOR = re.compile(r"@@(@?)([a-z_]{1,40})[ \t]*(.*)")
Logic = Literal["any", "not_all", "not_any", "all"]
_LOGIC: tuple[Logic, ...] = ("any", "not_all", "not_any", "all")
Fill = Callable[[str], str]
Count = Callable[[str], int]


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


@dataclass(frozen=True)
class Lore:
    """What goes into a prompt: texts before and after the description, and how that came about."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    used: tuple[Entry, ...] = ()
    left_out: tuple[Entry, ...] = ()
    """Woken, but over the token budget."""
    problems: tuple[str, ...] = field(default=(), compare=False)

    @property
    def texts(self) -> tuple[str, ...]:
        return (*self.before, *self.after)


# --- reading --------------------------------------------------------------------------------------


def book_of(data: Mapping[str, Any]) -> Book:
    """The lorebook of a card's `data`; empty where there is none. What cannot be used of it is passed over."""
    raw = data.get("character_book")
    if not isinstance(raw, dict):
        return Book()
    rows = raw.get("entries")
    rows = list(rows.values()) if isinstance(rows, dict) else rows if isinstance(rows, list) else []
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
        case_sensitive=case is True,
        whole_words=more.get("match_whole_words") is True,
        regex=row.get("use_regex") is True,
        scan_depth=_whole(more["scan_depth"], 0, MAX_SCAN_DEPTH) if _is_number(more.get("scan_depth")) else None,
        recursable=more.get("exclude_recursion") is not True,
        recurses=more.get("prevent_recursion") is not True,
        probability=_number(more.get("probability"), 100) if more.get("useProbability") is not False else 100,
    )
    return _decorated(entry)


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
    if count is not None and name == "scan_depth":
        return replace(entry, scan_depth=min(count, MAX_SCAN_DEPTH))
    if count is not None and name == "activate_only_after":
        return replace(entry, after_replies=count)
    if count and name == "activate_only_every":
        return replace(entry, every_replies=count)
    return None


# --- matching -------------------------------------------------------------------------------------


def rough_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: a token for each four bytes."""
    return len(text.encode("utf-8", "replace")) // 4 + 1


def constant_lore(book: Book, fill: Fill = str) -> Lore:
    """The entries that are always there: what training and evaluation see of a lorebook."""
    return _laid_out(book, [entry for entry in book.entries if _alive(entry) and entry.constant], fill, rough_tokens)


def lore_for(
    book: Book, messages: Sequence[str], fill: Fill = str, count: Count = rough_tokens, replies: int | None = None
) -> Lore:
    """The entries that a conversation wakes, within the book's token budget.

    Args:
        messages: what was said, oldest first.
        fill: replaces macros.
        count: tokens of a text; constant entries are counted roughly, so that they are the same for every base.
        replies: how many of the messages the character said; None: half of them.
    """
    patience = Patience()
    said = len(messages) // 2 if replies is None else replies
    live = [entry for entry in book.entries if _alive(entry)]
    constant = [entry for entry in live if entry.constant]
    able = [e for e in live if not e.constant and said >= e.after_replies and (said % e.every_replies == 0)]
    woken: list[Entry] = []
    for entry in able:
        text = _newest(messages, book.scan_depth if entry.scan_depth is None else entry.scan_depth)
        if _wakes(entry, text, fill, patience):
            woken.append(entry)
    if book.recursive:
        woken += _woken_by_others([*constant, *woken], able, fill, patience)
    lore = _laid_out(book, constant, fill, rough_tokens)
    spent = sum(rough_tokens(text) for text in lore.texts)
    more = _laid_out(replace(book, token_budget=max(book.token_budget - spent, 0)), woken, fill, count)
    return _joined(book, lore, more, fill, patience.problems)


def _alive(entry: Entry) -> bool:
    return entry.enabled and bool(entry.content.strip()) and entry.probability > 0


def _newest(messages: Sequence[str], depth: int) -> str:
    """The last `depth` messages as one text, of bounded length; a line's end separates them."""
    return "\n".join(messages[len(messages) - depth :] if depth < len(messages) else messages)[-MAX_SCANNED:]


def _wakes(entry: Entry, text: str, fill: Fill, patience: Patience) -> bool:
    if not text or not entry.keys:
        return False
    search = Search(text, entry.case_sensitive, entry.whole_words, entry.regex, patience, entry.title)
    if not any(search(fill(key)) for key in entry.keys) or any(search(fill(key)) for key in entry.excluded):
        return False
    if not entry.selective or not entry.secondary:
        return True
    found: Iterator[bool] = (search(fill(key)) for key in entry.secondary)
    if entry.logic in ("any", "not_any"):
        return any(found) == (entry.logic == "any")
    return all(found) == (entry.logic == "all")


def _woken_by_others(awake: list[Entry], able: Sequence[Entry], fill: Fill, patience: Patience) -> list[Entry]:
    known = {entry.number for entry in awake}
    found: list[Entry] = []
    for _ in range(MAX_ROUNDS):
        text = "\n".join(entry.content for entry in awake if entry.recurses)[-MAX_SCANNED:]
        asleep = [entry for entry in able if entry.number not in known and entry.recursable]
        awake = [entry for entry in asleep if _wakes(entry, text, fill, patience)]
        if not awake:
            break
        known |= {entry.number for entry in awake}
        found += awake
    return found


def _laid_out(book: Book, entries: Sequence[Entry], fill: Fill, count: Count) -> Lore:
    """As many of the entries as fit, the higher priority first; then in the order of insertion."""
    left = book.token_budget
    used, left_out = [], []
    for entry in sorted(entries, key=lambda e: (-e.priority, e.order, e.number)):
        cost = count(fill(entry.content))
        if cost <= left:
            left -= cost
            used.append(entry)
        else:
            left_out.append(entry)
    used.sort(key=lambda e: (e.order, e.number))
    texts = {entry.number: fill(entry.content).strip() for entry in used}
    return Lore(
        before=tuple(texts[e.number] for e in used if e.before),
        after=tuple(texts[e.number] for e in used if not e.before),
        used=tuple(used),
        left_out=tuple(left_out),
    )


def _joined(book: Book, one: Lore, other: Lore, fill: Fill, problems: Sequence[str]) -> Lore:
    """Both in one order of insertion."""
    both = _laid_out(replace(book, token_budget=MAX_CONTENT * MAX_ENTRIES), (*one.used, *other.used), fill, len)
    return replace(both, left_out=(*one.left_out, *other.left_out), problems=tuple(problems))


# --- values ---------------------------------------------------------------------------------------


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any, otherwise: float) -> float:
    return value if _is_number(value) else otherwise


def _whole(value: Any, otherwise: int, most: int) -> int:
    return int(min(max(value, 0), most)) if _is_number(value) else otherwise
