"""Home: what to do next for every state, and numbers only where something was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persona_lab.headlines import VariantFacts, facts_of
from persona_lab.types import Comparison, Metric, PersonaSummary, RunView, Variant
from persona_lab.ui.home_view import Standing, beginnings, path, recent, stages, variants

EVIL = "<img src=x onerror=alert(1)>\"'"
MAGPIE = PersonaSummary(id="magpie", name="Magpie", example=True, installed=True, conversations=90)


def variant(variant_id: str = "v1", kind: Any = "adapter", **fields: Any) -> Variant:
    return Variant(
        id=variant_id, name=variant_id, persona="magpie", base="starter", strategy="lora", kind=kind, **fields
    )


def current(at: Standing) -> str:
    return next((stage.title for stage in stages(at) if not stage.done), "")


def test_the_next_stage_follows_the_state() -> None:
    made = [VariantFacts(variant=variant())]
    running = RunView(id="r", kind="train", name="r", status="running", step=3, total=9, eta_seconds=60)
    assert current(Standing()) == "Choose a character"
    assert current(Standing(MAGPIE)) == "Look at its data"
    assert current(Standing(MAGPIE, 90)) == "Train"
    assert current(Standing(MAGPIE, 90, active=running)) == "Train"
    assert "step 3 of 9, about 60 s left" in path(Standing(MAGPIE, 90, active=running))
    assert current(Standing(MAGPIE, 90, made)) == "Evaluate"
    assert current(Standing(MAGPIE, 90, made, scored=True)) == "Chat"
    assert path(Standing()).count("disabled") == 4
    assert path(Standing(MAGPIE, 90)).count("aria-current") == 1


def test_what_users_wrote_is_escaped_and_empty_places_say_what_to_do() -> None:
    person = PersonaSummary(id="e", name=EVIL, example=True, installed=True, tagline=EVIL)
    run = RunView(id="r", kind="train", name=EVIL, status="done")
    facts = VariantFacts(variant=variant().model_copy(update={"name": EVIL}), sentences=(EVIL,))
    for html in (path(Standing(person)), beginnings([person], None), recent([run]), variants([facts])):
        assert "<img src=x" not in html
    assert "No runs yet" in recent([])
    assert "No variants yet" in variants([])


def metric(value: float, name: str = "specificity") -> dict[str, Any]:
    return Metric(
        evaluator="held_out_gain", metric=name, value=value, low=value - 0.01, high=value + 0.01, n=40,
        unit="nats/byte", better="higher", title="Specificity",
    ).model_dump(mode="json")  # fmt: skip


def test_numbers_come_from_the_newest_evaluation_that_has_the_variant(tmp_path: Path) -> None:
    def kept(name: str, *entries: tuple[str, float], p: float = 0.001) -> Path:
        rows = [{"variant": v, "metrics": [metric(value)]} for v, value in entries]
        verdict = Comparison(
            a="v1", b="base-magpie", evaluator="held_out_gain", metric="specificity", difference=0.05, low=0.04,
            high=0.06, n=40, p=p, p_holm=p, verdict="",
        )  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        document = {"variants": rows, "comparisons": [verdict.model_dump(mode="json")]}
        (folder / "metrics.json").write_text(json.dumps(document))
        return folder / "metrics.json"

    other = kept("newest", ("v2", 0.9))
    mine = kept("newer", ("v1", 0.05), ("base-magpie", 0.0))
    old = kept("old", ("v1", 0.01), ("base-magpie", 0.0))
    trained = RunView(
        id="v1", kind="train", name="v1", status="done",
        result={"loss": {"validation_before": 3.5, "validation_after": 2.5}},
    )  # fmt: skip
    facts = facts_of(variant(), trained, [tmp_path / "gone.json", other, mine, old], variant("base-magpie", "base"))
    assert facts.report == "newer"
    assert [m.value for m in facts.numbers] == [0.05]
    assert any("better than its base" in line for line in facts.sentences)
    html = variants([facts])
    assert "3.500 → 2.500" in html
    assert "0.050 [0.040, 0.060]" in html
    assert facts_of(variant(), None, [], None) == VariantFacts(variant=variant())
    assert "Not evaluated yet" in variants([facts_of(variant(), None, [], None)])
