"""What `benchmarks/locating.py` says of the rows it has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def locating(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import locating

    yield locating
    sys.modules.pop("locating", None)


def row(method: str, seed: int, specificity: float, **more: Any) -> dict[str, Any]:
    plain = {"persona": "who", "bpb": 1.0, "forgetting": 0.1, "seconds": 10.0, "validation": 3.0}
    return plain | {"method": method, "seed": seed, "specificity": specificity} | more


def test_a_criterion_is_compared_at_the_rate_that_the_validation_loss_chooses(locating: Any) -> None:
    rows = []
    for seed in (0, 1):
        rows += [row(locating.FULL, seed, 0.5, forgetting=0.05), row(locating.AS_LONG, seed, 0.5 + seed / 4)]
        rows.append(row("last, 1", seed, 0.25 + seed / 4, criterion="last", rate=1.0, validation=2.0, seconds=15.0))
    rows.append(row("last, 2", 0, 9.0, criterion="last", rate=2.0, validation=2.5))  # better, but not by validation
    [_, _, said] = locating.comparison(rows).splitlines()
    assert said == "| last | 2 | -0.250 | +0.000 | +0.050 | 1.50 |"


def test_what_is_shipped_is_compared_whatever_the_validation_loss_says(locating: Any) -> None:
    criterion, rate = locating.SHIPPED
    rows = [row(locating.FULL, 0, 0.5), row(locating.AS_LONG, 0, 0.5)]
    rows.append(row("a", 0, 0.25, criterion=criterion, rate=1e-4, validation=2.0))
    rows.append(row("b", 0, 0.75, criterion=criterion, rate=rate, validation=2.5))
    tried = locating.rates_to_try(rows, "who", (1e-4, rate), [criterion, "ablation"])
    assert tried == {criterion: [1e-4, rate], "ablation": (1e-4, rate)}
    rows += [row(locating.FULL, 1, 0.5), row(locating.AS_LONG, 1, 0.5)]
    rows.append(row("a", 1, 0.25, criterion=criterion, rate=1e-4, validation=9.0))  # the first seed has chosen
    rows.append(row("b", 1, 0.75, criterion=criterion, rate=rate, validation=1.0))
    [_, _, chosen, shipped] = locating.comparison(rows).splitlines()
    assert chosen.startswith(f"| {criterion} | 2 | -0.250")
    assert shipped.startswith(f"| {criterion} at 0.0003, as shipped | 2 | +0.250")


def test_the_shipped_place_and_rate_are_the_strategys_own(locating: Any) -> None:
    from persona_lab.plugins import Plugins

    config = Plugins.load().get("strategy", "hybrid").Config()
    assert (config.criterion, config.learning_rate) == ("last", locating.SHIPPED[1])


def test_an_interval_of_pairs_is_students(locating: Any) -> None:
    assert locating.mean_interval([1.0, 2.0, 3.0]) == "+2.000 [-0.484, +4.484]"
    assert locating.mean_interval([1.0]) == "+1.000"
