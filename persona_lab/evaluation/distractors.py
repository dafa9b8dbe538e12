"""Chooses distractors for reply ranking: lines of similar length, of other people or from elsewhere in the part.

Length alone tells speakers apart, so a distractor is within 30% of the true reply's bytes where there are enough such
lines, else the nearest in length. Choices depend on the data and the seed only: every variant ranks the same lines.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from persona_lab.evaluation.probes import normalised
from persona_lab.types import Probe

TOLERANCE = 0.30


@dataclass(frozen=True)
class Line:
    """A candidate; `cluster` is the conversation or scene that it is said in, empty for other people's lines."""

    text: str
    cluster: str = ""


@dataclass(frozen=True)
class Candidates:
    """The wrong replies of one probe. `outside`: how many are not within 30% of the true reply's length."""

    probe: Probe
    wrong: tuple[str, ...]
    outside: int


def own_lines(probes: Sequence[Probe]) -> list[Line]:
    """The character's held-out replies, as candidates for each other's probes."""
    return [Line(probe.reply, probe.cluster) for probe in probes if probe.kind == "reply"]


def distractors(probes: Sequence[Probe], pool: Sequence[Line], count: int, seed: int = 0) -> list[Candidates]:
    """`count` wrong replies for each probe; fewer only where the pool has fewer.

    Never the true reply or a copy of it, never a line of the probe's own context, and, while there are enough others,
    no line of the probe's own cluster.
    """
    unique = list({normalised(line.text): line for line in reversed(pool) if normalised(line.text)}.values())
    shuffled = sorted(unique, key=lambda line: line.text)
    random.Random(seed).shuffle(shuffled)  # lines of equal length are taken in an order that the seed decides
    return [_of(probe, shuffled, count, random.Random(f"{seed}:{probe.id}")) for probe in probes]


def _of(probe: Probe, pool: Sequence[Line], count: int, rng: random.Random) -> Candidates:
    banned = {normalised(probe.reply), *(normalised(message.content) for message in probe.messages)}
    allowed = [line for line in pool if normalised(line.text) not in banned]
    apart = [line for line in allowed if not line.cluster or line.cluster != probe.cluster]
    if len(apart) >= count:
        allowed = apart
    size = len(probe.reply.encode())
    near = [line for line in allowed if abs(len(line.text.encode()) - size) <= TOLERANCE * size]
    if len(near) > count:
        near = rng.sample(near, count)
    chosen = {line.text for line in near}
    rest = sorted(
        (line for line in allowed if line.text not in chosen), key=lambda line: abs(len(line.text.encode()) - size)
    )
    extra = rest[: count - len(near)]
    return Candidates(probe, tuple(line.text for line in [*near, *extra]), len(extra))
