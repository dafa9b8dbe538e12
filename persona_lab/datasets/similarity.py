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

from persona_lab.types import Conversation

WHOLE_THRESHOLD = 0.6
REPLY_THRESHOLD = 0.7
_SHORT_REPLY = 5
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
    than a word or two: "Yes, love." in two conversations is no leak)."""
    whole = [shingles(_said(conversation, ("user", "assistant"))) for conversation in conversations]
    replies = [shingles(_said(conversation, ("assistant",))) for conversation in conversations]
    replies = [each if len(each) >= _SHORT_REPLY else frozenset() for each in replies]
    return sorted({*similar_pairs(whole, WHOLE_THRESHOLD), *similar_pairs(replies, REPLY_THRESHOLD)})


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
