"""Statistics against scipy, published values, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from persona_lab.evaluation.statistics import (
    cluster_bootstrap,
    difference_bootstrap,
    holm,
    mcnemar,
    mean_metric,
    paired_permutation,
    share_metric,
    wilson,
)
from persona_lab.types import ItemScore


@pytest.mark.parametrize(("successes", "n"), [(0, 40), (40, 40), (7, 40), (1, 3), (160, 400)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_none_of_forty_still_allows_nine_percent() -> None:
    low, high = wilson(0, 40)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.0876, abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="proportion"):
        wilson(successes, n)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 9), (5, 5), (0, 6), (12, 3)])
def test_mcnemar_is_the_exact_binomial(only_a: int, only_b: int) -> None:
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_holm_known_values() -> None:
    # multipletests([.01, .04, .03, .005], method="holm") of statsmodels
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_exact_permutation_agrees_with_scipy() -> None:
    differences = [0.3, -0.1, 0.7, 0.2, 0.5, -0.2, 0.4, 0.6]
    expected = stats.permutation_test(
        (differences, np.zeros(8)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert paired_permutation(differences, [str(i) for i in range(8)]) == pytest.approx(expected, abs=1e-12)


def test_monte_carlo_permutation_is_near_the_t_test_and_never_zero() -> None:
    differences = np.random.default_rng(3).normal(0.25, 1, 60)
    p = paired_permutation(list(differences), [str(i) for i in range(60)])
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert 0 < paired_permutation([1.0] * 60, [str(i) for i in range(60)]) < 1e-3


def test_items_of_one_cluster_count_once() -> None:
    repeated = [1.0] * 30
    assert paired_permutation(repeated, ["a"] * 15 + ["b"] * 15) == pytest.approx(0.5)
    assert paired_permutation([0.0] * 5, list("abcde")) == 1.0


def test_bootstrap_value_is_the_item_mean_and_the_seed_decides() -> None:
    values, clusters = [1.0, 2.0, 3.0, 10.0], ["a", "a", "b", "c"]
    first = cluster_bootstrap(values, clusters, seed=1)
    assert first.value == pytest.approx(4.0)
    assert first.n == 4
    assert first.clusters == 3
    assert first == cluster_bootstrap(values, clusters, seed=1)
    many = [float(i * i) for i in range(30)]
    names = [str(i) for i in range(30)]
    assert cluster_bootstrap(many, names, seed=1) != cluster_bootstrap(many, names, seed=2)
    assert cluster_bootstrap([1.0, 2.0], ["a", "a"]).low is None
    with pytest.raises(ValueError, match="cluster"):
        cluster_bootstrap([], [])


def test_bootstrap_of_single_item_clusters_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(0, 1, 80)
    ours = cluster_bootstrap(list(values), [str(i) for i in range(80)], resamples=10_000)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_bootstrap_covers_and_ignoring_clusters_would_not() -> None:
    rng = np.random.default_rng(7)
    clustered = independent = 0
    trials = 150
    for trial in range(trials):
        effects = np.repeat(rng.normal(0, 1, 40), 3)
        values = list(effects + rng.normal(0, 0.5, 120))
        names = [str(i // 3) for i in range(120)]
        one = cluster_bootstrap(values, names, resamples=600, seed=trial)
        two = cluster_bootstrap(values, [str(i) for i in range(120)], resamples=600, seed=trial)
        assert None not in (one.low, one.high, two.low, two.high)
        clustered += (one.low or 0) <= 0 <= (one.high or 0)
        independent += (two.low or 0) <= 0 <= (two.high or 0)
    assert clustered / trials > 0.88
    assert independent / trials < 0.85


def test_difference_bootstrap_of_separate_samples() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 1, 100), rng.normal(0, 1, 100)
    names = [str(i) for i in range(100)]
    interval = difference_bootstrap((list(first), names), (list(second), names))
    error = 1.96 * np.sqrt(first.var(ddof=1) / 100 + second.var(ddof=1) / 100)
    assert interval.value == pytest.approx(first.mean() - second.mean())
    assert interval.low == pytest.approx(interval.value - error, abs=0.05)
    assert interval.high == pytest.approx(interval.value + error, abs=0.05)


def test_metrics_keep_their_items_and_say_when_there_is_nothing() -> None:
    items = [ItemScore(id=str(i), cluster=str(i), value=float(i % 2)) for i in range(10)]
    metric = mean_metric("e", "m", items, "nats", "higher")
    assert (metric.value, metric.n, len(metric.items)) == (0.5, 10, 10)
    share = share_metric("e", "m", items, "higher")
    assert (share.low, share.high) == pytest.approx(wilson(5, 10))
    assert mean_metric("e", "m", [], "nats", "higher").value is None
    assert "Nothing to measure" in share_metric("e", "m", [], "higher").note
