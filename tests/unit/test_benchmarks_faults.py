"""The fault campaign's plan and arithmetic: everything is hit, losses are counted and not claimed, the page says so."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from persona_lab.engine import Engine
from persona_lab.events import EventLog, Started
from persona_lab.home import Home

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CARD = {"name": "Tam", "description": "A mender of clocks."}


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def faults() -> Any:
    """`benchmarks/faults.py`, which is a script and no package."""
    return importlib.import_module("faults")


@pytest.fixture
def checks() -> Any:
    """`benchmarks/faults_checks.py`."""
    return importlib.import_module("faults_checks")


def first_trainings(faults: Any) -> dict[str, Counter[str]]:
    """What each part trains first, which is what it mostly hits, by part: as the campaign itself numbers them."""
    driven = importlib.import_module("faults_driven")
    found: dict[str, Counter[str]] = {}

    def note(part: str, salt: int) -> None:
        found.setdefault(part, Counter())[driven.training_of(salt * driven.TURNS)[0]] += 1

    for victim, operation, salt in faults.planned(faults.MOMENTS):
        if operation == "train":
            note(victim, salt)
    for point in range(faults.FULL_POINTS):
        if faults.FULL[point % len(faults.FULL)] == "train":
            note("full disk", 1 + point)
    return found


def test_every_part_hits_every_kind_of_training_as_often(faults: Any) -> None:
    found = first_trainings(faults)
    assert set(found) == {"page", "worker", "full disk"}
    kinds = {name for name, _ in faults.TRAININGS}
    assert kinds == {"lora", "hybrid"}
    for part, counts in found.items():
        assert set(counts) == kinds, part
        assert max(counts.values()) - min(counts.values()) <= 1, (part, counts)


def test_checkpoints_of_every_kind_are_damaged(faults: Any) -> None:
    assert {faults.training_of(salt)[0] for salt in range(len(faults.TRAININGS))} == {"lora", "hybrid"}


def test_one_process_trains_in_turns(faults: Any) -> None:
    driven = importlib.import_module("faults_driven")
    names = [driven.training_of(3 * driven.TURNS + number)[0] for number in range(4)]
    assert names[0] != names[1]
    assert names[:2] == names[2:]


def test_the_plan_has_every_operation_of_every_victim(faults: Any) -> None:
    plan = faults.planned(faults.MOMENTS)
    counts = Counter((victim, operation) for victim, operation, _ in plan)
    assert Counter(victim for victim, _, _ in plan) == dict.fromkeys(faults.VICTIMS, faults.MOMENTS)
    for victim, operations in faults.VICTIMS.items():
        assert {counts[victim, operation] for operation in operations} == {faults.MOMENTS // len(operations)}
    assert len(set(plan)) == len(plan), "no moment is done twice"


# --- the checks -----------------------------------------------------------------------------------


@pytest.fixture
def filled(home: Home, tmp_path: Path) -> Path:
    """A home with a character, data and a vote."""
    driven = importlib.import_module("faults_driven")
    card, data = tmp_path / "tam.json", tmp_path / "tam.jsonl"
    card.write_text(json.dumps(CARD))
    data.write_text("\n".join(json.dumps(row) for row in driven.rows(24, 0)))
    with Engine.open(home.root) as engine:
        engine.import_persona(card, "tam")
        engine.import_dataset(data, "tam")
        driven.cast_quietly(engine)
    return home.root


def test_what_is_listed_is_listed(filled: Path, checks: Any) -> None:
    found = checks.listed(filled)
    assert found["personas"] == {"tam"}
    assert found["datasets"] == {"tam-v1"}
    assert len(found["votes"]) == 1


@pytest.mark.parametrize("pattern", ["votes/*.json", "personas/*/card.json", "personas/*/datasets/*.jsonl"])
@pytest.mark.parametrize("how", ["emptied", "bytes flipped"])
def test_one_damaged_file_costs_nothing_else(filled: Path, checks: Any, pattern: str, how: str) -> None:
    before = checks.listed(filled)
    path = next(filled.glob(pattern))
    checks.WAYS[how](path)
    found = checks.examined(filled, path.relative_to(filled), before)
    assert found["lost"] == []
    assert found["named"]
    assert found["itself"] in (True, False)


def test_a_loss_is_counted(filled: Path, checks: Any) -> None:
    before = checks.listed(filled)
    (vote,) = filled.glob("votes/*.json")
    vote.unlink()
    with Engine.open(filled) as engine:
        engine.library.remove("votes", vote.stem)
    card = next(filled.glob("personas/*/card.json"))
    checks.WAYS["emptied"](card)
    found = checks.examined(filled, card.relative_to(filled), before)
    assert found["missing_after"] == [f"votes/{vote.stem}"]
    assert f"not listed any more: votes/{vote.stem}" in found["lost"]


def test_bytes_that_go_are_counted(filled: Path, checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checks.listed(filled)
    stray = filled / "personas" / "tam" / "notes.txt"
    stray.write_text("mine")
    card = next(filled.glob("personas/*/card.json"))
    checks.WAYS["emptied"](card)
    really = checks.checkup.repair

    def repair(*arguments: Any, **more: Any) -> Any:
        stray.unlink()
        return really(*arguments, **more)

    monkeypatch.setattr(checks.checkup, "repair", repair)
    found = checks.examined(filled, card.relative_to(filled), before)
    assert not found["kept"]
    assert any("notes.txt" in entry for entry in found["lost"])


def test_nothing_that_opens_is_everything_missing(checks: Any) -> None:
    before = {"votes": {"a", "b"}, "runs": {"r"}}
    assert checks.missing(before, None, ("votes", "a")) == ["votes/b", "runs/r"]
    assert checks.missing(before, {"votes": {"b"}, "runs": {"r"}}, ("votes", "a")) == []


def test_only_the_worker_that_wrote_the_log_is_killed(faults: Any, tmp_path: Path) -> None:
    """The number in a run's log may be another process's by now."""
    folder = tmp_path / "runs" / "tam-1"
    assert faults.worker_of(folder) is None
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        began = psutil.Process(other.pid).create_time()
        log = EventLog(folder / "events.jsonl")
        log.append(Started(pid=other.pid, created=began))
        found = faults.worker_of(folder)
        assert found is not None
        assert found.pid == other.pid
        log.append(Started(pid=other.pid, created=began - 3600))
        assert faults.worker_of(folder) is None
        log.close()
    finally:
        other.kill()
        other.wait()


def test_the_page_counts_what_it_was_given(faults: Any) -> None:
    moment = {"acknowledged": 4, "interrupted": 1, "named": 1, "resumed": 1, "where": "Starting", "lost": []}
    file = {
        "file": "votes/*.json", "how": "emptied", "opened_before": True, "missing_before": [], "opened_after": True,
        "missing_after": ["runs/r"], "named": ["x"], "mended": [], "itself": False, "kept": True, "lost": ["a", "b"],
    }  # fmt: skip
    weights = {
        "file": faults.CHECKPOINT, "how": "zeroed", "strategy": "hybrid", "named": True, "gone_on": True, "resumed": 1,
        "lost": [],
    }  # fmt: skip
    document = {
        "sessions": [{"date": "2026-01-01T00:00", "command": "python benchmarks/faults.py", "machine": "2 cores"}],
        "moments": [
            {"victim": "worker", "operation": "train", "strategy": "hybrid", **moment},
            {"victim": "worker", "operation": "train", **moment},
        ],
        "full": [],
        "damage": [file, weights],
    }
    text = faults.page(document)
    assert "| worker | train | 2 | 8 | 2 | 2 | 2 | 0 |" in text
    assert "What was trained when a training was hit: hybrid (1), not noted (1)." in text
    assert "| `votes/*.json` | emptied | yes, no | yes | no | no | yes | 2 |" in text
    assert "1 resumed from the one before (hybrid)" in text
    assert text.rstrip().endswith("- a\n- b")
    assert "Nothing." not in text
    assert "2 moments so far" in text
