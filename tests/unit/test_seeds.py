"""Groups of training seeds: intervals that know the seeds' noise, and rankings that wait for three seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from persona_lab.evaluation import seeds
from persona_lab.evaluation.seeds import combine, compare_groups
from persona_lab.types import ItemScore, Metric

CLUSTERS = [f"c{i // 2}" for i in range(60)]


def metric(values: Any, name: str = "m", **changes: Any) -> Metric:
    items = tuple(
        ItemScore(id=str(i), cluster=c, value=float(v)) for i, (v, c) in enumerate(zip(values, CLUSTERS, strict=False))
    )
    made = Metric(
        evaluator="e",
        metric=name,
        value=float(np.mean(values)),
        low=-9.0,
        high=9.0,
        n=len(items),
        unit="nats",
        better="higher",
        items=items,
    )
    return made.model_copy(update=changes)


def trained(rng: np.random.Generator, mean: float, count: int, seed_noise: float) -> list[list[Metric]]:
    """Each seed has its own mean, and its own noise on every line."""
    return [[metric(mean + rng.normal(0, seed_noise) + rng.normal(0, 1, 60))] for _ in range(count)]


def test_one_seed_is_as_it_was_measured() -> None:
    single = [metric([1.0, 2.0, 3.0])]
    assert combine([single]) == single
    assert combine([]) == []


def test_means_over_seeds_with_an_interval_that_knows_the_seeds() -> None:
    rng = np.random.default_rng(0)
    lines = rng.normal(0, 0.01, 60)  # the lines hardly differ: all the noise is the seeds'
    noisy = [[metric(lines + mean)] for mean in (0.0, 1.0, 2.0)]
    found = combine(noisy)[0]
    assert found.value == pytest.approx(1.0, abs=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 1.0
    assert "3 training seeds (" in found.note
    quiet = combine([[metric(lines)]] * 3)[0]
    assert quiet.low is not None
    assert quiet.high is not None
    assert quiet.high - quiet.low < 0.02
    assert found.items[5].value == pytest.approx(1.0 + lines[5])


def test_what_one_seed_withholds_is_withheld_and_missing_measures_are_left_out() -> None:
    silent = metric([1.0, 2.0]).model_copy(update={"value": None, "note": "Withheld: too few lines."})
    found = combine([[metric([1.0, 2.0]), metric([1.0], name="extra")], [silent]])
    assert [m.metric for m in found] == ["m"]
    assert found[0].value is None
    assert "too few" in found[0].note


def test_a_value_that_is_no_mean_of_its_items_gets_no_interval() -> None:
    total = [[metric([1.0, 2.0, 3.0]).model_copy(update={"value": 6.0})] for _ in range(3)]
    found = combine(total)[0]
    assert (found.value, found.low, found.high) == (6.0, None, None)


def test_a_real_difference_over_three_seeds_ranks() -> None:
    rng = np.random.default_rng(1)
    base = [[metric(rng.normal(0, 1, 60))]]
    groups = {"base": base, "lora": trained(rng, 2.0, 3, 0.05)}
    found = compare_groups(groups, deterministic={"base"})[0]
    assert found.verdict.startswith("lora is better than base on m")
    assert found.low < found.high < 0  # base - lora
    assert (found.a, found.b, found.n) == ("base", "lora", 60)


def test_fewer_than_three_seeds_do_not_rank() -> None:
    rng = np.random.default_rng(2)
    groups = {"base": [[metric(rng.normal(0, 1, 60))]], "lora": trained(rng, 2.0, 1, 0.05)}
    verdict = compare_groups(groups, deterministic={"base"})[0].verdict
    assert verdict.startswith("These trainings of lora are better")
    assert "takes 3 seeds: 2 more of lora" in verdict


def test_a_difference_within_the_seeds_own_noise_is_not_told_apart() -> None:
    lines = np.random.default_rng(3).normal(0, 0.05, 60)
    a = [[metric(lines + mean)] for mean in (0.0, 0.8, 1.6)]
    b = [[metric(lines + mean)] for mean in (0.1, 0.5, 1.2)]
    found = compare_groups({"a": a, "b": b})[0]
    assert found.p_holm < 0.05  # on these very trainings the difference is plain
    assert found.low < 0 < found.high
    assert "within what another training seed would change" in found.verdict


@pytest.mark.parametrize("noise", [0.2, 0.5, 2.0])
def test_seeds_of_one_strategy_split_in_two_are_rarely_told_apart(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The false alarms of ranking: two groups of three seeds from the same distribution."""
    monkeypatch.setattr(seeds, "RESAMPLES", 500)
    rng = np.random.default_rng(4)
    trials, alarms = 600, 0
    for number in range(trials):
        sides = [rng.normal(0, noise, (3, 1)) + rng.normal(0, 1, (3, 60)) for _ in range(2)]
        low, high = seeds._interval(*(seeds._sums(side, CLUSTERS) for side in sides), seed=number)
        assert low is not None
        assert high is not None
        alarms += not low <= 0 <= high
    assert alarms / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize(("noise", "trainings"), [(0.5, 3), (2.0, 3), (1.0, 5)])
def test_intervals_cover_the_strategys_mean_not_only_these_trainings(
    noise: float, trainings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New seeds and new lines each time, the lines being the same for all seeds."""
    monkeypatch.setattr(seeds, "RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    trials, covered = 200, 0
    for number in range(trials):
        lines = np.repeat(rng.normal(0, 0.7, 30), 2)
        found = combine(
            [[metric(lines + rng.normal(0, noise) + rng.normal(0, 1, 60))] for _ in range(trainings)], number
        )[0]
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert abs(covered / trials - 0.95) <= 3 * math.sqrt(0.05 * 0.95 / trials)


def test_only_measures_meant_to_be_compared_are() -> None:
    quiet = [[metric([1.0, 2.0, 3.0], compared=False), metric([1.0, 2.0, 3.0], name="n", better="none")]]
    assert compare_groups({"a": quiet, "b": quiet}) == []


def test_the_interval_of_a_share_stays_one() -> None:
    rng = np.random.default_rng(5)
    shares = [[metric(rng.random(60) < 0.95, unit="share")] for _ in range(3)]
    found = combine(shares)[0]
    assert found.low is not None
    assert found.high is not None
    assert 0.5 < found.low < 1.0
    assert found.high <= 1.0
