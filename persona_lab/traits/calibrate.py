"""What a trait's slider means on a model: at which layers the vector is added, and how much of it +100 and -100 are.

100 is the strongest pull whose replies stay fluent: their bits per byte under the unsteered model rise by at most
`MORE_BITS`, and the share of repeated three-word sequences by at most `MORE_REPETITION`. (Lines that people wrote cost
a model more bits than its own replies; the bound is meant to lie between.) Where more of the vector gives less of the
trait, or hardly more, though it stays fluent, 100 is where nearly the most is gained (see `_even`).
A direction counts as steered where replies there are more in its manner than the unsteered ones, with a 95% interval
(bootstrap over questions, between the strengths that were measured) that leaves zero out; otherwise the trait is said
not to steer this model that way. How much in the manner a reply is: its likelihood under the unsteered model that is
told `towards` and shown the example lines, less the same for `away`.

First two strengths at each candidate for the layers, then a finer look at the best of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.evaluation.statistics import cluster_bootstrap
from persona_lab.inference.decoding import generate
from persona_lab.inference.scoring import loglikelihood
from persona_lab.inference.steering import Shift
from persona_lab.inference.trait_files import KeptTrait
from persona_lab.traits.contrast import QUESTIONS as ASKED
from persona_lab.traits.contrast import read_sides, tells_apart
from persona_lab.types import Message, Sampling, Trait, TraitCalibration, TraitLevel, now

MORE_BITS = 0.6
MORE_REPETITION = 0.10
AIM = 0.85
"""Share of these that calibration goes up to, so that other questions stay inside."""
QUESTIONS = (
    "What are your plans for the evening?",
    "Tell me about your family.",
    "Is it worth it to travel far?",
    "What would you cook for ten people?",
    "I lost my keys again.",
    "What is money good for?",
    "Do you like children?",
    "I think somebody is at the door.",
    "How do you like my new coat?",
    "What did you learn at school?",
    "Is the water cold?",
    "Who taught you to talk like that?",
)
"""Not those the vector was made with."""
ROUGH_QUESTIONS = 4
ROUGH = (0.5, 1.5)
FINE = (0.3, 0.6, 1.2, 2.4)
"""Strengths that are tried, in lengths of the vector: those of a strong manner are long."""
REPLY_TOKENS = 28
SHOWN = 6
"""Example lines a side that the judge is shown."""
HALF_AT_LEAST, HALF_AT_MOST = 0.2, 0.75
"""Of what is gained at 100, the share that is to be gained at 50."""
NEARLY_MOST = 0.9
"""Share of the most that can be gained fluently, beyond which more of the vector is not worth its cost in fluency."""
TRIED = 60
"""Strengths between which 100 is chosen."""
STEPS = 8
"""Parts of the work that are reported."""
LN2 = 0.6931471805599453

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class _Strength:
    """A strength at a choice of layers, and what came of it, one number a question (Fluency of the whole)."""

    layers: tuple[int, ...]
    strength: float
    scores: tuple[float, ...] = ()
    bits_per_byte: float = 0.0
    repetition: float = 0.0


def compute(model: Any, renderer: ChatRenderer, trait: Trait, seed: int, progress: Progress) -> KeptTrait:
    """The trait's vector on this model, calibrated.

    Args:
        progress: told (parts done of `STEPS`, what is done now); may raise.

    Raises:
        WorkFailed: there is nothing to compare. BadModel: its layers cannot be found. OutOfMemory
    """
    started = time.perf_counter()
    progress(0, "reading replies of both kinds")
    look = partial(progress, 1, "reading replies of both kinds")
    lines = read_sides(model, renderer, trait, seed, look)
    bench = _Bench(model, renderer, trait, lines[0].mean(dim=0) - lines[1].mean(dim=0), seed)
    progress(2, "asking without it")
    chosen = _best_layers(bench, lambda done: progress(3 + done, "trying layers"))
    levels = [_Strength(chosen, sign * size) for sign in (-1, 1) for size in FINE]
    progress(5, "trying strengths")
    measured = sorted(bench.measure(levels, len(QUESTIONS)), key=lambda level: level.strength)
    progress(7, "weighing")
    plain = bench.plain(len(QUESTIONS))
    calibration = TraitCalibration(
        layers=chosen,
        towards=_strongest([level for level in measured if level.strength > 0], plain, seed),
        away=_strongest([level for level in reversed(measured) if level.strength < 0], plain, seed),
        unsteered_bits_per_byte=plain.bits_per_byte,
        unsteered_repetition=plain.repetition,
        tells_apart=round(tells_apart(*lines, chosen), 3),
        levels=tuple(_told(level, plain, seed) for level in measured),
        seconds=round(time.perf_counter() - started, 2),
        created=now(),
    )
    progress(STEPS, "done")
    return KeptTrait(trait, calibration, {layer: bench.vector(chosen, layer).numpy() for layer in chosen})


def candidates(layers: int) -> list[tuple[int, ...]]:
    """Where a vector may be added: a little at each of four layers around the middle, or at one at two thirds."""
    at = [round(layers * share) for share in (0.3, 0.4, 0.5, 0.6)]
    spread = tuple(sorted({min(layers - 1, layer) for layer in at}))
    found = [spread, (round(layers * 0.67),)]
    return list(dict.fromkeys(tuple(min(layer, layers - 1) for layer in choice) for choice in found))


def share(layers: int) -> float:
    """The part of a trait's vector that each of so many layers adds, and that is kept in its file."""
    return 2 / (1 + layers)


class _Bench:
    """Asks the model questions at some strengths, and measures its replies under the unsteered model."""

    def __init__(self, model: Any, renderer: ChatRenderer, trait: Trait, vectors: torch.Tensor, seed: int) -> None:
        self.model, self.renderer, self.trait, self.vectors, self.seed = model, renderer, trait, vectors, seed
        self._plain: dict[int, _Strength] = {}

    def vector(self, layers: Sequence[int], layer: int) -> torch.Tensor:
        """Of one layer; where several share the work each does its part, since what is added stays in the stream."""
        return self.vectors[layer] * share(len(layers))

    def plain(self, questions: int) -> _Strength:
        """Without steering."""
        if questions not in self._plain:
            (self._plain[questions],) = self.measure([_Strength((), 0.0)], questions)
        return self._plain[questions]

    def measure(self, levels: Sequence[_Strength], questions: int) -> list[_Strength]:
        """The same with what came of them, on the first `questions` questions."""
        asked = [[Message(role="user", content=question)] for question in QUESTIONS[:questions]]
        rows = [(level, prompt) for level in levels for prompt in asked]
        shifts = [self._shift(level) for level, _ in rows]
        sampling = Sampling(seed=self.seed, max_new_tokens=REPLY_TOKENS)
        written = generate(self.model, self.renderer, [prompt for _, prompt in rows], sampling, shifts=shifts)
        replies = [reply.text for reply in written]
        plain = loglikelihood(self.model, self.renderer, [(p, r) for (_, p), r in zip(rows, replies, strict=True)])
        trait = self.trait
        sides = [
            loglikelihood(
                self.model,
                self.renderer,
                [([*manner, *prompt], reply) for (_, prompt), reply in zip(rows, replies, strict=True)],
            )
            for manner in (_manner(trait.towards, trait.towards_lines), _manner(trait.away, trait.away_lines))
        ]
        found = []
        for number, level in enumerate(levels):
            part = slice(number * questions, (number + 1) * questions)
            scores = [
                (a.total - b.total) / max(a.bytes, 1) for a, b in zip(sides[0][part], sides[1][part], strict=True)
            ]
            bits = -sum(one.total for one in plain[part]) / LN2 / max(1, sum(one.bytes for one in plain[part]))
            repeated = float(numpy.mean([repetition(reply) for reply in replies[part]]))
            found.append(replace(level, scores=tuple(scores), bits_per_byte=bits, repetition=repeated))
        return found

    def _shift(self, level: _Strength) -> Shift | None:
        if not level.layers:
            return None
        return Shift({layer: level.strength * self.vector(level.layers, layer) for layer in level.layers})


def _manner(description: str, lines: Sequence[str]) -> list[Message]:
    """What the judge is told and shown of one side."""
    shown = [Message(role="system", content=description)]
    for question, line in zip(ASKED, lines[:SHOWN], strict=False):
        shown += [Message(role="user", content=question), Message(role="assistant", content=line)]
    return shown


def repetition(text: str) -> float:
    """Share of a text's three-word sequences that stand in it earlier already."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _best_layers(bench: _Bench, progress: Callable[[int], None]) -> tuple[int, ...]:
    """The candidate that pulls furthest while it is fluent, one way not at the cost of the other (roots are added)."""
    plain = bench.plain(ROUGH_QUESTIONS)
    gains: dict[tuple[int, ...], float] = {}
    for number, layers in enumerate(candidates(len(bench.vectors))):
        progress(number)
        levels = [_Strength(layers, sign * size) for sign in (-1, 1) for size in ROUGH]
        gains[layers] = 0.0
        for sign in (-1, 1):
            fluent = [
                sign * (float(numpy.mean(level.scores)) - float(numpy.mean(plain.scores)))
                for level in bench.measure([one for one in levels if one.strength * sign > 0], ROUGH_QUESTIONS)
                if _fluent(level, plain)
            ]
            gains[layers] += max(0.0, *fluent) ** 0.5 if fluent else 0.0
    return max(gains, key=lambda layers: gains[layers])


def _fluent(level: _Strength, plain: _Strength) -> bool:
    return _excess(level, plain) <= 0


def _excess(level: _Strength, plain: _Strength) -> float:
    """How far outside of the bound it is; at most 0 inside."""
    bits = (level.bits_per_byte - plain.bits_per_byte) / (AIM * MORE_BITS)
    repeated = (level.repetition - plain.repetition) / (AIM * MORE_REPETITION)
    return max(bits, repeated) - 1


def _strongest(levels: Sequence[_Strength], plain: _Strength, seed: int) -> float | None:
    """What 100 is in one direction, of its levels, weakest first; None: nothing is gained there, or not fluently.

    Between the last fluent strength and the first that is not, it is at most where the bound is crossed.
    """
    sign = 1 if levels[0].strength > 0 else -1
    expected = numpy.array(plain.scores)
    at, gained = [0.0], [numpy.zeros(len(expected))]  # strengths, and what is gained there on each question
    limit = abs(levels[-1].strength)
    before, fluent = -1.0, 0
    for level in levels:
        excess = _excess(level, plain)
        if excess > 0 and len(at) == 1:
            return None
        at.append(abs(level.strength))
        gained.append(sign * (numpy.array(level.scores) - expected))
        if excess > 0:
            limit = at[-2] + (at[-1] - at[-2]) * (-before) / (excess - before)
            break
        before, fluent = excess, fluent + 1
    means = [float(gains.mean()) for gains in gained]
    most = _even(at, means, limit)
    # what pulls the other way on the whole does not steer, whatever its weakest does
    if most is None or sum(means[: fluent + 1]) <= 0:
        return None
    low, _ = _interval(numpy.array([numpy.interp(most, at, one) for one in numpy.transpose(gained)]), seed)
    return most if low > 0 else None


def _even(at: Sequence[float], gained: Sequence[float], limit: float) -> float | None:
    """The weakest strength that gains nearly the most, of those at whose half neither nearly nothing nor nearly all of
    it is gained: a slider whose second half does nothing would not be one.

    Args:
        at, gained: strengths, weakest first, and what is gained there; a line is drawn from each to the next.
        limit: the strongest to consider.
    """
    tried = numpy.linspace(limit / TRIED, limit, TRIED)
    whole, half = numpy.interp(tried, at, gained), numpy.interp(tried / 2, at, gained)
    able = (whole > 0) & (half >= HALF_AT_LEAST * whole) & (half <= HALF_AT_MOST * whole)
    if not able.any():
        return None
    enough = able & (whole >= NEARLY_MOST * whole[able].max())
    return round(float(tried[enough][0]), 3)


def _told(level: _Strength, plain: _Strength, seed: int) -> TraitLevel:
    """Its mean gain over the unsteered replies to the same questions, with a 95% interval."""
    gains = numpy.array(level.scores) - numpy.array(plain.scores)
    low, high = _interval(gains, seed)
    return TraitLevel(
        strength=level.strength,
        score=float(gains.mean()),
        low=low,
        high=high,
        bits_per_byte=level.bits_per_byte,
        repetition=level.repetition,
    )


def _interval(gains: Any, seed: int) -> tuple[float, float]:
    """95%, of the mean over questions, by the bootstrap of the evaluation."""
    found = cluster_bootstrap(list(gains), [str(number) for number in range(len(gains))], seed=seed)
    assert found.low is not None
    assert found.high is not None, "several questions are asked"
    return found.low, found.high
