"""The benchmark of many guests: what it claims can fail, and steps are counted as they are written."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from persona_lab.events import EventLog, Log, Step
from persona_lab.home import Home

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FLAT = {"growth_percent": 4.9}
GOOD: Mapping[str, Any] = {
    "errors": {}, "replies": 3, "memory": {"page": FLAT, "chat_worker": FLAT}, "steps_a_window": [5, 1],
}  # fmt: skip


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/guests.py`, which is a script and no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("guests")


def test_all_claims_can_hold(guests: Any) -> None:
    assert list(guests.claims(GOOD).values()) == [True, True, True]


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"errors": {"503: no": 1}}, "no guest was told of an error"),
        ({"replies": 0}, "no guest was told of an error"),
        ({"memory": {"page": {"growth_percent": 5.1}, "chat_worker": FLAT}}, "memory is flat"),
        ({"memory": {"page": FLAT, "chat_worker": None}}, "memory is flat"),
        ({"steps_a_window": [5, 0, 3]}, "the training went on"),
        ({"steps_a_window": []}, "the training went on"),
    ],
)
def test_every_claim_can_fail(guests: Any, change: dict[str, Any], failing: str) -> None:
    assert [claim for claim, holds in guests.claims({**GOOD, **change}).items() if not holds] == [failing]


def test_growth_is_the_last_quarter_over_the_second(guests: Any) -> None:
    assert guests.growth([1, 1, 100, 100, 50, 50, 110, 110]) == {
        "early_bytes": 100, "late_bytes": 110, "growth_percent": 10.0,
    }  # fmt: skip
    assert guests.growth([1] * 7) is None


def test_steps_are_counted_since_the_last_time(guests: Any, home: Home) -> None:
    steps = guests.Steps(home, ["a", "b"])
    assert steps.new() == 0
    logs = [EventLog(home.run(name) / "events.jsonl") for name in ("a", "b")]
    logs[0].append(Step(step=1, total=9, loss=1.0))
    logs[0].append(Log(message="hello"))
    logs[0].append(Step(step=1, total=9))  # progress of something else than training
    assert steps.new() == 1
    assert steps.new() == 0
    logs[0].append(Step(step=2, total=9, loss=1.0))
    logs[1].append(Step(step=1, total=9, loss=1.0))
    assert steps.new() == 2
    for log in logs:
        log.close()
