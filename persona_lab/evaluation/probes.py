"""Turns held-out conversations, facts and adversarial prompts into probes. Scores nothing; needs no torch.

A reply probe pairs the character's true next line with a line of another speaker of nearly the same length, because
length alone tells speakers apart.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from persona_lab.datasets.held_out import MIN_WORDS, normalised
from persona_lab.evaluation.leaks import check_leaks, seen_stock_phrases
from persona_lab.personas.probe_file import ProbeFile, ReplyProbe
from persona_lab.personas.store import adversarial_prompts
from persona_lab.types import AdversarialPrompt, Dataset, Message, Persona, Probe, Split

__all__ = [
    "MIN_WORDS",
    "adversarial_probes",
    "build_probes",
    "check_leaks",
    "fact_probes",
    "match_lengths",
    "normalised",
    "other_lines",
    "reply_probes",
    "sample_probes",
    "spread",
]

_T = TypeVar("_T")
MAX_REPLIES = 80
QUICK_REPLIES = 24
QUICK_ADVERSARIAL = 16
OWN = "own:"
"""How the ids of the user's own probes begin."""


def build_probes(persona: Persona, dataset: Dataset | None, seed: int = 0, own: ProbeFile | None = None) -> list[Probe]:
    """Every probe of a persona: replies of the test split, facts, adversarial prompts; the same ones for a seed.

    Args:
        own: the user's own lines and adversarial prompts; their ids begin with `own:`. (Own facts are the persona's.)

    Raises:
        BadInput: a line of the test split is also in the train split (the rows are named).
    """
    own = own or ProbeFile()
    replies = [_own_reply(probe) for probe in own.replies]
    if dataset is not None:
        check_leaks(dataset, dataset)
        replies += _held_out_replies(dataset)
        replies = _with_others(replies, other_lines(dataset, at_least=len(replies)), seed)
    attacks = [prompt.model_copy(update={"id": OWN + prompt.id}) for prompt in own.adversarial]
    return replies + fact_probes(persona) + adversarial_probes((*adversarial_prompts(), *attacks))


def _own_reply(probe: ReplyProbe) -> Probe:
    name = OWN + probe.id
    return Probe(id=name, kind="reply", cluster=name, messages=_spoken(probe.messages), reply=probe.reply)


def reply_probes(dataset: Dataset, seed: int = 0) -> list[Probe]:
    """One probe for each assistant turn of the test split with at least four words and a turn before it.

    Stock phrases that training rows hold as well are left out.
    """
    found = _held_out_replies(dataset)
    return _with_others(found, other_lines(dataset, at_least=len(found)), seed)


def _held_out_replies(dataset: Dataset) -> list[Probe]:
    stock = seen_stock_phrases(dataset)
    return [
        Probe(
            id=f"{conversation.id}:{turn}",
            kind="reply",
            cluster=conversation.group or conversation.id,
            messages=_spoken(conversation.messages[:turn]),
            reply=message.content,
        )
        for conversation in dataset.of("test")
        for turn, message in enumerate(conversation.messages)
        if message.role == "assistant"
        and len(message.content.split()) >= MIN_WORDS
        and normalised(message.content) not in stock
        and _spoken(conversation.messages[:turn])
    ]


def fact_probes(persona: Persona) -> list[Probe]:
    """Each fact's question and its paraphrases; the paraphrases of one fact are one cluster."""
    return [
        Probe(
            id=f"{fact.id}:{index}",
            kind="fact",
            cluster=fact.id,
            messages=(Message(role="user", content=question),),
            reply=fact.answer,
            fact=fact,
        )
        for fact in persona.facts
        for index, question in enumerate((fact.question, *fact.paraphrases))
    ]


def adversarial_probes(prompts: Iterable[AdversarialPrompt]) -> list[Probe]:
    """One probe for each prompt that tries to make a character break."""
    return [
        Probe(
            id=p.id,
            kind="adversarial",
            cluster=p.id,
            messages=(Message(role="user", content=p.prompt),),
            attack=p.attack,
        )
        for p in prompts
    ]


def other_lines(dataset: Dataset, at_least: int, splits: Sequence[Split] = ("test", "validation")) -> list[str]:
    """Lines of other speakers, without duplicates and without anything the character says.

    The dataset's own `others` come first; where they are fewer than `at_least`, the user's turns of `splits` are added:
    the user is another speaker of the same data. For probes that must be held-out turns.
    """
    taken = {normalised(m.content) for c in dataset.conversations for m in c.messages if m.role == "assistant"}
    lines: list[str] = []

    def add(texts: Iterable[str]) -> None:
        for text in texts:
            key = normalised(text)
            if key and key not in taken:
                taken.add(key)
                lines.append(text.strip())

    add(dataset.others)
    if len(lines) < at_least:
        add(m.content for s in splits for c in dataset.of(s) for m in c.messages if m.role == "user")
    return lines


def sample_probes(probes: Sequence[Probe], quick: bool, seed: int = 0) -> list[Probe]:
    """A share small enough for an evaluation: at most 80 reply probes (quick: 24, and 16 adversarial prompts).

    The user's own reply probes are all asked, up to that number. Clusters are visited in turn, so that a few probes
    still come from many conversations and kinds of attack.
    """
    own = [p for p in probes if p.kind == "reply" and p.id.startswith(OWN)]
    replies = [p for p in probes if p.kind == "reply" and not p.id.startswith(OWN)]
    attacks = [p for p in probes if p.kind == "adversarial"]
    most = QUICK_REPLIES if quick else MAX_REPLIES
    kept = {p.id for p in own[:most]}
    kept |= {p.id for p in spread(replies, [p.cluster for p in replies], most - len(kept), seed)}
    if quick:
        kept |= {p.id for p in spread(attacks, [p.attack for p in attacks], QUICK_ADVERSARIAL, seed)}
    else:
        kept |= {p.id for p in attacks}
    return [p for p in probes if p.kind == "fact" or p.id in kept]


def spread(items: Sequence[_T], groups: Sequence[str], count: int, seed: int = 0) -> list[_T]:
    """At most `count` of the items, taken one from each group in turn, in an order that the seed decides."""
    rng = random.Random(seed)
    by_group: dict[str, list[_T]] = {}
    for item, group in zip(items, groups, strict=True):
        by_group.setdefault(group, []).append(item)
    queues = list(by_group.values())
    rng.shuffle(queues)
    chosen: list[_T] = []
    depth = 0
    while len(chosen) < min(count, len(items)):
        chosen += [queue[depth] for queue in queues if depth < len(queue)][: count - len(chosen)]
        depth += 1
    return chosen


def match_lengths(texts: Sequence[str], pool: Sequence[str], seed: int = 0) -> list[str | None]:
    """For each text the line of `pool` nearest to it in UTF-8 bytes; no line twice while unused ones remain.

    The longest texts choose first, since long lines are rare. None only where the pool is empty.
    """
    matcher = _LengthPool(pool, seed)
    matched: list[str | None] = [None] * len(texts)
    for index in sorted(range(len(texts)), key=lambda i: (-_size(texts[i]), i)):
        matched[index] = matcher.take(_size(texts[index]), frozenset())
    return matched


def _with_others(probes: list[Probe], lines: Sequence[str], seed: int) -> list[Probe]:
    matcher = _LengthPool(lines, seed)
    others: dict[str, str] = {}
    for probe in sorted(probes, key=lambda p: (-_size(p.reply), p.id)):
        # A line that stands in the probe's own context would be easy to repeat: not a fair "other".
        context = frozenset(normalised(m.content) for m in probe.messages)
        others[probe.id] = matcher.take(_size(probe.reply), context) or ""
    return [p.model_copy(update={"other": others[p.id]}) for p in probes]


class _LengthPool:
    """Lines sorted by length (ties in an order the seed decides); a taken line goes to the back of the queue."""

    def __init__(self, lines: Sequence[str], seed: int) -> None:
        shuffled = list(lines)
        random.Random(seed).shuffle(shuffled)
        self._all = sorted(((_size(line), line) for line in shuffled), key=lambda pair: pair[0])
        self._unused = list(self._all)

    def take(self, size: int, excluded: frozenset[str]) -> str | None:
        """The nearest line that is not in `excluded` (normalised texts); None if there is none at all."""
        index = self._nearest(size, excluded)
        if index is None and len(self._unused) < len(self._all):
            self._unused = list(self._all)
            index = self._nearest(size, excluded)
        return None if index is None else self._unused.pop(index)[1]

    def _nearest(self, size: int, excluded: frozenset[str]) -> int | None:
        right = bisect.bisect_left(self._unused, size, key=lambda pair: pair[0])
        left = right - 1
        while left >= 0 or right < len(self._unused):
            take_left = right >= len(self._unused) or (
                left >= 0 and size - self._unused[left][0] < self._unused[right][0] - size
            )
            index = left if take_left else right
            if normalised(self._unused[index][1]) not in excluded:
                return index
            left, right = (left - 1, right) if take_left else (left, right + 1)
        return None


def _size(text: str) -> int:
    return len(text.encode())


def _spoken(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Without system messages: a variant brings its own."""
    return tuple(m for m in messages if m.role != "system")
