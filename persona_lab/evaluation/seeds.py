"""Several trainings of one strategy as one group: means over seeds, intervals over lines and seeds, comparisons.

One training is one draw: two seeds of the same strategy differ, and an interval over held-out lines does not know it.
Here seeds and clusters of lines are resampled together, each with replacement, as two crossed random factors (Owen
2007, the pigeonhole bootstrap, https://arxiv.org/abs/0712.1111). Few draws of a factor look too alike, and three seeds
are very few: the interval keeps the resampling's shape, and is stretched to Student's width with as many degrees of
freedom as the seeds and clusters together have (Satterthwaite 1946, https://doi.org/10.2307/3002019). With fewer than
three seeds on a side that has training noise nothing is ranked.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_lab.evaluation.compare import ALPHA, apart, not_apart, sensitivity, title_of
from persona_lab.evaluation.statistics import holm_testable, paired_permutation
from persona_lab.types import Comparison, ItemScore, Metric

RESAMPLES = 4000
MIN_SEEDS = 3

Seeds = Sequence[Sequence[Metric]]
"""The metrics of each seed's variant."""


def combine(metrics_by_seed: Seeds, seed: int = 0) -> list[Metric]:
    """One metric for each that the seeds have in common: mean over seeds of the values, items averaged over seeds.

    Intervals resample seeds and clusters together; a metric without items has none, unless there is only one seed: then
    the metric is as it was measured. A metric that is withheld for one seed is withheld, with that seed's reason.

    Args:
        metrics_by_seed: of each seed.
        seed: of the resampling.
    """
    if not metrics_by_seed:
        return []
    if len(metrics_by_seed) == 1:
        return list(metrics_by_seed[0])
    by_key = [{(m.evaluator, m.metric): m for m in metrics} for metrics in metrics_by_seed]
    shared = [key for key in by_key[0] if all(key in found for found in by_key)]
    return [_combined([found[key] for found in by_key], seed) for key in shared]


def _combined(metrics: Sequence[Metric], seed: int) -> Metric:
    first = metrics[0]
    withheld = next((m for m in metrics if m.value is None), None)
    if withheld is not None:
        return withheld.model_copy(update={"items": ()})
    value = float(np.mean([m.value for m in metrics]))
    spread = ", ".join(f"{m.value:.3g}" for m in metrics)
    note = f"{first.note} Mean of {len(metrics)} training seeds ({spread}).".strip()
    update: dict[str, Any] = {"value": value, "low": None, "high": None, "note": note, "items": ()}
    table = _table(metrics)
    if table is not None:
        ids, clusters, values = table
        low, high = _interval(_sums(values, clusters), None, seed)
        items = [
            ItemScore(id=i, cluster=c, value=float(v)) for i, c, v in zip(ids, clusters, values.mean(0), strict=True)
        ]
        # where the value is no mean of its items (a sum, a share of pairs), this interval would not be its own
        if abs(float(values.mean()) - value) <= 1e-6 * max(1.0, abs(value)):
            bounded = first.unit == "share" and values.min() >= 0 and values.max() <= 1
            update |= {"low": _within(low, bounded), "high": _within(high, bounded)}
        update |= {"items": tuple(items), "n": len(items)}
    return first.model_copy(update=update)


def _within(limit: float | None, share: bool) -> float | None:
    """A share cannot leave 0..1, whatever a symmetric stretch of its interval says."""
    return limit if limit is None or not share else min(1.0, max(0.0, limit))


def _table(metrics: Sequence[Metric]) -> tuple[list[str], list[str], np.ndarray] | None:
    """Ids and clusters of the items that all seeds share, and their values [seeds, items]; None for fewer than two."""
    by_id = [{item.id: item.value for item in m.items} for m in metrics]
    shared = [item for item in metrics[0].items if all(item.id in values for values in by_id)]
    if len(shared) < 2:
        return None
    values = np.array([[found[item.id] for item in shared] for found in by_id], dtype=np.float64)
    return [item.id for item in shared], [item.cluster for item in shared], values


@dataclass(frozen=True)
class _Sums:
    """Sums of values [seeds, clusters] and numbers of items [clusters]."""

    values: np.ndarray
    counts: np.ndarray


def _sums(values: np.ndarray, clusters: Sequence[str]) -> _Sums:
    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in values])
    return _Sums(sums, np.bincount(index, minlength=len(names)).astype(np.float64))


def _resampled(sums: _Sums, cluster_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means with seeds drawn anew for every row of `cluster_weights` [resamples, clusters]: [resamples]."""
    seeds = sums.values.shape[0]
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(cluster_weights)) / seeds
    totals = ((seed_weights @ sums.values) * cluster_weights).sum(1)
    return totals / (cluster_weights @ sums.counts)


def _cluster_weights(clusters: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES).astype(np.float64)


def _interval(sums: _Sums, other: _Sums | None, seed: int) -> tuple[float | None, float | None]:
    """Of the mean over seeds and items, or of its difference to that of another group on the same clusters."""
    clusters = len(sums.counts)
    if clusters < 2:
        return None, None
    rng = np.random.default_rng(seed)
    weights = _cluster_weights(clusters, rng)
    means = _resampled(sums, weights, rng)
    averaged = sums.values.mean(0)
    parts = [_seed_variance(sums)]
    if other is not None:
        means = means - _resampled(other, weights, rng)
        averaged = averaged - other.values.mean(0)
        parts.append(_seed_variance(other))
    value = float(averaged.sum() / sums.counts.sum())
    residuals = averaged - value * sums.counts
    of_clusters = float((residuals**2).sum()) * clusters / (clusters - 1) / float(sums.counts.sum()) ** 2
    return _stretched(means, value, [(of_clusters, clusters - 1), *parts])


def _seed_variance(sums: _Sums) -> tuple[float, int]:
    """Variance of the mean over seeds that the seeds explain, and its degrees of freedom; one seed shows none."""
    means = sums.values.sum(1) / sums.counts.sum()
    return (float(means.var(ddof=1)) / len(means), len(means) - 1) if len(means) > 1 else (0.0, 1)


def _stretched(means: np.ndarray, value: float, parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The middle 95% of `means`, about `value`, as wide as Student's interval of the variances (each with its df)."""
    from scipy.stats import t

    variance = sum(v for v, _ in parts)
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
    if variance <= 0 or high - low <= 1e-9 * abs(value):
        return value, value
    freedom = variance**2 / sum(v**2 / df for v, df in parts)
    factor = 2 * float(t.ppf(0.975, freedom)) * variance**0.5 / (high - low)
    return value + (low - value) * factor, value + (high - value) * factor


def compare_groups(
    groups: Mapping[str, Seeds], deterministic: Collection[str] = (), controls: Collection[str] = (), seed: int = 0
) -> list[Comparison]:
    """Every pair of groups on every metric that is meant to be compared.

    The difference is between means over seeds, item by item; p is a sign-flip permutation over clusters, corrected by
    Holm over everything returned whose items differ at all, comparisons with a control by themselves: they ask about
    the measure, the others about the strategies. The interval resamples clusters, and the seeds of each group. Two
    groups are told apart only where the corrected p is below 5% *and* the interval excludes zero.

    Args:
        groups: name -> metrics of each seed's variant.
        deterministic: groups without training noise, such as the base: one seed says it all.
        controls: wrong characters; they are not ranked, so one seed says it all of them too.
        seed: of permutations and resampling.
    """
    pairs = [
        (a, b, metric, metrics_a, metrics_b)
        for a, b in itertools.combinations(groups, 2)
        for metric, metrics_a, metrics_b in _shared(groups[a], groups[b])
    ]
    measured = [(a, b, metric, _difference(x, y, seed)) for a, b, metric, x, y in pairs]
    found = [(a, b, metric, difference) for a, b, metric, difference in measured if difference is not None]
    exempt = {*deterministic, *controls}
    few = {name: len(seeds) for name, seeds in groups.items() if name not in exempt and len(seeds) < MIN_SEEDS}
    families = [[row for row in found if bool({row[0], row[1]} & {*controls}) == control] for control in (False, True)]
    comparisons = []
    for family in families:
        testable = [any(difference.items) for *_, difference in family]
        corrected = holm_testable([difference.p for *_, difference in family], testable)
        comparisons += [
            _comparison(a, b, m, d, q, few, sum(testable)) for (a, b, m, d), q in zip(family, corrected, strict=True)
        ]
    return comparisons


def _shared(a: Seeds, b: Seeds) -> list[tuple[Metric, list[Metric], list[Metric]]]:
    """Each comparable metric that every seed of both groups has: one of its kind, then all of a's and all of b's."""
    found = []
    for metric in a[0]:
        if metric.better == "none" or not metric.compared:
            continue
        sides = [
            [m for metrics in side for m in metrics if (m.evaluator, m.metric) == (metric.evaluator, metric.metric)]
            for side in (a, b)
        ]
        if [len(side) for side in sides] == [len(a), len(b)] and all(m.value is not None for s in sides for m in s):
            found.append((metric, sides[0], sides[1]))
    return found


@dataclass(frozen=True)
class _Difference:
    value: float
    low: float | None
    high: float | None
    n: int
    p: float
    items: list[float]
    clusters: list[str]


def _difference(a: Sequence[Metric], b: Sequence[Metric], seed: int) -> _Difference | None:
    of_a, of_b = _table(a), _table(b)
    if of_a is None or of_b is None:
        return None
    places = {item: position for position, item in enumerate(of_b[0])}
    kept = [position for position, item in enumerate(of_a[0]) if item in places]
    if len(kept) < 2:
        return None
    clusters = [of_a[1][position] for position in kept]
    values_a, values_b = of_a[2][:, kept], of_b[2][:, [places[of_a[0][position]] for position in kept]]
    differences = values_a.mean(0) - values_b.mean(0)
    low, high = _interval(_sums(values_a, clusters), _sums(values_b, clusters), seed)
    return _Difference(
        float(differences.mean()),
        low,
        high,
        len(kept),
        paired_permutation([float(d) for d in differences], clusters, seed=seed),
        [float(d) for d in differences],
        clusters,
    )


def _comparison(
    a: str, b: str, metric: Metric, difference: _Difference, p_holm: float, few: Mapping[str, int], comparisons: int
) -> Comparison:
    low = difference.value if difference.low is None else difference.low
    high = difference.value if difference.high is None else difference.high
    verdict = _verdict(a, b, metric, difference, p_holm, few)
    if p_holm >= ALPHA:
        verdict += sensitivity(difference.items, difference.clusters, metric.unit, comparisons)
    return Comparison(
        a=a,
        b=b,
        evaluator=metric.evaluator,
        metric=metric.metric,
        difference=difference.value,
        low=low,
        high=high,
        n=difference.n,
        p=difference.p,
        p_holm=p_holm,
        verdict=verdict,
    )


def _verdict(a: str, b: str, metric: Metric, difference: _Difference, p_holm: float, few: Mapping[str, int]) -> str:
    beyond_seeds = (
        difference.low is not None and difference.high is not None and not difference.low <= 0 <= difference.high
    )
    better, worse = (a, b) if (difference.value > 0) == (metric.better == "higher") else (b, a)
    if p_holm < ALPHA and not beyond_seeds:
        return (
            f"{a} and {b} cannot be told apart on {title_of(metric)}: the difference on these lines (p = {p_holm:.2g}) "
            "is within what another training seed would change."
        )
    if p_holm >= ALPHA:
        return not_apart(a, b, metric, difference.n, p_holm)
    short = [name for name in (a, b) if name in few]
    if short:
        needed = " and ".join(f"{MIN_SEEDS - few[name]} more of {name}" for name in short)
        return (
            f"These trainings of {better} are better than those of {worse} on {title_of(metric)} (p = {p_holm:.2g}); "
            f"to rank them takes {MIN_SEEDS} seeds: {needed}."
        )
    return apart(better, worse, metric, p_holm)
