"""The fit loop on a tiny model: it learns, keeps the best, resumes exactly, refuses nonsense, writes no pickle."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput, BadSetting, Cancelled, Diverged
from persona_lab.models.work import Kind, state_bytes
from persona_lab.training import randomness
from persona_lab.training.checkpoints import CheckpointStore
from persona_lab.training.fit import Fit, Material
from persona_lab.training.lora import attach_lora, train_layers
from persona_lab.training.masters import Masters
from persona_lab.training.paths import LossPath
from persona_lab.training.schedule import learning_rate
from persona_lab.training.validation import Foils, Measured
from persona_lab.types import FitResult, FitSettings, Message

SYSTEM = Message(role="system", content="You are Tamsin Quill, a retired cartographer who folds every answer.")
SETTINGS = FitSettings(learning_rate=5e-3, epochs=2, samples=0)


class Watcher:
    """Keeps what the loop reports; raises Cancelled at a step if told to, as a reporter does."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at = stop_at
        self.steps: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.losses: list[tuple[int, float, bool]] = []
        self.saved: list[Path] = []

    def step(self, step: int, total: int, **values: Any) -> None:
        self.steps.append({"step": step, "total": total, **values})
        if step == self.stop_at:
            raise Cancelled("Stopped on request.")


@pytest.fixture
def fit(tiny_model: Path, tmp_path: Path, conversations_factory: Callable[..., Any]) -> Callable[..., Any]:
    """Runs (or resumes) a fit of a fresh model; gives (model, result, watcher)."""
    renderer = ChatRenderer(tiny_model)
    rendered = [renderer.render([SYSTEM, *c.messages]) for c in conversations_factory(28)]

    def run(
        folder: str = "run",
        stop_at: int = 0,
        settings: FitSettings = SETTINGS,
        validation: int = 6,
        lora: bool = True,
        dtype: torch.dtype = torch.float32,
        bf16: bool | None = None,
        dropout: float = 0.2,
        poison: bool = False,
        foils: bool = False,
        enough_at: int = 0,
    ) -> tuple[Any, FitResult | None, Watcher]:
        watcher = Watcher(stop_at)
        material = Material(
            train=rendered[6:],
            validation=rendered[:validation],
            pad_id=renderer.pad_id,
            device="cpu",
            bf16=dtype == torch.bfloat16 if bf16 is None else bf16,
            seed=3,
            folder=tmp_path / folder,
            report=watcher.step,
            say=lambda message, level="info": watcher.said.append(message),
            validated=lambda *values: watcher.losses.append(values),
            sampled=lambda step, model: torch.manual_seed(step),  # whatever samples draw must not matter
            saved=lambda step, path: watcher.saved.append(path),
            foils=Foils(rendered[6:10], rendered[:4], 200, 200) if foils else Foils(),
            enough=lambda: bool(enough_at) and len(watcher.steps) >= enough_at,
        )
        randomness.seed_all(3)
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).requires_grad_(not lora)
        if lora:
            model = attach_lora(model, rank=4, dropout=dropout)
        if poison:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
        try:
            return model, Fit(model, settings, "train", material).run(), watcher
        except Cancelled:
            return model, None, watcher

    return run


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters() if p.requires_grad])


def test_it_learns_and_reports(fit: Callable[..., Any]) -> None:
    _, result, watcher = fit()
    assert result.validation_after < result.validation_before - 0.1
    assert result.steps == watcher.steps[-1]["total"] == 12  # 22 conversations, 4 a batch, 2 epochs
    assert result.examples == 22
    assert result.supervised_tokens > 200
    assert [step for step, _, _ in watcher.losses] == [0, 3, 6, 9, 12]
    assert result.validation_after == min(loss for _, loss, _ in watcher.losses)
    assert {"loss", "learning_rate", "tokens_per_second", "memory_bytes", "stage"} <= watcher.steps[0].keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_resumed_run_equals_an_uninterrupted_one(fit: Callable[..., Any], lora: bool, dtype: torch.dtype) -> None:
    settings = SETTINGS if lora else FitSettings(learning_rate=1e-3, epochs=2)
    whole, expected, _ = fit("whole", settings=settings, lora=lora, dtype=dtype)
    _, nothing, _ = fit("killed", stop_at=8, settings=settings, lora=lora, dtype=dtype)
    assert nothing is None
    model, result, watcher = fit("killed", settings=settings, lora=lora, dtype=dtype)
    assert watcher.steps[0]["step"] == 7  # the checkpoint was after step 6
    assert float((weights(model) - weights(whole)).abs().max()) < 1e-6
    assert result.model_dump(exclude={"seconds"}) == expected.model_dump(exclude={"seconds"})


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_fp32_weights_can_be_computed_with_in_bf16(fit: Callable[..., Any], lora: bool) -> None:
    """As a strategy gets them that loads the base in full precision on a machine with fast bf16."""
    settings = SETTINGS if lora else FitSettings(learning_rate=1e-3, epochs=2, samples=0)
    _, result, watcher = fit(settings=settings, lora=lora, bf16=True)
    assert result.validation_after < result.validation_before - 0.1
    assert "hand-written gradients" in watcher.said[0]


def test_a_finished_stage_is_taken_up_not_repeated(fit: Callable[..., Any]) -> None:
    first, expected, _ = fit()
    again, result, watcher = fit()
    assert watcher.steps == []
    assert result == expected
    assert torch.equal(weights(first), weights(again))


def test_a_damaged_checkpoint_is_passed_over(fit: Callable[..., Any]) -> None:
    _, _, watcher = fit(stop_at=8)
    assert [path.name for path in watcher.saved] == ["step-000003", "step-000006"]
    newest = watcher.saved[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    _, _, resumed = fit()
    assert resumed.steps[0]["step"] == 4


def test_other_settings_start_afresh(fit: Callable[..., Any]) -> None:
    fit(stop_at=8)
    _, _, watcher = fit(settings=SETTINGS.model_copy(update={"learning_rate": 1e-3}))
    assert watcher.steps[0]["step"] == 1


def test_the_best_weights_are_kept_when_training_goes_wrong(fit: Callable[..., Any]) -> None:
    wild = FitSettings(learning_rate=0.9, warmup=0, epochs=3, patience=2, max_grad_norm=100)
    model, result, watcher = fit(settings=wild, lora=False)
    assert result.best_step == 0
    assert result.stopped_early
    assert len(watcher.losses) == 3
    fresh, _, _ = fit("other", stop_at=1, settings=FitSettings(learning_rate=1e-12), lora=False)
    assert float((weights(model) - weights(fresh)).abs().max()) < 1e-6


@pytest.mark.parametrize("checkpointing", ["on", "auto"])
def test_layers_that_are_run_again_read_the_shared_prompt_too(
    fit: Callable[..., Any], checkpointing: str, monkeypatch: Any
) -> None:
    """The path with keys and values of the prefix: transformers drops these while it checkpoints."""
    monkeypatch.setattr("persona_lab.training.fit.choose_path", lambda *_: LossPath("prefix"))
    monkeypatch.setattr("persona_lab.training.fit.Masters.step_bytes", lambda self: 1 << 62)  # no memory is left
    exact = SETTINGS.model_copy(update={"checkpointing": "off"})
    _, expected, _ = fit(settings=exact, dropout=0)
    again = SETTINGS.model_copy(update={"checkpointing": checkpointing})
    _, result, _ = fit(folder="again", settings=again, dropout=0)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
    assert result.validation_after == pytest.approx(expected.validation_after, rel=1e-4)


def test_small_updates_are_not_lost_in_bf16_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    masters = Masters(model, weight_decay=0.0)
    for _ in range(100):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        masters.step(1e-4, max_norm=1.0)  # each step is a twentieth of what bf16 can tell from 1
    assert masters.weights["weight"].item() == pytest.approx(0.99, abs=1e-4)
    assert model.weight.item() == pytest.approx(0.99, abs=4e-3)


def test_the_same_seed_gives_the_same_loss_to_six_digits(fit: Callable[..., Any]) -> None:
    _, first, once = fit("first")
    _, second, again = fit("second")
    assert [round(step["loss"], 6) for step in once.steps] == [round(step["loss"], 6) for step in again.steps]
    assert round(first.validation_after, 6) == round(second.validation_after, 6)


def test_weights_can_be_kept_by_specificity_and_resumed(fit: Callable[..., Any]) -> None:
    settings = SETTINGS.model_copy(update={"keep": "specificity", "patience": 10})
    _, result, watcher = fit("whole", settings=settings, foils=True)
    assert result.specificity is not None
    best = [step for step, _, better in watcher.losses if better][-1]
    assert result.best_step == best
    fit("killed", stop_at=8, settings=settings, foils=True)
    _, again, _ = fit("killed", settings=settings, foils=True)
    assert again.model_dump(exclude={"seconds"}) == result.model_dump(exclude={"seconds"})
    _, without, _ = fit("without", settings=settings)  # nobody to be unlike: the loss decides
    assert without.specificity is None
    assert without.validation_after == min(loss for _, loss, _ in fit("w2", settings=settings)[2].losses)


def test_specificity_that_falls_first_does_not_end_a_run_whose_loss_still_falls(
    fit: Callable[..., Any], monkeypatch: Any
) -> None:
    """Bits of other speakers' lines fall before the character's own do; stopped then, a run kept what was untrained."""
    measured = itertools.count()

    def measure(self: Any) -> Measured:
        number = next(measured)
        ahead = 40 if number == 6 else -number  # of the lines of others, nats
        return Measured(5 - 0.1 * number, 100, 100 + ahead)

    monkeypatch.setattr("persona_lab.training.fit.Validator.measure", measure)
    settings = SETTINGS.model_copy(update={"keep": "specificity", "patience": 3, "epochs": 3})
    _, result, watcher = fit(settings=settings, foils=True)
    assert not any(better for _, _, better in watcher.losses[1:6])
    assert result.best_step == watcher.losses[6][0]


def test_the_last_weights_can_be_kept(fit: Callable[..., Any]) -> None:
    _, result, _ = fit(settings=SETTINGS.model_copy(update={"keep": "last"}))
    assert result.best_step == result.steps


def test_a_run_that_goes_astray_has_no_last_weights_worth_keeping(fit: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("persona_lab.training.fit.ran_away", lambda losses: len(losses) == 9)
    losses = itertools.count(5)
    monkeypatch.setattr("persona_lab.training.fit.Validator.measure", lambda self: Measured(next(losses)))
    with pytest.raises(Diverged, match="ran away by step 9"):
        fit(settings=SETTINGS.model_copy(update={"keep": "last"}))


def test_8_bit_moments_and_low_memory_exclude_each_other(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    with pytest.raises(BadSetting, match="low_memory"):
        Masters(model, 0.0, "adamw_8bit", low_memory=True)


@pytest.mark.parametrize(("low_memory", "bytes_a_weight"), [(False, 2 + 4 + 8), (True, 2 + 4)])
def test_what_a_step_takes_is_counted(low_memory: bool, bytes_a_weight: int) -> None:
    """Gradient in bf16; fp32 master; two moments, of the master's type. Plans count the same, and the best weights."""
    model = torch.nn.Linear(10, 10, bias=False, dtype=torch.bfloat16)
    assert Masters(model, 0.0, low_memory=low_memory).step_bytes() == 100 * bytes_a_weight
    assert state_bytes(Kind(100, True, low_memory=low_memory), 2, "cpu") == 100 * (bytes_a_weight + 2)
    exact = torch.nn.Linear(10, 10, bias=False)
    assert Masters(exact, 0.0).step_bytes() == 100 * (4 + 8)  # which is its own master
    assert state_bytes(Kind(100, True), 4, "cpu") == state_bytes(Kind(100, False), 2, "cpu") == 100 * (4 + 8 + 4)
    assert state_bytes(Kind(100, False), 2, "cuda") == 100 * (4 + 8)  # the best weights are kept in main memory


def test_a_run_that_goes_astray_keeps_what_was_good_before_it(fit: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("persona_lab.training.fit.ran_away", lambda losses: len(losses) >= 8)
    _, result, watcher = fit()
    assert result.stopped == "diverged"
    assert result.best_step == 6
    assert "ran away" in watcher.said[-1]
    monkeypatch.setattr("persona_lab.training.fit.ran_away", lambda losses: True)
    with pytest.raises(Diverged, match="ran away by step 1"):
        fit("nothing-good-yet")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_ended_on_request_it_keeps_the_best_weights_so_far(fit: Callable[..., Any], lora: bool) -> None:
    settings = SETTINGS if lora else FitSettings(learning_rate=1e-3, epochs=2)
    model, result, watcher = fit("ended", settings=settings, lora=lora, enough_at=5)
    assert (result.stopped, result.steps, result.best_step) == ("asked", 5, 5)
    assert [step for step, _, _ in watcher.losses] == [0, 3, 5]  # the last step is measured though it was not its turn
    assert "weights of step 5 are kept" in watcher.said[-1]
    # exactly what an uninterrupted run has after that step, and it is a finished stage: nothing to resume
    stopped, _, _ = fit("stopped", stop_at=5, settings=settings, lora=lora)
    assert float((weights(model) - weights(stopped)).abs().max()) < 1e-6
    assert fit("ended", settings=settings, lora=lora)[2].steps == []


def test_ended_on_request_after_the_best_was_passed_keeps_the_earlier_weights(fit: Callable[..., Any]) -> None:
    wild = FitSettings(learning_rate=0.9, warmup=0, epochs=3, patience=20, max_grad_norm=100)
    model, result, _ = fit(settings=wild, lora=False, enough_at=4)
    assert (result.stopped, result.steps, result.best_step) == ("asked", 4, 0)
    fresh, _, _ = fit("other", stop_at=1, settings=FitSettings(learning_rate=1e-12), lora=False)
    assert float((weights(model) - weights(fresh)).abs().max()) < 1e-6


def test_ended_on_request_without_validation_keeps_the_last_weights(fit: Callable[..., Any]) -> None:
    _, result, _ = fit(validation=0, enough_at=4)
    assert (result.stopped, result.steps, result.best_step) == ("asked", 4, 4)


def test_a_searched_rate_is_used_said_and_kept_over_an_interruption(fit: Callable[..., Any]) -> None:
    settings = SETTINGS.model_copy(update={"find_learning_rate": True})
    _, result, watcher = fit("whole", settings=settings)
    assert "found by" in watcher.said[0]
    assert 0 < result.learning_rate != settings.learning_rate
    assert max(step["learning_rate"] for step in watcher.steps) == pytest.approx(result.learning_rate, rel=0.2)
    assert result.validation_after < result.validation_before
    fit("killed", stop_at=8, settings=settings)
    _, again, _ = fit("killed", settings=settings)
    assert again.learning_rate == result.learning_rate


def test_without_validation_rows_it_says_so(fit: Callable[..., Any]) -> None:
    _, result, watcher = fit(validation=0)
    assert result.steps == 12
    assert not watcher.losses
    assert "no validation conversations" in watcher.said[0]


def test_nonsense_is_refused_with_advice(fit: Callable[..., Any]) -> None:
    with pytest.raises(Diverged, match="learning rate below"):
        fit(poison=True)


def test_nothing_to_train_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    nothing = Material([], [], 0, "cpu", False, 0, tmp_path, *[lambda *a, **k: None] * 5)
    with pytest.raises(BadInput, match="no training conversation"):
        Fit(torch.nn.Linear(2, 2), SETTINGS, "train", nothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_frozen_lower_layers_are_left_out_of_steps_and_validations(
    dtype: torch.dtype, tiny_model: Path, conversations_factory: Callable[..., Any], tmp_path: Path
) -> None:
    """And both give what the whole model gives."""
    renderer = ChatRenderer(tiny_model)
    rendered = [renderer.render([SYSTEM, *c.messages]) for c in conversations_factory(28)]
    said: list[str] = []
    runs: dict[str, list[int]] = {}
    results = {}
    for way in ("kept", "whole"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
        depth = model.config.num_hidden_layers - 1
        train_layers(model, [depth])
        runs[way] = []
        model.model.layers[0].register_forward_pre_hook(lambda *_, seen=runs[way]: seen.append(1))
        material = Material(
            rendered[6:], rendered[:6], 0, "cpu", False, 3, tmp_path / way, lambda *a, **k: None,
            lambda text, level="info": said.append(text), *[lambda *a: None] * 3,
            free_bytes=1 << 40 if way == "kept" else 1,
        )  # fmt: skip
        fit = Fit(model, SETTINGS.model_copy(update={"checkpointing": "off", "epochs": 8}), "train", material)
        results[way] = fit.run()
        assert (fit.lower is not None) == (way == "kept")
    assert sum("are run in every step: to keep what they give would take" in text for text in said) == 1
    assert len(runs["kept"]) < len(runs["whole"]) / 2  # each example once, whatever comes after
    assert results["kept"].steps == results["whole"].steps
    near = 1e-5 if dtype == torch.float32 else 3e-3
    assert results["kept"].validation_after == pytest.approx(results["whole"].validation_after, rel=near)
    assert results["kept"].train_loss == pytest.approx(results["whole"].train_loss, rel=near)


def test_learning_rate_rises_then_falls() -> None:
    settings = FitSettings(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 8)


def test_checkpoints_are_whole_or_absent_and_hold_no_pickle(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "train", {"a": 1})
    tensors = {"x": torch.arange(3.0)}
    for step in (1, 2, 3):
        store.write(step, {"step": step}, tensors, tensors)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-000002", "step-000003"]
    kinds = {path.suffix for path in store.folder.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json"}
    saved = store.newest()
    assert saved is not None
    assert saved.state == {"step": 3}
    assert torch.equal(saved.tensors["x"], tensors["x"])
    assert CheckpointStore(tmp_path / "train", {"a": 2}).newest() is None
    (store.folder / "step-000003" / "valid.json").unlink()
    assert store.newest().state == {"step": 2}  # type: ignore[union-attr]
    store.finish({"done": True}, tensors)
    assert [path.name for path in store.folder.iterdir()] == ["finished"]


def test_random_states_survive_json() -> None:
    import random

    import numpy

    randomness.seed_all(5)
    description, tensors = randomness.capture()
    expected = (random.random(), numpy.random.rand(), float(torch.rand(1)))
    randomness.restore(json.loads(json.dumps(description)), tensors)
    assert (random.random(), numpy.random.rand(), float(torch.rand(1))) == expected
