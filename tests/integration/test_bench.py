"""`bench-strategies` with real workers on a tiny model: trains what is missing, evaluates, writes, and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.home import Home

pytestmark = pytest.mark.slow


def test_it_trains_evaluates_writes_and_uses_finished_runs_again(
    ready_home: Home, tiny_model: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    asked = ["bench-strategies", "--persona", "tam", "--strategies", "prompt,lora", "--base", str(tiny_model)]
    asked += ["--evaluators", "held_out_gain", "--quick", "--json", "--out", str(tmp_path / "out")]
    first = cli(*asked, "--seeds", "1")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["personas"][0]["seeds"] == {"base": 1, "prompt": 1, "lora": 1}
    assert "Training lora on tam, seed 0." in first.stderr
    second = cli(*asked, "--seeds", "2")
    assert second.returncode == 0, second.stderr
    assert "seed 0" not in second.stderr  # what was finished is not trained again
    assert "Training lora on tam, seed 1." in second.stderr
    assert json.loads(second.stdout)["personas"][0]["seeds"] == {"base": 1, "prompt": 1, "lora": 2}
    written = json.loads((tmp_path / "out" / "measured.json").read_text(encoding="utf-8"))
    groups = written["personas"][0]["groups"]
    assert set(groups) == {"base", "prompt", "lora"}
    assert {m["metric"] for m in groups["lora"]["metrics"]} >= {"specificity", "g_true"}
    assert len(groups["lora"]["costs"]) == 2
    text = (tmp_path / "out" / "measured.md").read_text(encoding="utf-8")
    assert "--seeds 2" in text
    jobs = [json.loads(file.read_text(encoding="utf-8")) for file in ready_home.root.glob("runs/*eval*/job.json")]
    bases = [variant["base"] for job in jobs for variant in job["variants"] if variant["kind"] == "base"]
    assert bases == [str(tiny_model)] * len(jobs)  # the base that was trained, not the starter
    assert "| lora | 2 |" in text


def test_wrong_input_is_refused_before_anything_is_trained(ready_home: Home, cli: Callable[..., Any]) -> None:
    unknown = cli("bench-strategies", "--persona", "tam", "--strategies", "lora,lara", "--seeds", "1")
    assert unknown.returncode == 2
    assert "lara" in unknown.stderr
    (ready_home.root / "file").touch()
    nowhere = cli("bench-strategies", "--persona", "tam", "--out", str(ready_home.root / "file" / "x"))
    assert nowhere.returncode == 2
    assert "--out" in nowhere.stderr
    assert "Traceback" not in unknown.stderr
    assert not any(ready_home.root.glob("runs/*"))
