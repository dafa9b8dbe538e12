"""Compares variants in pairs on the items they share, with one correction over everything that was compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from persona_lab.evaluation.statistics import (
    cluster_bootstrap,
    holm,
    mcnemar,
    paired_permutation,
    smallest_detectable,
)
from persona_lab.types import Comparison, Metric, Variant

ALPHA = 0.05


@dataclass(frozen=True)
class _Paired:
    a: Variant
    b: Variant
    metric: Metric
    values_a: list[float]
    values_b: list[float]
    clusters: list[str]


def compare_all(
    variants: Sequence[Variant], metrics: Mapping[str, Sequence[Metric]], seed: int = 0
) -> list[Comparison]:
    """Every pair of variants on every metric that is meant to be compared and has at least two shared items.

    Metrics of one evaluator whose differences are the same but for their unit (gain over a common base, bits per byte)
    are compared once: twice would only make the correction harsher.

    Args:
        metrics: of each variant, by its id.
        seed: of the bootstrap and the permutations.

    Returns:
        Mean difference a - b, its 95% interval, p (sign-flip over clusters; exact McNemar for yes/no items) and p after
        Holm's correction over all comparisons returned here.
    """
    found = [
        pair
        for a, b in itertools.combinations(variants, 2)
        for metric in metrics.get(a.id, ())
        if (pair := _pair(a, b, metric, metrics.get(b.id, ()))) is not None
    ]
    paired = list({_signature(pair): pair for pair in reversed(found)}.values())[::-1]  # the first of its kind stays
    p_values = [_p(pair, seed) for pair in paired]
    corrected = holm(p_values)
    return [_comparison(pair, p, q, seed) for pair, p, q in zip(paired, p_values, corrected, strict=True)]


def _pair(a: Variant, b: Variant, metric: Metric, of_b: Sequence[Metric]) -> _Paired | None:
    same = [m for m in of_b if (m.evaluator, m.metric) == (metric.evaluator, metric.metric)]
    if metric.better == "none" or not metric.compared or not same:
        return None
    by_id = {item.id: item.value for item in same[0].items}
    shared = [item for item in metric.items if item.id in by_id]
    if len(shared) < 2:
        return None
    clusters = [item.cluster for item in shared]
    return _Paired(a, b, metric, [i.value for i in shared], [by_id[i.id] for i in shared], clusters)


def _signature(pair: _Paired) -> tuple[object, ...]:
    """Equal for two metrics of one pair whose differences are proportional, item by item."""
    differences = _differences(pair)
    size = next((d for d in differences if abs(d) > 1e-12), None)
    shape = pair.metric.metric if size is None else tuple(round(d / size, 6) for d in differences)
    return pair.a.id, pair.b.id, pair.metric.evaluator, tuple(pair.clusters), shape


def _p(pair: _Paired, seed: int) -> float:
    binary = {*pair.values_a, *pair.values_b} <= {0.0, 1.0}
    if binary and len(set(pair.clusters)) == len(pair.clusters):
        both = list(zip(pair.values_a, pair.values_b, strict=True))
        return mcnemar(sum(x > y for x, y in both), sum(x < y for x, y in both))
    return paired_permutation(_differences(pair), pair.clusters, seed=seed)


def _differences(pair: _Paired) -> list[float]:
    return [x - y for x, y in zip(pair.values_a, pair.values_b, strict=True)]


def _comparison(pair: _Paired, p: float, p_holm: float, seed: int) -> Comparison:
    interval = cluster_bootstrap(_differences(pair), pair.clusters, seed=seed)
    low = interval.value if interval.low is None else interval.low
    high = interval.value if interval.high is None else interval.high
    return Comparison(
        a=pair.a.id,
        b=pair.b.id,
        evaluator=pair.metric.evaluator,
        metric=pair.metric.metric,
        difference=interval.value,
        low=low,
        high=high,
        n=interval.n,
        p=p,
        p_holm=p_holm,
        verdict=_verdict(pair, interval.value, p_holm),
    )


def _verdict(pair: _Paired, difference: float, p_holm: float) -> str:
    a, b = named(pair.a), named(pair.b)
    if p_holm >= ALPHA:
        seen = smallest_detectable(_differences(pair), pair.clusters)
        return not_apart(a, b, pair.metric, len(pair.clusters), p_holm, seen)
    better, worse = (a, b) if (difference > 0) == (pair.metric.better == "higher") else (b, a)
    return apart(better, worse, pair.metric, p_holm)


def named(variant: Variant) -> str:
    """The variant's name, which says so where it is a control."""
    return f"{variant.name} (wrong character)" if variant.control else variant.name


def title_of(metric: Metric) -> str:
    """The metric's words for people, in the middle of a sentence."""
    title = metric.title or metric.metric.replace("_", " ")
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def apart(better: str, worse: str, metric: Metric, p: float) -> str:
    """The verdict where a difference is beyond chance."""
    return f"{better} is better than {worse} on {title_of(metric)} (p = {p:.2g})."


def not_apart(a: str, b: str, metric: Metric, items: int, p: float, detectable: float | None) -> str:
    """The verdict where it is not, with the smallest difference that would probably have been seen."""
    verdict = f"{a} and {b} cannot be told apart on {title_of(metric)} with {items} items (p = {p:.2g}"
    if detectable is None:
        return f"{verdict})."
    if detectable == 0:
        return f"{verdict}; the difference is the same on every item)."
    needed = f"{detectable * 100:.0f} points" if metric.unit == "share" else f"{detectable:.2g} {metric.unit}"
    return f"{verdict}; to be seen four times in five, before the correction, it has to be about {needed})."
