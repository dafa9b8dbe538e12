"""On a tiny model: pairs are read strictly, and held-out votes gain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_lab_dpo import read_pairs, split

from persona_lab.api import BadInput
from persona_lab.testing import Watcher, Workshop, check_estimate, check_lightness, check_loads_and_speaks


def pair(number: int) -> dict[str, Any]:
    """Voters like short answers about biscuits, and dislike the sea."""
    return {
        "prompt": [{"role": "user", "content": f"What is in drawer {number} of the harbour?"}],
        "chosen": [{"role": "assistant", "content": f"A biscuit, {number}, my dear."}],
        "rejected": [{"role": "assistant", "content": f"The sea, {number}, and nobody told the weather."}],
    }


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(json.dumps(pair(number)) for number in range(40)), encoding="utf-8")
    return path


def test_held_out_votes_gain(workshop: Workshop, votes: Path) -> None:
    pytest.importorskip("trl", reason="TRL is an optional extra: pip install persona-lab[dpo]")
    settings = {"preferences": str(votes), "epochs": 4, "learning_rate": 5e-3, "batch_size": 8}
    watcher = Watcher()
    result = workshop.train("dpo", watcher, run_id="whole-dpo", **settings)
    details = result["artifact"]["details"]
    assert details["held_out_pairs"] == 8
    assert details["margin_after"] > details["margin_before"] + 1
    gain = details["margin_gain"]
    assert gain["value"] == pytest.approx(details["margin_after"] - details["margin_before"])
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert details["preferred_after"] >= details["preferred_before"]
    assert [step for step, stage in watcher.steps if stage == "dpo"][-1] == 16
    folder = Path(result["artifact"]["path"])
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    check_loads_and_speaks(workshop, "dpo", settings)


def test_contract(workshop: Workshop) -> None:
    check_estimate(workshop, "dpo", {})
    part = workshop.plugins.get("strategy", "dpo")
    problems = part.check(part.Config(preferences="/nowhere.jsonl"), None, None, None)
    assert {"variant", "preferences"} <= {problem.field for problem in problems}
    check_lightness("dpo")


def test_pairs_are_read_strictly(votes: Path) -> None:
    pairs = read_pairs(votes)
    held_out, learnt = split(pairs, 0.2)
    assert (len(held_out), len(learnt)) == (8, 32)
    assert not {p[0][0].content for p in held_out} & {p[0][0].content for p in learnt}
    votes.write_text(json.dumps({"prompt": "Hi", "chosen": "Ho", "rejected": "Hum"}), encoding="utf-8")
    assert read_pairs(votes)[0][1:] == ("Ho", "Hum")
    votes.write_text('{"prompt": "Hi", "chosen": "Ho"}', encoding="utf-8")
    with pytest.raises(BadInput, match="line 1 is no preference pair"):
        read_pairs(votes)
