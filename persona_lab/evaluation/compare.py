"""Compares variants in pairs on the items they share, with one correction over everything that was compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from persona_lab.evaluation.statistics import (
    cluster_bootstrap,
    holm_testable,
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

    A control is compared with what was trained or prompted for the persona, not with the base or another control: those
    are no questions anybody has, and each would make the correction harsher.

    Metrics of one evaluator whose differences are the same but for their unit (gain over a common base, bits per byte)
    are compared once: twice would only make the correction harsher.

    Args:
        metrics: of each variant, by its id.
        seed: of the bootstrap and the permutations.

    Returns:
        Mean difference a - b, its 95% interval, p (sign-flip over clusters; exact McNemar for yes/no items) and p after
        Holm's correction over all comparisons returned here whose items differ at all.
    """
    found = [
        pair
        for a, b in itertools.combinations(variants, 2)
        if not _idle(a, b)
        for metric in metrics.get(a.id, ())
        if (pair := _pair(a, b, metric, metrics.get(b.id, ()))) is not None
    ]
    paired = list({_signature(pair): pair for pair in reversed(found)}.values())[::-1]  # the first of its kind stays
    p_values = [_p(pair, seed) for pair in paired]
    testable = [any(_differences(pair)) for pair in paired]
    corrected = holm_testable(p_values, testable)
    total = sum(testable)
    return [_comparison(pair, p, q, total, seed) for pair, p, q in zip(paired, p_values, corrected, strict=True)]


def _idle(a: Variant, b: Variant) -> bool:
    return (a.control and (b.control or b.kind == "base")) or (b.control and a.kind == "base")


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


def _comparison(pair: _Paired, p: float, p_holm: float, comparisons: int, seed: int) -> Comparison:
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
        verdict=_verdict(pair, interval.value, p_holm, comparisons),
    )


def _verdict(pair: _Paired, difference: float, p_holm: float, comparisons: int) -> str:
    a, b = named(pair.a), named(pair.b)
    if p_holm >= ALPHA:
        said = not_apart(a, b, pair.metric, len(pair.clusters), p_holm)
        return f"{said}{sensitivity(_differences(pair), pair.clusters, pair.metric.unit, comparisons)}"
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


def not_apart(a: str, b: str, metric: Metric, items: int, p: float) -> str:
    """The verdict where it is not."""
    return f"{a} and {b} cannot be told apart on {title_of(metric)} with {items} items (p = {p:.2g})."


def too_few(clusters: int, comparisons: int) -> bool:
    """Whether no difference at all could survive Holm's correction: flipping k signs gives no p below 2 / 2**k."""
    return comparisons * 2.0 ** (1 - clusters) >= ALPHA


def sensitivity(differences: Sequence[float], clusters: Sequence[str], unit: str, comparisons: int) -> str:
    """A sentence on what difference could have been seen, with a space before it; empty if nothing can be said."""
    independent = len(set(clusters))
    if not any(differences):
        return " They are the same on every item."
    if too_few(independent, comparisons):
        return (
            f" With {independent} independent items no difference, however large, survives the correction for "
            f"{comparisons} comparisons: this takes more items, or fewer comparisons."
        )
    seen = smallest_detectable(differences, clusters)
    if not seen:
        return ""
    needed = f"{seen * 100:.0f} points" if unit == "share" else f"{seen:.2g} {unit}"
    return f" To be seen four times in five, before the correction, a difference has to be about {needed}."
