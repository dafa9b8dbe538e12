"""`persona-lab datasets`: one JSON document each; looking, importing, checking, mending, choosing a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from persona_lab.cli.datasets import datasets_app
from persona_lab.engine import Engine
from persona_lab.errors import BadInput
from persona_lab.home import Home
from persona_lab.types import Persona


def run(home: Home, *arguments: str) -> Any:
    result = CliRunner().invoke(datasets_app, [*arguments, "--home", str(home.root), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout)


def test_from_a_log_to_a_mended_version_and_back(home: Home, test_data: Path) -> None:
    log = str(test_data / "messy_chat" / "ubuntu_2006-11-30_08.raw.txt")
    with Engine(home) as engine:
        engine.save_persona(Persona(id="helper", name="Helper", card={"data": {"name": "Helper"}}))
    look = run(home, "look", log, "--persona", "helper")
    assert look["format"] == "irc"
    assert look["why"].startswith("IRC log, because")
    assert look["assistant"] == ""
    assert "nolimitsoya" in look["roles"]["assistant"]
    with pytest.raises(BadInput, match=r"nolimitsoya \(21\).*--map assistant=NAME"):
        run(home, "import", log, "--persona", "helper")
    made = run(home, "import", log, "--persona", "helper", "--map", "assistant=nomin,user=*,gap=5")
    assert made["why"].startswith("IRC log, because")
    report = run(home, "check", made["id"])
    kinds = [finding["kind"] for finding in report["findings"] if finding["fix"]]
    assert len(report["clean"]) + len(report["findings"]) == 12
    assert len(report["reply_words"]) == 5
    if kinds:
        mended = run(home, "fix", made["id"], "--kinds", ",".join(kinds))
        assert mended["parent"] == made["id"]
        assert run(home, "use", "helper", "--version", "1")["id"] == made["id"]
    assert run(home, "list", "--persona", "helper")[0]["id"] == made["id"]
