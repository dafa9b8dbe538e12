"""Near-duplicates: which conversations say nearly the same, found exactly, without comparing all pairs.

Similarity is the Jaccard index of word 3-grams. Candidates come from prefix filtering: two sets with a Jaccard index of
at least t share one of their rarest |x| - ceil(t |x|) + 1 elements. Source: Bayardo, Ma, Srikant, "Scaling Up All Pairs
Similarity Search" (2007), https://doi.org/10.1145/1242572.1242591.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from persona_lab.datasets.progress import ticking
from persona_lab.types import Conversation

if TYPE_CHECKING:
    import numpy as np

WHOLE_THRESHOLD = 0.6
REPLY_THRESHOLD = 0.7
_SHORT_REPLY = 5
_NEWEST = 500
_ROUNDING = 1e-9
_WORD = re.compile(r"\w+")

Shingles = frozenset[tuple[str, ...]]


def shingles(text: str, size: int = 3) -> Shingles:
    """The word n-grams of a text, without case and punctuation; of a shorter text, all its words as one."""
    words = _WORD.findall(text.casefold())
    return frozenset(tuple(words[i : i + size]) for i in range(max(len(words) - size + 1, 1))) if words else frozenset()


def jaccard(a: Shingles, b: Shingles) -> float:
    """Size of the intersection over that of the union; 0 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 0.0


def similar_pairs(sets: Sequence[Shingles], threshold: float) -> Iterator[tuple[int, int]]:
    """All (i, j), i before j in size order, whose Jaccard index is at least `threshold`. Empty sets match nothing."""
    frequency = Counter(item for each in sets for item in each)
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        items = sorted(sets[number], key=lambda item: (frequency[item], item))
        prefix = items[: len(items) - math.ceil(threshold * len(items)) + 1]
        smallest = threshold * len(items)
        candidates = {other for item in prefix for other in index[item] if len(sets[other]) >= smallest}
        for other in sorted(candidates):
            if jaccard(sets[number], sets[other]) >= threshold:
                yield other, number
        for item in prefix:
            index[item].append(number)


def near_duplicates(conversations: Sequence[Conversation]) -> list[tuple[int, int]]:
    """Pairs of conversations alike as a whole (0.6), or in what the assistant says (0.7; only if it says a little more
    than a word or two: "Yes, love." in two conversations is no leak).

    Of a family of conversations that are all alike, enough pairs to join it are given, not all of them.
    """
    count, looking = len(conversations), "looking for near-duplicates"
    whole = [hashes(_said(c, ("user", "assistant"))) for c in ticking(conversations, count, looking)]
    alike = set(linked_pairs(whole, WHOLE_THRESHOLD))
    replies = [hashes(_said(c, ("assistant",)), _SHORT_REPLY) for c in ticking(conversations, count, looking)]
    return sorted(alike.union(linked_pairs(replies, REPLY_THRESHOLD)))


def linked_pairs(sets: Sequence[np.ndarray], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, that join what `similar_pairs` joins, for many sets in little memory.

    Args:
        sets: of each text the hashes of its shingles, int64 [shingles], each once.

    Equal sets are compared once, sets that are joined already not again, and of elements that very many sets have only
    the newest 500 sets are looked at: a family of 100,000 alike rows costs no 5 billion comparisons.
    """
    import numpy as np  # here: describing a model needs none of it

    if not any(len(each) for each in sets):
        return
    links = Clusters(len(sets))
    first: dict[bytes, int] = {}
    for number, each in enumerate(ticking(sets, len(sets), "looking for near-duplicates")):
        known = first.setdefault(each.tobytes(), number) if len(each) else number
        if known != number:
            links.join(number, known)
            yield known, number
    different = [number for number in first.values() if len(sets[number])]
    ranked, lonely = _by_rarity([sets[number] for number in different])
    marks = [_mark(items) for items in ticking(ranked, len(ranked), "looking for near-duplicates")]
    needed = threshold / (1 + threshold)
    index: dict[int, list[int]] = defaultdict(list)
    order = sorted(range(len(different)), key=lambda i: len(ranked[i]))
    for place in ticking(order, len(order), "looking for near-duplicates"):
        items, number = ranked[place], different[place]
        size, mark = len(items), marks[place]
        prefix = items[: size - math.ceil(threshold * size - _ROUNDING) + 1]
        shared = prefix[np.searchsorted(prefix, lonely) :].tolist()  # what no other set has finds nothing
        candidates = {other for item in shared if item in index for other in index[item][-_NEWEST:]}
        for other in sorted(candidates):
            theirs = ranked[other]
            both = size + len(theirs)
            # bits that only one of two marks has are elements that only one has (Sandes et al. 2020, bitmap filter)
            if (
                both - (mark ^ marks[other]).bit_count() < 2 * needed * both - _ROUNDING
                or len(theirs) < threshold * size
            ):
                continue
            if links.root(different[other]) == links.root(number):
                continue
            common = len(np.intersect1d(items, theirs, assume_unique=True))
            if common >= threshold * (both - common) - _ROUNDING:
                links.join(number, different[other])
                yield min(number, different[other]), max(number, different[other])
        # a later set is at least as large, so that a shorter prefix finds it (Xiao et al. 2008, PPJoin, lemma 3)
        indexed = size - math.ceil(2 * needed * size - _ROUNDING) + 1
        for item in shared[: max(indexed - (len(prefix) - len(shared)), 0)]:
            index[item].append(place)


def _mark(items: np.ndarray) -> int:
    """A set as 512 bits: the bit of each element's remainder."""
    mark = 0
    for item in items.tolist():
        mark |= 1 << (item & 511)
    return mark


def _by_rarity(sets: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """The sets with their elements numbered by rarity, rarest first; and how many elements occur only once."""
    import numpy as np  # here: describing a model needs none of it

    flat = np.concatenate(sets)
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int32)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts), dtype=np.int32)
    edges = np.cumsum([0, *(len(each) for each in sets)])
    ranked = rank[inverse]
    return [np.sort(ranked[a:b]) for a, b in pairwise(edges)], int((counts == 1).sum())


def hashes(text: str, fewest: int = 1) -> np.ndarray:
    """The shingles of a text as hashes, int64 [shingles], sorted; none where there are fewer than `fewest`."""
    import numpy as np  # here: describing a model needs none of it

    found = shingles(text)
    if len(found) < fewest:
        return np.empty(0, dtype=np.int64)
    return np.sort(np.fromiter((hash(each) for each in found), dtype=np.int64, count=len(found)))


def _said(conversation: Conversation, roles: tuple[str, ...]) -> str:
    return "\n".join(message.content for message in conversation.messages if message.role in roles)


class Clusters:
    """Disjoint sets of 0 .. count - 1, joined pair by pair."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, item: int) -> int:
        """The set's representative."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, a: int, b: int) -> None:
        """Make the sets of `a` and `b` one."""
        self._parent[self.root(a)] = self.root(b)

    def members(self) -> list[list[int]]:
        """The sets, each in ascending order."""
        found: dict[int, list[int]] = defaultdict(list)
        for item in range(len(self._parent)):
            found[self.root(item)].append(item)
        return list(found.values())
