"""The borders of an evaluation: plugins that fail, weights that cannot be scored, settings, wrong characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field
from safetensors.numpy import save_file

from persona_lab.api import Evaluator, Frozen
from persona_lab.datasets.store import save_dataset
from persona_lab.errors import BadInput, BadModel, BadSetting, Cancelled, PluginFailed
from persona_lab.evaluation import run as evaluation_run
from persona_lab.evaluation.score_cache import ScoreCache, key_of
from persona_lab.models.weights import fingerprint
from persona_lab.types import Conversation, Dataset, ItemScore, Job, Message, Metric, Persona, Variant


def variant(name: str = "v1", **changes: Any) -> Variant:
    made = Variant(
        id=name, name=name.upper(), persona="tamsin", base="starter", strategy="lora", kind="prompt", system="Be T."
    )
    return made.model_copy(update=changes)


def metric(values: list[float]) -> Metric:
    items = tuple(ItemScore(id=str(i), cluster=str(i), value=v) for i, v in enumerate(values))
    value = sum(values) / len(values)
    return Metric(
        evaluator="counting",
        metric="m",
        value=value,
        low=value,
        high=value,
        n=len(values),
        unit="x",
        better="higher",
        items=items,
    )


class Failing(Evaluator):
    id, title, summary = "failing", "Failing", "Raises."

    def score(self, variant: Variant, probes: Any, ctx: Any) -> Any:
        raise RuntimeError("the moon is full")


class Counting(Evaluator):
    id, title, summary = "counting", "Counting", "Counts probes."

    def score(self, variant: Variant, probes: Any, ctx: Any) -> Any:
        yield metric([float(len(probes)), 1.0])


class Cancelling(Evaluator):
    id, title, summary = "cancelling", "Cancelling", "Is cancelled."

    def score(self, variant: Variant, probes: Any, ctx: Any) -> Any:
        raise Cancelled("Stopped.")


class Chosen:
    """Stands where the plugin manager does."""

    def __init__(self, *evaluators: Evaluator) -> None:
        self._evaluators = evaluators

    def all(self, kind: str) -> list[Evaluator]:
        return list(self._evaluators)


def job(persona: Persona, home: Path, *variants: Variant) -> Job:
    return Job(id="r1", kind="evaluate", name="eval", home=str(home), created="", persona=persona, variants=variants)


def test_a_failing_evaluator_is_reported_and_the_others_go_on(
    persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    result = evaluation_run.run(job(persona_factory(), tmp_path, variant()), reporter, Chosen(Failing(), Counting()))
    entry = result["variants"][0]
    assert entry["failed"] == [
        {
            "evaluator": "failing",
            "message": "The evaluator 'failing' failed on 'V1': RuntimeError: the moon is full "
            "The other evaluators are not affected.",
        }
    ]
    assert entry["metrics"][0]["n"] == 2
    assert "items" not in entry["metrics"][0]
    assert any("moon is full" in message for message in reporter.messages)
    assert '"items"' in (tmp_path / "runs" / "r1" / "metrics.json").read_text(encoding="utf-8")


def test_when_all_evaluators_fail_the_run_fails_with_the_traceback(
    persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    with pytest.raises(PluginFailed, match="moon is full") as error:
        evaluation_run.run(job(persona_factory(), tmp_path, variant()), reporter, Chosen(Failing()))
    assert "Traceback" in error.value.details
    with pytest.raises(Cancelled):
        evaluation_run.run(job(persona_factory(), tmp_path, variant()), reporter, Chosen(Cancelling(), Counting()))


def test_variants_of_two_personas_do_not_compare(
    persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    stranger = variant("s").model_copy(update={"persona": "somebody_else"})
    with pytest.raises(BadInput, match="different characters: tamsin, somebody_else"):
        evaluation_run.run(job(persona_factory(), tmp_path, variant(), stranger), reporter, Chosen(Counting()))


# --- weights that cannot be scored ---------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Variant]:
    """A variant with a weights file of its own."""

    def make(name: str, *values: float) -> Variant:
        folder = tmp_path / name
        folder.mkdir()
        save_file({"layers.0.lora_A": np.array(values, dtype=np.float32)}, folder / "adapter_model.safetensors")
        return variant(name, kind="adapter", path=str(folder), fingerprint=fingerprint(folder))

    return make


def test_damaged_weights_are_named_and_the_other_variants_go_on(
    adapter: Callable[..., Variant], persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    good, broken, gone, changed = adapter("good", 1.0), adapter("nan", 1.0, float("nan")), adapter("gone", 1.0), None
    (Path(gone.path) / "adapter_model.safetensors").unlink()
    changed = adapter("changed", 1.0)
    save_file({"layers.0.lora_A": np.zeros(2, dtype=np.float32)}, Path(changed.path) / "adapter_model.safetensors")
    work = job(persona_factory(), tmp_path, broken, gone, changed, good)
    result = evaluation_run.run(work, reporter, Chosen(Counting()))
    told = {entry["variant"]: entry.get("failed", [{}])[0].get("message", "") for entry in result["variants"]}
    assert "1 values of 'layers.0.lora_A' are not numbers" in told["nan"]
    assert "The weights of GONE are gone" in told["gone"]
    assert "have changed since it was made" in told["changed"]
    assert told["good"] == ""
    assert [len(entry["metrics"]) for entry in result["variants"]] == [0, 0, 0, 1]
    with pytest.raises(BadModel, match="not numbers"):
        evaluation_run.run(job(persona_factory(), tmp_path, broken), reporter, Chosen(Counting()))


class NotANumber(Evaluator):
    id, title, summary = "nan", "NaN", "Divides by zero."

    def score(self, variant: Variant, probes: Any, ctx: Any) -> Any:
        yield metric([1.0, float("nan")])
        yield metric([1.0, 2.0]).model_copy(update={"metric": "fine"})


def test_scores_that_are_no_numbers_are_withheld(
    persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    result = evaluation_run.run(job(persona_factory(), tmp_path, variant()), reporter, Chosen(NotANumber()))
    bad, fine = result["variants"][0]["metrics"]
    assert (bad["value"], bad["low"], bad["n"]) == (None, None, 0)
    assert "not numbers" in bad["note"]
    assert fine["value"] == 1.5


# --- settings ------------------------------------------------------------------------------------


class Adjustable(Evaluator):
    id, title, summary = "adjustable", "Adjustable", "Repeats its setting."

    class Config(Frozen):
        share: float = Field(0.5, ge=0, le=1, description="What to say.")

    def score(self, variant: Variant, probes: Any, ctx: Any) -> Any:
        yield metric([ctx.settings.share, ctx.settings.share])


def test_an_evaluator_gets_its_validated_settings(
    persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    plain = job(persona_factory(), tmp_path, variant())
    assert evaluation_run.run(plain, reporter, Chosen(Adjustable()))["variants"][0]["metrics"][0]["value"] == 0.5
    given = plain.model_copy(update={"evaluator_settings": {"adjustable": {"share": "0.25"}}})
    assert evaluation_run.run(given, reporter, Chosen(Adjustable()))["variants"][0]["metrics"][0]["value"] == 0.25
    wrong = plain.model_copy(update={"evaluator_settings": {"adjustable": {"share": 7}}})
    with pytest.raises(BadSetting, match="evaluator 'adjustable'"):
        evaluation_run.run(wrong, reporter, Chosen(Adjustable()))


# --- what is kept --------------------------------------------------------------------------------


def test_scores_survive_the_process_and_a_broken_file_costs_only_time(tmp_path: Path, reporter: Any) -> None:
    path = tmp_path / "cache" / "scores.sqlite"
    first = ScoreCache(path, reporter)
    first.put({key_of("a", 1): [1.5, 2], key_of("b"): "text"})
    first.close()
    keys = [key_of("b"), key_of("a", 1), key_of("c")]
    assert ScoreCache(path, reporter).get(keys) == {key_of("a", 1): [1.5, 2], key_of("b"): "text"}
    assert key_of("a", "1") != key_of("a", 1)
    for leftover in path.parent.iterdir():
        leftover.unlink()
    path.write_bytes(b"this is no database at all" * 50)
    broken = ScoreCache(path, reporter)
    broken.put({key_of("a"): 1})
    assert broken.get([key_of("a")]) == {}
    assert sum("scores are not kept" in message for message in reporter.messages) == 1


def test_held_out_lines_of_another_language_are_left_out_and_said(
    persona_factory: Callable[..., Persona], tmp_path: Path, reporter: Any
) -> None:
    english = "It was the kettle that argued with the clock about the rain, and the clock was right again, friend."
    german = "Ich habe den Schlüssel nirgends gefunden, obwohl wir doch alle Schubladen durchsucht haben, Nummer {}."
    lines = [(f"{english} {i}", "train") for i in range(30)] + [(german.format(i), "test") for i in range(4)]
    conversations = tuple(
        Conversation(
            id=f"c{i}",
            split=split,
            messages=(Message(role="user", content=f"Number {i}?"), Message(role="assistant", content=text)),
        )
        for i, (text, split) in enumerate(lines)
    )
    save_dataset(
        tmp_path / "d.jsonl", Dataset(id="d", persona="tamsin", version=1, name="d", conversations=conversations)
    )
    work = job(persona_factory(), tmp_path, variant()).model_copy(update={"dataset": str(tmp_path / "d.jsonl")})
    result = evaluation_run.run(work, reporter, Chosen(Counting()))
    without = evaluation_run.run(job(persona_factory(), tmp_path, variant()), reporter, Chosen(Counting()))
    assert "4 of 4 held-out lines seem to be in another language" in result["notes"][0]
    assert result["variants"][0]["metrics"] == without["variants"][0]["metrics"]
