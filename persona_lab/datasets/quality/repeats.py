"""Rows that repeat each other, and replies that turn up everywhere."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence

from persona_lab.datasets.held_out import exchanges, normalised
from persona_lab.datasets.quality.checks import Check, Context, Hit, excerpt, replies
from persona_lab.datasets.similarity import Clusters, near_duplicates
from persona_lab.types import Conversation, Dataset

_STRICTNESS = {"train": 1, "validation": 2, "test": 3}
MOST_OF_A_REPLY = 3
OPENING_WORDS = 3
OPENING_SHARE = 0.15
FEWEST_OPENINGS = 10
GROUP_SHARE = 0.6


def _same(conversation: Conversation) -> str:
    return "\n".join(f"{m.role}:{normalised(m.content)}" for m in conversation.messages if m.role != "system")


class _Repeats(Check):
    """Rows of which all but the best of each family are too many: the one held out most strictly, then the first."""

    @abstractmethod
    def families(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Indices of rows that repeat each other, two or more together."""

    def hits(self, dataset: Dataset, context: Context) -> list[Hit]:
        rows = dataset.conversations
        found = []
        for family in self.families(rows):
            kept = max(family, key=lambda i: (_STRICTNESS.get(rows[i].split or "", 0), -i))
            found += [Hit(i, f"like row {kept}: {excerpt(replies(rows[i])[0])}") for i in family if i != kept]
        return sorted(found, key=lambda hit: hit.row)


class ExactDuplicates(_Repeats):
    """The same words, whatever case, punctuation and spacing."""

    kind = "exact_duplicates"
    title = "Exact duplicates"
    why = "A row that comes twice is learnt twice as hard, and by heart."
    fix = "Keep one of each; a held-out one before others."

    def families(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for i, conversation in enumerate(conversations):
            found[_same(conversation)].append(i)
        return [family for family in found.values() if len(family) > 1]


class NearDuplicates(_Repeats):
    """Nearly the same as a whole, or in what the character says."""

    kind = "near_duplicates"
    title = "Near duplicates"
    why = "Rows that nearly repeat each other narrow what the character can say."
    fix = "Keep one of each family; a held-out one before others."

    def families(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        same = {i for family in ExactDuplicates().families(conversations) for i in family[1:]}
        alike = Clusters(len(conversations))
        for a, b in near_duplicates(conversations):
            alike.join(a, b)
        families = ([i for i in members if i not in same] for members in alike.members())
        return [family for family in families if len(family) > 1]


class Imbalance(Check):
    """One reply to many questions, one way to begin, one source of nearly everything."""

    kind = "imbalance"
    title = "Imbalance"
    why = "What comes far more often than the rest becomes the character's answer to everything."
    fix = "Keep at most three rows of each repeated reply, and at most 15% that begin alike."

    def hits(self, dataset: Dataset, context: Context) -> list[Hit]:
        rows = dataset.conversations
        found = {hit.row: hit for hit in _too_often(rows)}
        groups = Counter(c.group for c in rows if c.group)
        for group, count in groups.most_common(1):
            if len(groups) > 1 and count > GROUP_SHARE * len(rows) and len(rows) >= FEWEST_OPENINGS:
                first = next(i for i, c in enumerate(rows) if c.group == group)
                found.setdefault(first, Hit(first, f"{count} of {len(rows)} rows are of one group, {group!r}"))
        return sorted(found.values(), key=lambda hit: hit.row)

    def mended(self, dataset: Dataset, context: Context) -> tuple[Conversation, ...]:
        extra = {hit.row for hit in _too_often(dataset.conversations)}
        return tuple(c for i, c in enumerate(dataset.conversations) if i not in extra or c.split != "train")


def _too_often(rows: Sequence[Conversation]) -> list[Hit]:
    """Rows beyond the allowed number of the same reply or the same beginning."""
    answers: Counter[str] = Counter()
    openings: Counter[str] = Counter()
    starts = [_opening(conversation) for conversation in rows]
    total = Counter(start for start in starts if start)
    most = max(round(OPENING_SHARE * len(rows)), FEWEST_OPENINGS)
    found = []
    for i, conversation in enumerate(rows):
        said = [normalised(reply) for _, reply in exchanges(conversation)]
        only = said[0] if len(said) == 1 else ""
        answers[only] += bool(only)
        if only and answers[only] > MOST_OF_A_REPLY:
            found.append(Hit(i, f"a reply that is given again and again: {excerpt(replies(conversation)[0])}"))
            continue
        openings[starts[i]] += bool(starts[i])
        if starts[i] and openings[starts[i]] > most:
            found.append(Hit(i, f"{total[starts[i]]} of {len(rows)} rows begin {starts[i]!r}"))
    return found


def _opening(conversation: Conversation) -> str:
    words = normalised(replies(conversation)[0]).split() if replies(conversation) else []
    return " ".join(words[:OPENING_WORDS]) if len(words) > OPENING_WORDS else ""
