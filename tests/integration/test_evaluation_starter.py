"""Evaluation of the real starter: the base and a prompt variant, from probes to report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from persona_lab_builtin.plugin import persona_lab_evaluators

from persona_lab.datasets.store import save_dataset
from persona_lab.evaluation.run import run
from persona_lab.home import Home
from persona_lab.personas.prompt import system_prompt
from persona_lab.types import Conversation, Dataset, Job, Message, Persona, Split, Variant


class Evaluators:
    """Stands where the plugin manager does."""

    def all(self, kind: str) -> list[Any]:
        return [part() for part in persona_lab_evaluators()]


@pytest.fixture
def socrates(test_data: Path) -> Dataset:
    """A play's worth of one character, small enough for a quick look."""
    folder = test_data / "socrates"
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    others = [json.loads(line)["text"] for line in (folder / "other_characters.jsonl").read_text("utf-8").splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    return Dataset(
        id="socrates-1",
        persona="tamsin",
        version=1,
        name="socrates",
        conversations=tuple([_row(r, "train") for r in train] + [_row(r, "test") for r in test]),
        others=tuple(others),
    )


def _row(row: dict[str, Any], split: Split) -> Conversation:
    turns = (Message(role="user", content=row["user"]), Message(role="assistant", content=row["assistant"]))
    return Conversation(id=row["id"], split=split, messages=turns)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine needs many times what an idle one does
def test_quick_evaluation_of_base_and_prompt_with_report(
    starter_home: Home, socrates: Dataset, persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    persona = persona_factory()
    save_dataset(tmp_path / "data.jsonl", socrates)
    system = system_prompt(persona)
    base = Variant(
        id="base-tamsin", name="base", persona="tamsin", base="starter", strategy="base", kind="base", system=system
    )
    examples = tuple(c for c in socrates.of("train") if len(c.messages[1].content) < 200)[:3]
    prompt = base.model_copy(update={"id": "p1", "name": "prompt", "kind": "prompt", "examples": examples})
    job = Job(
        id="e1",
        kind="evaluate",
        name="quick",
        home=str(starter_home.root),
        created="",
        persona=persona,
        dataset=str(tmp_path / "data.jsonl"),
        dataset_id=socrates.id,
        variants=(base, prompt),
        quick=True,
        report=True,
        out=str(tmp_path / "report"),
    )
    result = run(job, reporter, Evaluators())
    of_base, of_prompt = ({m["metric"]: m for m in entry["metrics"]} for entry in result["variants"])
    assert of_base["specificity"]["value"] == 0
    assert of_base["bpb_variant"]["value"] == pytest.approx(of_base["bpb_base"]["value"])
    assert 1.0 < of_base["bpb_base"]["value"] < 2.2
    assert of_prompt["bpb_base"]["value"] == pytest.approx(of_base["bpb_base"]["value"])
    assert of_prompt["g_true"]["low"] > 0  # examples in the character's own words help to predict it
    assert of_prompt["aligned"]["n"] == 16
    assert of_prompt["real_off"]["value"] == 0
    assert of_prompt["aligned"]["value"] is not None
    assert 0.8 <= of_prompt["real_aligned"]["value"] <= 1.0
    # by gain the base is at chance, and a prompt changes no weights
    assert of_base["voice_wins_g"]["value"] == pytest.approx(0.5)
    assert (of_prompt["kl_text"]["value"], of_prompt["bpb_change_instructions"]["value"]) == (0, 0)
    assert of_prompt["relative_update"]["value"] is None
    assert "nothing" in of_prompt["relative_update"]["note"].lower()
    assert of_prompt["auc"]["value"] > 0.65
    assert 0 <= of_prompt["percentile"]["value"] <= 1
    assert of_prompt["accuracy"]["value"] is None or of_prompt["accuracy"]["n"] > 0
    compared = {c["metric"] for c in result["comparisons"]}
    assert compared >= {"g_true", "specificity", "aligned", "percentile", "voice_wins_g"}
    assert "fade" not in compared  # the base has no gain that could fade
    assert all(Path(path).stat().st_size > 2000 for path in result["report"].values())
    assert not any(entry.get("failed") for entry in result["variants"])
    json.dumps(result)
