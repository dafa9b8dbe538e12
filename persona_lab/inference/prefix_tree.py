"""Which prefixes of token sequences to run once: a tree of what items begin with alike. Runs nothing itself.

Lists of candidates under one system prompt, each after a context of its own, make a tree of two levels; small talk that
grows before every probe makes one of four. A level is there only where it saves enough tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

SHORTEST = 16
"""Tokens a level must add: below this a pass costs more than it saves."""
DEEPEST = 64
"""Branchings looked at along one path; what shares more is then run together as it is."""
LEVELS = 6
"""Levels along one path: the keys and values of each are held until all below it is done."""


class Sequenced(Protocol):
    """Something with ids, counted from ids[start]; the token before it has to be run with the item itself."""

    ids: tuple[int, ...]
    start: int


T = TypeVar("T", bound=Sequenced)


@dataclass
class Node(Generic[T]):
    """Items that begin with the same `length` tokens, `ids`. `items` share no more; `children` do."""

    ids: tuple[int, ...]
    items: list[T] = field(default_factory=list)
    children: list[Node[T]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens shared."""
        return len(self.ids)

    def everything(self) -> list[T]:
        """The items here and in all below."""
        return [*self.items, *(item for child in self.children for item in child.everything())]


def grow(items: Sequence[T], worth: int | None) -> Node[T]:
    """The tree of these items; its root shares nothing.

    Args:
        worth: tokens that a level must save over running its items one level up; None: no levels at all.
    """
    root: Node[T] = Node(())
    if worth is None:
        root.items += items
    else:
        _place(root, list(items), 0, worth, LEVELS, DEEPEST)
    return root


def _place(node: Node[T], items: list[T], known: int, worth: int, levels: int, depth: int) -> None:
    """Put the items, which begin alike for `known` tokens at least, into the node or below it."""
    if len(items) < 2 or not levels or not depth:
        node.items += items
        return
    alike = _alike(items, known)
    added = alike - node.length
    if added >= SHORTEST and added * (len(items) - 1) >= worth:
        child: Node[T] = Node(items[0].ids[:alike])
        node.children.append(child)
        node, levels = child, levels - 1
    parts: dict[int, list[T]] = {}
    for item in items:
        if item.start - 1 <= alike:
            node.items.append(item)
        else:
            parts.setdefault(item.ids[alike], []).append(item)
    for part in parts.values():
        _place(node, part, alike, worth, levels, depth - 1)


def _alike(items: Sequence[T], known: int) -> int:
    """Tokens that all begin with; `known` of them are known. The last token before an item's start does not count."""
    first = items[0].ids
    length = min(item.start for item in items) - 1
    for item in items[1:]:
        length = next((i for i in range(known, length) if item.ids[i] != first[i]), length)
    return length
