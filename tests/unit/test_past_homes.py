"""Homes as past versions of Persona Lab wrote them (`tests/past_homes/<date>`, by those very versions) still open.

They were made with a tiny random model, a LoRA and a prompt variant, and, where there were these, a vote and a
conversation; their paths were changed to /home/somebody, so they are moved homes as well.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persona_lab import backup, checkup
from persona_lab.engine import Engine
from persona_lab.evaluation.history import job_of
from persona_lab.events import read_events
from persona_lab.home import Home
from persona_lab.jobs import read_job

PAST = Path(__file__).parents[1] / "past_homes"
DATES = sorted(path.name for path in PAST.iterdir())


@pytest.fixture(params=DATES)
def past(request: pytest.FixtureRequest, home: Home) -> Home:
    """A copy of a past home."""
    shutil.copytree(PAST / request.param, home.root, dirs_exist_ok=True)
    return home


def test_everything_in_it_is_read(past: Home) -> None:
    with Engine.open(past.root) as engine:
        assert [(p.id, p.conversations) for p in engine.personas() if p.installed] == [("tam", 24)]
        assert engine.persona("tam").field("description") == "A mender of clocks."
        assert len(engine.dataset("tam-v1").conversations) == 24
        assert {run.status for run in engine.runs()} == {"done"}
        for run in engine.runs():
            assert read_job(past.run(run.id)).home == str(past.root)
            lines = (past.run(run.id) / "events.jsonl").read_bytes().count(b"\n")
            assert len(read_events(past.run(run.id) / "events.jsonl")[0]) == lines
        found = {variant.strategy: variant for variant in engine.variants()}
        assert set(found) == {"lora", "prompt"}
        assert found["lora"].path == str(past.variant("tam-lora-1") / "weights")
        assert job_of(found["lora"], past) is not None
        talked = (past.root / "votes").is_dir()
        assert len(engine.votes.all("tam")) == talked
        assert len(engine.chats.all("me")) == talked
        assert (engine.preferences.threads == 2) == (past.root / "settings.json").exists()
        assert engine.catalog.held_out("tam").entries


def test_the_doctor_finds_nothing_and_a_backup_of_it_is_whole(past: Home, tmp_path: Path) -> None:
    assert checkup.examine(past, deep=True) == []
    backup.back_up(past, tmp_path / "b.zip", weights=True)
    with Engine.open(tmp_path / "other") as engine:
        engine.restore(tmp_path / "b.zip")
        assert len(engine.variants()) == 2
    assert checkup.examine(Home(tmp_path / "other"), deep=True) == []
