"""The lorebook of a card: which entries a conversation wakes, in bounded time, and what of them fits.

As in other programs, a key may stand anywhere in a word unless the entry asks for whole words. lorebook_entries.py
reads entries, lorebook_keys.py searches for keys, and world_info.py reads lorebook files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from persona_lab.personas.lorebook_entries import MAX_CONTENT, MAX_ENTRIES, Book, Entry, book_of
from persona_lab.personas.lorebook_keys import Patience, Search
from persona_lab.types import Inserted

__all__ = ["Book", "Count", "Entry", "Lore", "book_of", "constant_lore", "lore_for", "rough_tokens"]

MAX_SCANNED = 20_000
"""Characters of the conversation that are scanned, the newest."""
MAX_ROUNDS = 5
"""Of scanning what woken entries say for the keys of others."""
Fill = Callable[[str], str]
Count = Callable[[str], int]


@dataclass(frozen=True)
class Lore:
    """What goes into a prompt: texts before and after the description, and in the conversation; how that came about."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    inserted: tuple[Inserted, ...] = ()
    """In the conversation, in order of insertion; never a constant entry, which training sees in the system prompt."""
    used: tuple[Entry, ...] = ()
    left_out: tuple[Entry, ...] = ()
    """Woken, but over the token budget."""
    problems: tuple[str, ...] = field(default=(), compare=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of the system prompt."""
        return (*self.before, *self.after)


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
    newest = lru_cache(None)(lambda depth: _newest(messages, depth))  # most entries look equally far back
    for entry in able:
        text = newest(book.scan_depth if entry.scan_depth is None else entry.scan_depth)
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
    spoken = {id(e) for e in used if e.depth is not None and not e.constant}
    inserted = [e for e in used if id(e) in spoken]
    system = [e for e in used if id(e) not in spoken]
    return Lore(
        before=tuple(texts[e.number] for e in system if e.before),
        after=tuple(texts[e.number] for e in system if not e.before),
        inserted=tuple(Inserted(depth=e.depth or 0, role=e.role, content=texts[e.number]) for e in inserted),
        used=tuple(used),
        left_out=tuple(left_out),
    )


def _joined(book: Book, one: Lore, other: Lore, fill: Fill, problems: Sequence[str]) -> Lore:
    """Both in one order of insertion."""
    both = _laid_out(replace(book, token_budget=MAX_CONTENT * MAX_ENTRIES), (*one.used, *other.used), fill, len)
    return replace(both, left_out=(*one.left_out, *other.left_out), problems=tuple(problems))
