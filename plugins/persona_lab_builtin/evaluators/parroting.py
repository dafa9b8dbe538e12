"""Parroting: is it quoting its training lines, and does it speak as variedly and as long as the character?

The replies are those of `voice`. With R the replies and T the real held-out lines of the character:

- copying = share of R that contain 8 words in a row of a training line - the same share of T. Lower is better; 0 is
  what the real lines do (a character repeats itself: up to 6% of real lines do so).
- distinct_2 = different word pairs / all word pairs (Li et al. 2016, https://aclanthology.org/N16-1014/), on as many
  words of R as of T, since the share falls with the number of words. The reference is that of T.
- length = mean words of R / mean words of T. The reference is 1.

distinct_2 and length have no better direction: below AND above the reference are faults (loops and stock phrases below,
word salad and chatter above), and the note says which. Intervals: cluster bootstrap for copying; delete-half jackknife
over clusters for the others (Shao and Tu 1995, chapter 2), because drawing with replacement would repeat word pairs.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from persona_lab.api import Dataset, EvalContext, Evaluator, ItemScore, Metric, Probe, Variant

Words = tuple[str, ...]
GRAM = 8
"""Words in a row that count as a quotation: real lines share 4 with training lines in up to half of the cases."""
MIN_REAL = 20
_HALVES = 200
_TITLES = {
    "copying": "Quotes its training lines",
    "distinct_2": "Variety of word pairs",
    "length": "Length of replies, real lines = 1",
}
_UNITS = {"copying": "share", "distinct_2": "share", "length": "ratio"}


@dataclass(frozen=True)
class _Lines:
    """Texts as words, with the cluster of each."""

    words: tuple[Words, ...]
    clusters: tuple[str, ...]


@dataclass(frozen=True)
class _Interval:
    value: float
    low: float | None
    high: float | None
    n: int


class Parroting(Evaluator):
    """What it copies, and how far its variety and length are from the character's own, in both directions."""

    id = "parroting"
    title = "Parroting"
    summary = "Whether it quotes the lines it was trained on, repeats itself, or says too much or too little."
    rank = 16

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics copying (share, compared), distinct_2 (share) and length (ratio)."""
        from persona_lab.api import written_replies

        ctx.phase(f"Parroting of {variant.name}", None)
        reason = _withheld(ctx.dataset)
        if reason or ctx.dataset is None:
            return [_missing(name, reason) for name in _TITLES]
        chosen, replies = written_replies(ctx, variant, probes)
        said = _Lines(tuple(map(_words, replies)), tuple(p.cluster for p in chosen))
        if not any(said.words):
            return [_missing(name, "there are no words in its replies") for name in _TITLES]
        real = _real(ctx.dataset)
        metrics = [
            _copying(_training_grams(ctx.dataset), chosen, replies, said, real, ctx.seed),
            _distinct(said, real, ctx.seed),
            _length(said, real, ctx.seed),
        ]
        return [metric.model_copy(update={"title": _TITLES[metric.metric]}) for metric in metrics]


def _copying(
    known: frozenset[Words],
    probes: Sequence[Probe],
    replies: Sequence[str],
    said: _Lines,
    real: _Lines,
    seed: int,
) -> Metric:
    from persona_lab.api import difference_bootstrap

    quotes = [_quoted(words, known) for words in said.words]
    flags = [float(bool(quote)) for quote in quotes]
    floor = [float(bool(_quoted(words, known))) for words in real.words]
    excess = difference_bootstrap((flags, said.clusters), (floor, real.clusters), seed=seed)
    items = tuple(
        ItemScore(id=p.id, cluster=p.cluster, value=flag, text=reply, note=f"training line: {quote!r}" if quote else "")
        for p, flag, reply, quote in zip(probes, flags, replies, quotes, strict=True)
    )
    return _metric(
        "copying",
        excess,
        "lower",
        0.0,
        f"Replies with {GRAM} words in a row of a training line: {_percent(flags)}, minus the {_percent(floor)} of "
        "real held-out lines that have them too. 0 is what the character does; a little below 0 is no merit.",
    ).model_copy(update={"items": items, "n": len(items)})


def _distinct(said: _Lines, real: _Lines, seed: int) -> Metric:
    size = min(sum(map(len, said.words)), sum(map(len, real.words)))
    rng = random.Random(seed)
    own, reference = (_mean_distinct(lines.words, size, rng) for lines in (said, real))

    def gap(said_half: list[Words], real_half: list[Words]) -> float:
        room = min(size // 2, sum(map(len, said_half)), sum(map(len, real_half)))
        return _distinct_2(said_half, room) - _distinct_2(real_half, room)

    error = _jackknife(said, real, gap, rng)
    interval = _Interval(own, max(0.0, own - 1.96 * error), min(1.0, own + 1.96 * error), len(said.words))
    note = (
        f"Different word pairs among all, on {size} words of each. Real held-out lines: {reference:.2f}. The interval "
        "is that of the difference. "
        + _side(interval, reference, "It repeats itself more than the character.", "More varied than the character.")
    )
    return _metric("distinct_2", interval if error else replace(interval, low=None, high=None), "none", reference, note)


def _length(said: _Lines, real: _Lines, seed: int) -> Metric:
    typical, own = _mean_length(real.words), _mean_length(said.words)

    def log_ratio(said_half: list[Words], real_half: list[Words]) -> float:
        return math.log(max(_mean_length(said_half), 0.1) / _mean_length(real_half))

    factor = math.exp(1.96 * _jackknife(said, real, log_ratio, random.Random(seed)))
    ratio = _Interval(own / typical, own / typical / factor, own / typical * factor, len(said.words))
    note = (
        f"Mean words of a reply, {own:.1f}, by that of real held-out lines, {typical:.1f}. Replies end at 60 tokens at "
        "the latest. " + _side(ratio, 1.0, "Shorter than the character speaks.", "Longer than the character speaks.")
    )
    return _metric("length", ratio if factor > 1 else replace(ratio, low=None, high=None), "none", 1.0, note)


def _side(interval: _Interval, reference: float, below: str, above: str) -> str:
    if interval.low is None or interval.high is None or interval.low <= reference <= interval.high:
        return "Cannot be told from the character's own."
    return below if interval.value < reference else above


def _metric(name: str, interval: Any, better: Literal["lower", "none"], reference: float, note: str) -> Metric:
    return Metric(
        evaluator=Parroting.id,
        metric=name,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        unit=_UNITS[name],
        better=better,
        reference=reference,
        note=note,
    )


def _missing(name: str, reason: str) -> Metric:
    from persona_lab.api import missing_metric

    better: Literal["lower", "none"] = "lower" if name == "copying" else "none"
    metric = missing_metric(Parroting.id, name, _UNITS[name], better, f"Withheld: {reason}.")
    return metric.model_copy(update={"title": _TITLES[name]})


def _withheld(dataset: Dataset | None) -> str:
    if dataset is None:
        return "there is no dataset to compare with"
    found = len(_real(dataset).words)
    if found < MIN_REAL:
        return f"there are only {found} held-out lines to compare with (at least {MIN_REAL} are needed)"
    return ""


# --- words ----------------------------------------------------------------------------------------


def _words(text: str) -> Words:
    return tuple(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'")))


def _real(dataset: Dataset) -> _Lines:
    """The character's held-out lines, as long as a probe's must be, each once."""
    from persona_lab.api import held_out_lines

    found = held_out_lines(dataset)
    return _Lines(tuple(map(_words, found)), tuple(found.values()))


def _training_grams(dataset: Dataset) -> frozenset[Words]:
    lines = (m.content for c in dataset.of("train") for m in c.messages if m.role == "assistant")
    return frozenset(gram for line in lines for gram in _grams(_words(line)))


def _grams(words: Sequence[str]) -> list[Words]:
    return [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]


def _quoted(words: Sequence[str], known: frozenset[Words]) -> str:
    """The first eight words in a row that are in a training line, or an empty string."""
    return next((" ".join(gram) for gram in _grams(words) if gram in known), "")


def _percent(flags: Sequence[float]) -> str:
    return f"{sum(flags) / len(flags):.0%}"


def _mean_length(lines: Sequence[Words]) -> float:
    return sum(map(len, lines)) / max(len(lines), 1)


# --- variety --------------------------------------------------------------------------------------


def _mean_distinct(lines: Sequence[Words], size: int, rng: random.Random) -> float:
    """distinct-2 of `size` words of the lines, the mean over 20 orders of the lines."""
    return sum(_distinct_2(rng.sample(lines, len(lines)), size) for _ in range(20)) / 20


def _jackknife(
    said: _Lines, real: _Lines, statistic: Callable[[list[Words], list[Words]], float], rng: random.Random
) -> float:
    """Standard error of a statistic of the two, from its spread over random halves of the clusters of each."""
    values = [statistic(_half(said, rng), _half(real, rng)) for _ in range(_HALVES)]
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _half(lines: _Lines, rng: random.Random) -> list[Words]:
    clusters = sorted(set(lines.clusters))
    kept = set(rng.sample(clusters, max(1, len(clusters) // 2)))
    chosen = [words for words, cluster in zip(lines.words, lines.clusters, strict=True) if cluster in kept]
    return rng.sample(chosen, len(chosen))


def _distinct_2(lines: Sequence[Words], size: int) -> float:
    """Different word pairs by all pairs, within lines, of the first `size` words."""
    pairs: list[tuple[str, str]] = []
    for words in lines:
        part = words[:size]
        pairs += itertools.pairwise(part)
        size -= len(part)
        if size <= 0:
            break
    return len(set(pairs)) / len(pairs) if pairs else 0.0
