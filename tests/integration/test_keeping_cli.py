"""`backup`, `restore` and `doctor --repair` as commands: one JSON document, exit codes, and errors as a paragraph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.engine import Engine
from persona_lab.home import Home

PAST = Path(__file__).parents[1] / "past_homes"


@pytest.fixture
def kept(home: Home) -> Home:
    """A home with a persona, data, two runs and variants, a vote and a conversation."""
    shutil.copytree(sorted(PAST.iterdir())[-1], home.root, dirs_exist_ok=True)
    return home


def test_backup_and_restore(kept: Home, cli: Callable[..., Any], tmp_path: Path) -> None:
    out, other = tmp_path / "b.zip", tmp_path / "other"
    with Engine.open(kept.root):  # as beside a running page
        made = cli("backup", str(out), "--weights", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["variants"] == 2
    again = cli("backup", str(out))
    assert again.returncode == 2
    assert "overwrites nothing" in " ".join(again.stderr.split())
    assert json.loads(cli("restore", str(out), "--check", "--json").stdout)["weights"] is True
    done = cli("restore", str(out), "--json", home_folder=other)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replaced"] == ""
    with Engine.open(other) as engine:
        assert len(engine.variants()) == 2
        assert engine.votes.all("tam")
    out.write_bytes(out.read_bytes()[:-500])
    damaged = cli("restore", str(out), home_folder=other)
    assert damaged.returncode == 2
    assert "cut off" in " ".join(damaged.stderr.split())
    assert "Traceback" not in damaged.stderr


def test_the_doctor_looks_repairs_and_is_content(kept: Home, cli: Callable[..., Any]) -> None:
    Engine.open(kept.root).close()
    assert json.loads(cli("doctor", "--checksums", "--json").stdout)["findings"] == []
    kept.library.write_text('{"personas": ')
    looked = cli("doctor", "--json")
    assert looked.returncode == 0, looked.stderr
    report = json.loads(looked.stdout)
    assert (report["ok"], report["findings"][0]["kind"], report["findings"][0]["done"]) == (False, "library", "")
    opened = cli("personas", "list")
    assert opened.returncode == 2
    assert "persona-lab doctor --repair" in " ".join(opened.stderr.split())
    repaired = json.loads(cli("doctor", "--repair", "--json").stdout)
    assert "put aside" in repaired["findings"][0]["done"]
    personas = json.loads(cli("personas", "list", "--json").stdout)
    assert "tam" in [persona["id"] for persona in personas]
    told = cli("doctor", "--repair")
    assert "The data folder is as it should be." in told.stdout
