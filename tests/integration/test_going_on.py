"""`continue` through the engine with real workers: refusals before anything starts, lineage, resume after a kill."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.engine import Engine
from persona_lab.errors import BadInput, UnknownName
from persona_lab.events import Checkpoint, Started, Step
from persona_lab.types import Variant
from persona_lab.ui.plans import Plans

LORA = {"epochs": 1, "samples": 0, "rank": 4, "alpha": 8, "learning_rate": 5e-3}
MORE = {"epochs": 2, "samples": 0, "learning_rate": 1e-3}


def row(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"Tell me what the {number} weavers of the north did with their looms?"},
            {
                "role": "assistant",
                "content": f"They sold {number} of them, friend, and bought a boat for the spare change.",
            },
        ]
    }


@pytest.fixture
def mother(engine: Engine, tiny_model: Path) -> Variant:
    return engine.variant(engine.wait(engine.train("tam", "lora", str(tiny_model), LORA, name="Mother")).variant)


def bring_new_rows(engine: Engine, folder: Path, count: int = 16) -> None:
    path = folder / "new.jsonl"
    path.write_text("\n".join(json.dumps(row(n)) for n in range(count)))
    engine.import_dataset(path, "tam")


def test_what_cannot_be_gone_on_from_is_refused_before_it_starts(
    engine: Engine, mother: Variant, tiny_model: Path, tmp_path: Path
) -> None:
    runs = len(engine.runs())
    with pytest.raises(BadInput, match="needs a variant") as missing:
        engine.train("tam", "continue")
    assert mother.id in missing.value.fix
    with pytest.raises(UnknownName, match="nobody"):
        engine.train("tam", "continue", settings={"variant": "nobody"})
    with pytest.raises(BadInput, match="nothing new to learn"):
        engine.train("tam", "continue", settings={"variant": mother.id})
    with pytest.raises(BadInput, match="was trained on"):
        engine.train("tam", "continue", base=str(tmp_path), settings={"variant": mother.id, "replay": 1})
    with pytest.raises(BadInput, match="is a variant of 'tam'"):
        engine.train("magpie", "continue", settings={"variant": mother.id})
    prompt = engine.wait(engine.train("tam", "prompt", str(tiny_model), {"count": 1}))
    with pytest.raises(BadInput, match="changes only the prompt"):
        engine.train("tam", "continue", settings={"variant": prompt.variant})
    (row,) = engine.plan("tam", "continue", str(tiny_model))
    assert not row.fits
    assert len(engine.runs()) == runs + 1


def test_a_plan_is_of_the_variants_own_weights_and_of_what_is_new(
    engine: Engine, mother: Variant, tiny_model: Path, tmp_path: Path
) -> None:
    (nothing,) = engine.plan("tam", "continue", settings={"variant": mother.id})
    assert not nothing.fits
    assert "nothing new to learn" in nothing.reason
    bring_new_rows(engine, tmp_path)
    adapter = engine.plan("tam", "continue", settings=MORE | {"variant": mother.id, "replay": 0})[0]
    assert adapter.fits
    lora = engine.plan("tam", "lora", str(tiny_model), LORA)[0]
    assert adapter.trainable_parameters == lora.trainable_parameters  # of the variant's rank, on the variant's base
    all_again = engine.plan("tam", "continue", settings=MORE | {"variant": mother.id, "replay": 1})[0]
    assert all_again.seconds > adapter.seconds
    run = engine.wait(engine.train("tam", "freeze", str(tiny_model), MORE | {"layers": 1}))
    whole = engine.plan("tam", "continue", settings=MORE | {"variant": run.variant, "replay": 1})[0]
    assert whole.trainable_parameters == engine.base_model(str(tiny_model)).parameters
    everything = engine.plan("tam", settings={"variant": mother.id})
    assert next(row for row in everything if row.strategy == "continue").trainable_parameters == (
        adapter.trainable_parameters
    )
    with pytest.raises(UnknownName, match="nobody"):
        engine.plan("tam", "continue", settings={"variant": "nobody"})


def test_the_page_plans_on_another_base_than_the_newest_variants(
    engine: Engine, mother: Variant, tiny_model_of: Callable[[str], Path]
) -> None:
    other = str(tiny_model_of("gpt2"))
    rows = {row.strategy: row for row in Plans(engine).rows("tam", other)}
    assert not rows["continue"].fits
    assert "was trained on" in rows["continue"].reason
    assert rows["lora"].fits


def test_what_a_deleted_forebear_knew_is_still_learned(engine: Engine, mother: Variant, tmp_path: Path) -> None:
    bring_new_rows(engine, tmp_path)
    run = engine.wait(engine.train("tam", "continue", settings=MORE | {"variant": mother.id}))
    daughter, dataset = engine.variant(run.variant), engine.dataset("tam-v2")
    before = engine.catalog.learned_by(daughter, dataset)
    engine.delete_variant(mother.id)
    assert engine.catalog.learned_by(daughter, dataset) == before
    assert len(before) > len(dataset.of("train"))


def test_lineage_is_kept_over_generations_and_shown(
    engine: Engine, mother: Variant, cli: Callable[..., Any], tmp_path: Path
) -> None:
    bring_new_rows(engine, tmp_path)
    first = engine.wait(engine.train("tam", "continue", settings=MORE | {"variant": "Mother"}, name="Daughter"))
    assert first.status == "done", first.message
    daughter = engine.variant("Daughter")
    assert (daughter.parent, daughter.base, daughter.kind) == (mother.id, mother.base, "adapter")
    details = first.result["artifact"]["details"]
    assert details["new_rows"] == len(engine.dataset("tam-v2").of("train"))
    learned = engine.catalog.learned_by(daughter, engine.dataset("tam-v2"))
    everything = len(engine.dataset("tam-v1").of("train")) + len(engine.dataset("tam-v2").of("train"))
    assert everything * 0.7 < len(learned) <= everything  # both generations' rows, less what is held out by now
    second = engine.wait(engine.train("tam", "continue", settings=MORE | {"variant": daughter.id, "replay": 1}))
    assert second.status == "done", second.message
    assert engine.variant(second.variant).parent == daughter.id
    engine.close()
    shown = cli("variants", "show", daughter.id)
    assert f"{mother.id}" in shown.stdout
    listed = json.loads(cli("variants", "list", "--json").stdout)
    assert {v["id"]: v["parent"] for v in listed} == {
        mother.id: "",
        daughter.id: mother.id,
        second.variant: daughter.id,
    }


def test_going_on_resumes_after_a_kill(engine: Engine, mother: Variant, tmp_path: Path) -> None:
    bring_new_rows(engine, tmp_path, 40)
    settings = MORE | {"variant": mother.id, "epochs": 8, "patience": 50, "batch_size": 1}
    run_id = engine.train("tam", "continue", settings=settings)
    end = time.monotonic() + 90
    while not any(isinstance(event, Checkpoint) for event in engine.events(run_id)[0]):
        assert time.monotonic() < end
        time.sleep(0.05)
    started = [event for event in engine.events(run_id)[0] if isinstance(event, Started)]
    os.kill(started[-1].pid, signal.SIGKILL)
    assert engine.wait(run_id).status == "interrupted"
    engine.resume(run_id)
    resumed = engine.wait(run_id)
    assert resumed.status == "done", resumed.message
    events = engine.events(run_id)[0]
    again = next(i for i, event in enumerate(events) if isinstance(event, Started) and event.attempt == 2)
    assert next(event.step for event in events[again:] if isinstance(event, Step) and event.stage) > 1
    whole = engine.wait(engine.train("tam", "continue", settings=settings))
    assert whole.result["fingerprint"] == resumed.result["fingerprint"]
    assert whole.result["loss"] == resumed.result["loss"]
