"""Intervals and tests for small, clustered samples: bootstrap, Wilson, sign-flip permutation, McNemar, Holm.

Items of one conversation are not independent, so whole clusters are resampled and whole clusters change sign.
None of this covers the noise of training seeds: it speaks about these weights, not about the strategy (see seeds.py).

A plain percentile interval is too narrow for few clusters. The quantiles are therefore taken further out, so that a
normal sample would get Student's interval (Hesterberg 2015, "expanded percentile", https://arxiv.org/abs/1411.5279).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from persona_lab.types import ItemScore, Metric

RESAMPLES = 4000
PERMUTATIONS = 20_000
_EXACT_CLUSTERS = 13
"""Up to here all 2**k sign patterns are enumerated."""
_ROWS_AT_ONCE = 1000
"""Resamples held in memory together, [rows, clusters]."""


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile interval; `low` and `high` are None when there are fewer than two clusters."""

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[str],
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Expanded percentile bootstrap of the mean, resampling whole clusters (Efron and Tibshirani 1993, chapter 8).

    Args:
        values: one number an item, [items].
        clusters: the cluster of each item, [items].
        resamples: how often the clusters are drawn with replacement; at least 2,000 for a steady interval.
        confidence: coverage aimed at, such as 0.95.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: no values, or not one cluster a value.
    """
    sums, counts = _cluster_sums(values, clusters)
    value = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(value, None, None, len(values), len(sums))
    means = _resampled_means(sums, counts, resamples, seed)
    low, high = expanded_quantiles(means, confidence, len(sums))
    return Interval(value, float(low), float(high), len(values), len(sums))


def difference_bootstrap(
    first: tuple[Sequence[float], Sequence[str]],
    second: tuple[Sequence[float], Sequence[str]],
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `first` minus mean of `second`, two separate samples of (values, clusters), each resampled by clusters.

    Raises:
        ValueError: a sample is empty, or has not one cluster a value.
    """
    (sums_1, counts_1), (sums_2, counts_2) = _cluster_sums(*first), _cluster_sums(*second)
    value = float(sums_1.sum() / counts_1.sum() - sums_2.sum() / counts_2.sum())
    n, clusters = len(first[0]) + len(second[0]), len(sums_1) + len(sums_2)
    if min(len(sums_1), len(sums_2)) < 2:
        return Interval(value, None, None, n, clusters)
    means = _resampled_means(sums_1, counts_1, resamples, seed) - _resampled_means(
        sums_2, counts_2, resamples, seed + 1
    )
    low, high = expanded_quantiles(means, confidence, min(len(sums_1), len(sums_2)))
    return Interval(value, low, high, n, clusters)


def expanded_quantiles(means: np.ndarray, confidence: float, clusters: int) -> tuple[float, float]:
    """The interval of resampled means [resamples], widened for having resampled only `clusters` (two or more)."""
    from scipy.stats import norm, t

    reach = math.sqrt(clusters / (clusters - 1)) * t.ppf(1 - (1 - confidence) / 2, clusters - 1)
    tail = float(norm.cdf(-reach))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def smallest_detectable(differences: Sequence[float], clusters: Sequence[str]) -> float | None:
    """The true mean difference that a two-sided 5% test of as many clusters sees four times in five.

    2.8 standard errors of the mean, clusters being independent (Cohen 1988; 1.96 + 0.84), before any correction for
    several comparisons. None for fewer than two clusters.
    """
    sums, counts = _cluster_sums(differences, clusters)
    k = len(sums)
    if k < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    error = math.sqrt(float((residuals**2).sum()) * k / (k - 1)) / float(counts.sum())
    return 2.8 * error


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); 0 of 40 still allows 8.8%.

    Raises:
        ValueError: `n` is not positive, or `successes` is outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"A proportion needs 0 <= successes <= n and n > 0, not {successes} of {n}.")
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_permutation(
    differences: Sequence[float], clusters: Sequence[str], permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided p of "the mean difference is zero", flipping the sign of whole clusters.

    Exact (all sign patterns) up to 13 clusters that differ; else Monte Carlo with the observed pattern counted, so that
    p is never 0 (Phipson and Smyth 2010, https://doi.org/10.2202/1544-6115.1585).

    Args:
        differences: a - b of each item, [items].
        clusters: the cluster of each item, [items].

    Raises:
        ValueError: no differences, or not one cluster a difference.
    """
    sums, _ = _cluster_sums(differences, clusters)
    sums = sums[sums != 0]  # flipping a zero changes nothing
    if not len(sums):
        return 1.0
    threshold = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    if len(sums) <= _EXACT_CLUSTERS:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float(np.mean(np.abs((patterns * 2 - 1) @ sums) >= threshold))
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, permutations, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, permutations - start)
        signs = rng.integers(0, 2, size=(rows, len(sums)), dtype=np.int8) * 2 - 1
        extreme += int(np.sum(np.abs(signs @ sums) >= threshold))
    return (extreme + 1) / (permutations + 1)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar: p from the items on which exactly one of the two succeeded (binomial with 1/2)."""
    n = only_a + only_b
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979); same order as given."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def holm_testable(p_values: Sequence[float], testable: Sequence[bool]) -> list[float]:
    """Holm's correction among the comparisons that could come out significant at all; the others keep their p.

    Two results that are the same on every item (a prompt changes no weights) have p = 1 whatever the truth is: counting
    them would make the others pay for questions that were never open (Tarone 1990, https://doi.org/10.2307/2531456).
    """
    kept = iter(holm([p for p, open_ in zip(p_values, testable, strict=True) if open_]))
    return [next(kept) if open_ else p for p, open_ in zip(p_values, testable, strict=True)]


def mean_metric(
    evaluator: str,
    metric: str,
    items: Sequence[ItemScore],
    unit: str,
    better: Literal["higher", "lower", "none"],
    reference: float | None = None,
    note: str = "",
    seed: int = 0,
) -> Metric:
    """The items' mean with its 95% cluster-bootstrap interval; without items the value is None and the note says so."""
    if not items:
        return missing_metric(evaluator, metric, unit, better, f"{note} Nothing to measure it on.".strip())
    interval = cluster_bootstrap([i.value for i in items], [i.cluster for i in items], seed=seed)
    if interval.low is None:
        note = f"{note} No interval: all items come from one conversation.".strip()
    return Metric(
        evaluator=evaluator,
        metric=metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        unit=unit,
        better=better,
        reference=reference,
        note=note,
        items=tuple(items),
    )


def share_metric(
    evaluator: str,
    metric: str,
    items: Sequence[ItemScore],
    better: Literal["higher", "lower", "none"],
    reference: float | None = None,
    note: str = "",
) -> Metric:
    """The share of items whose value is 1, with Wilson's 95% interval; items must be independent and 0 or 1."""
    if not items:
        return missing_metric(evaluator, metric, "share", better, f"{note} Nothing to measure it on.".strip())
    successes = sum(1 for item in items if item.value == 1)
    low, high = wilson(successes, len(items))
    return Metric(
        evaluator=evaluator,
        metric=metric,
        value=successes / len(items),
        low=low,
        high=high,
        n=len(items),
        unit="share",
        better=better,
        reference=reference,
        note=note,
        items=tuple(items),
    )


def missing_metric(
    evaluator: str, metric: str, unit: str, better: Literal["higher", "lower", "none"], note: str
) -> Metric:
    """A metric that could not, or must not, be given; the note says why."""
    return Metric(
        evaluator=evaluator, metric=metric, value=None, low=None, high=None, n=0, unit=unit, better=better, note=note
    )


def _cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of values and number of items of each cluster, both [clusters]."""
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"Each value needs its cluster: {len(values)} values and {len(clusters)} clusters were given.")
    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    numbers = np.asarray(values, dtype=np.float64)
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    return np.bincount(index, weights=numbers, minlength=len(names)), counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws of as many clusters, with replacement: [resamples]."""
    rng = np.random.default_rng(seed)
    k = len(sums)
    means = []
    for start in range(0, resamples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, resamples - start)
        weights = rng.multinomial(k, np.full(k, 1 / k), size=rows)  # [rows, clusters]
        means.append((weights @ sums) / (weights @ counts))
    return np.concatenate(means)
