"""Comparisons by simulation: false alarms, the family-wise rate, power, coverage of intervals; and their verdicts."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from persona_lab.evaluation.compare import compare_all
from persona_lab.evaluation.statistics import (
    cluster_bootstrap,
    mcnemar,
    paired_permutation,
    smallest_detectable,
    wilson,
)
from persona_lab.types import ItemScore, Metric, Variant

SCENES = [f"scene{i}" for i in range(20) for _ in range(1 + i % 4)]
"""Clusters of one to four items, as in a play."""


def variant(name: str) -> Variant:
    return Variant(id=name, name=name.upper(), persona="tamsin", base="starter", strategy="lora", kind="adapter")


def metric(values: Any, clusters: list[str] | None = None, name: str = "m", **changes: Any) -> Metric:
    clusters = clusters or [str(i) for i in range(len(values))]
    items = tuple(
        ItemScore(id=str(i), cluster=c, value=float(v)) for i, (v, c) in enumerate(zip(values, clusters, strict=True))
    )
    made = Metric(
        evaluator="e",
        metric=name,
        value=float(np.mean(values)),
        low=None,
        high=None,
        n=len(items),
        unit="nats",
        better="higher",
        items=items,
    )
    return made.model_copy(update=changes)


def binomial_reach(rate: float, trials: int) -> float:
    """Three standard errors of a rate that is estimated from so many trials."""
    return 3 * math.sqrt(rate * (1 - rate) / trials)


def scenes(rng: np.random.Generator, count: int = 1) -> np.ndarray:
    """Dependent items: half of the variance belongs to the scene. [count, items]"""
    names = sorted(set(SCENES))
    effects = rng.normal(size=(count, len(names)))
    return effects[:, [names.index(c) for c in SCENES]] + rng.normal(size=(count, len(SCENES)))


def test_two_hundred_label_permutations_raise_no_more_false_alarms_than_promised() -> None:
    """Two runs that differ in nothing but labels: each item's two scores are swapped at random, scene by scene."""
    rng = np.random.default_rng(5)
    one, two = scenes(rng)[0], scenes(rng)[0]
    names = sorted(set(SCENES))
    alarms = 0
    for _ in range(200):
        flips = rng.integers(0, 2, len(names))[[names.index(c) for c in SCENES]].astype(bool)
        a, b = np.where(flips, one, two), np.where(flips, two, one)
        found = compare_all([variant("a"), variant("b")], {"a": [metric(a, SCENES)], "b": [metric(b, SCENES)]})
        alarms += found[0].p < 0.05
    assert abs(alarms / 200 - 0.05) <= binomial_reach(0.05, 200)


def test_the_family_wise_rate_holds_over_many_comparisons() -> None:
    """Four variants that are the same, three measures: 18 comparisons, and rarely a false one among them."""
    rng = np.random.default_rng(6)
    names = ("a", "b", "c", "d")
    alarms = 0
    for _ in range(40):
        metrics = {n: [metric(rng.normal(size=12), name=f"m{k}") for k in range(3)] for n in names}
        found = compare_all([variant(n) for n in names], metrics)
        assert len(found) == 18
        alarms += any(c.p_holm < 0.05 for c in found)
    assert alarms / 40 <= 0.05 + binomial_reach(0.05, 40)


def test_the_power_is_what_the_textbook_says() -> None:
    """d = 0.5 with 40 pairs: .86 by the noncentral t."""
    rng = np.random.default_rng(7)
    clusters = [str(i) for i in range(40)]
    seen = [
        paired_permutation(list(rng.normal(0.5, 1, 40)), clusters, permutations=800, seed=i) < 0.05 for i in range(300)
    ]
    expected = 1 - stats.nct.cdf(stats.t.ppf(0.975, 39), 39, 0.5 * math.sqrt(40))
    assert expected == pytest.approx(0.87, abs=0.01)
    assert abs(float(np.mean(seen)) - expected) <= binomial_reach(expected, 300)


@pytest.mark.parametrize("kept", [8, 20])
def test_intervals_cover_what_they_promise(kept: int) -> None:
    rng = np.random.default_rng(8)
    chosen = [i for i, c in enumerate(SCENES) if c in set(sorted(set(SCENES))[:kept])]
    clusters = [SCENES[i] for i in chosen]
    covered = 0
    for number, values in enumerate(scenes(rng, 400)[:, chosen]):
        interval = cluster_bootstrap(list(values), clusters, resamples=1000, seed=number)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0 <= interval.high
    assert abs(covered / 400 - 0.95) <= binomial_reach(0.95, 400)


def test_the_smallest_detectable_difference_is_seen_four_times_in_five() -> None:
    rng = np.random.default_rng(9)
    clusters = [str(i) for i in range(40)]
    size = float(np.mean([smallest_detectable(list(rng.normal(size=40)), clusters) for _ in range(50)]))
    seen = [
        paired_permutation(list(rng.normal(size, 1, 40)), clusters, permutations=800, seed=i) < 0.05 for i in range(300)
    ]
    assert abs(float(np.mean(seen)) - 0.8) <= binomial_reach(0.8, 300)
    assert smallest_detectable([1.0, 2.0], ["a", "a"]) is None


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 9), (10, 0), (7, 7)])
def test_mcnemar_agrees_with_scipy(only_a: int, only_b: int) -> None:
    expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


@pytest.mark.parametrize(("hits", "n"), [(0, 40), (3, 16), (16, 16), (20, 41)])
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_run_and_its_own_copy_cannot_be_told_apart() -> None:
    values = scenes(np.random.default_rng(1))[0]
    found = compare_all([variant("a"), variant("b")], {n: [metric(values, SCENES)] for n in ("a", "b")})
    assert (found[0].p, found[0].p_holm, found[0].difference) == (1.0, 1.0, 0.0)
    assert "cannot be told apart" in found[0].verdict
    assert found[0].verdict.endswith("They are the same on every item.")


def test_a_verdict_says_when_no_difference_could_have_been_seen() -> None:
    """Five independent items: flipping their signs gives no p below 1/16, however large the difference."""
    sides = {"a": [metric([9.0, 9.1, 9.2, 9.1, 9.3])], "b": [metric([0.0] * 5)]}
    found = compare_all([variant("a"), variant("b")], sides)[0]
    assert found.p == pytest.approx(1 / 16)
    assert "With 5 independent items no difference, however large, survives" in found.verdict
    ten = {"a": [metric(np.arange(10) + 9.0)], "b": [metric([0.0] * 10)]}
    assert compare_all([variant("a"), variant("b")], ten)[0].verdict.startswith("A is better than B")


def test_a_control_is_compared_with_what_was_trained_only() -> None:
    rng = np.random.default_rng(3)
    base = variant("base").model_copy(update={"kind": "base"})
    controls = [variant(n).model_copy(update={"control": True}) for n in ("c", "d")]
    variants = [base, variant("lora"), *controls]
    found = compare_all(variants, {v.id: [metric(rng.normal(size=20))] for v in variants})
    assert [(c.a, c.b) for c in found] == [("base", "lora"), ("lora", "c"), ("lora", "d")]
    assert "C (wrong character)" in found[1].verdict


def test_a_verdict_says_what_would_have_been_seen_in_words_for_people() -> None:
    rng = np.random.default_rng(2)
    sides = {n: [metric(rng.normal(size=40), title="Held-out gain")] for n in ("a", "b")}
    verdict = compare_all([variant("a"), variant("b")], sides)[0].verdict
    assert verdict.startswith("A and B cannot be told apart on held-out gain with 40 items (p = ")
    assert re.search(
        r"seen four times in five, before the correction, a difference has to be about 0\.\d+ nats\.$", verdict
    )


def test_second_views_of_a_measure_are_not_compared() -> None:
    sides = {n: [metric([1.0, 2.0, 3.0], compared=False)] for n in ("a", "b")}
    assert compare_all([variant("a"), variant("b")], sides) == []
