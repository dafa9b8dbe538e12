"""Schedules, the search for a learning rate, the guard, and masters in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadSetting, Diverged
from persona_lab.home import Home
from persona_lab.testing import CPU, STARTER, Watcher, made_up_conversation
from persona_lab.training.batches import shared_prefix
from persona_lab.training.checkpoints import CheckpointStore
from persona_lab.training.context import Context
from persona_lab.training.foils import foil_pairs
from persona_lab.training.guards import WINDOW, ran_away, refuse_nonsense
from persona_lab.training.locate import benefit_per_cost
from persona_lab.training.masters import Masters
from persona_lab.training.sample_budget import SampleBudget
from persona_lab.training.schedule import learning_rate, search_rate
from persona_lab.training.validation import Foils
from persona_lab.types import Conversation, Dataset, FitSettings, Message


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_rise_then_fall_as_they_say(schedule: Any) -> None:
    settings = FitSettings(learning_rate=1.0, warmup=0.2, schedule=schedule)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2] == pytest.approx(1.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    last = {"linear": 1 / 8, "cosine": 0.5 * (1 + math.cos(math.pi * 7 / 8)), "constant": 1.0}
    assert rates[-1] == pytest.approx(last[schedule])
    assert learning_rate(2, 10, settings, highest=0.5) == pytest.approx(0.5)


def test_the_search_finds_a_rate_below_where_it_goes_wrong() -> None:
    """A quadratic: gradient descent with rate r multiplies the error by (1 - 10 r), so it diverges above r = 0.2."""
    place = {"x": 1.0}

    def step(_: int, rate: float) -> float:
        loss = 5 * place["x"] ** 2 + 1
        place["x"] -= rate * 10 * place["x"]
        return loss

    found, curve = search_rate(0.05, step)
    assert 0.005 < found < 0.2
    assert curve[0][0] < curve[-1][0]


def test_a_search_in_which_nothing_improves_keeps_the_rate_it_was_given() -> None:
    assert search_rate(0.01, lambda number, rate: 3.0 + number)[0] == 0.01
    assert search_rate(0.01, lambda number, rate: math.nan) == (0.01, [])


def test_the_guard_knows_a_runaway_from_noise() -> None:
    steady = [3.0 + 0.9 * (-1) ** i for i in range(4 * WINDOW)]
    assert not ran_away(steady)
    assert not ran_away([3.0] * WINDOW + [9.0] * (WINDOW - 1))
    assert ran_away([3.0] * WINDOW + [9.0] * WINDOW)
    refuse_nonsense(1.0, 2.0, 1, 1e-3)
    with pytest.raises(Diverged, match=r"step 7.*learning rate below 0\.001 \(try 0\.0002\)"):
        refuse_nonsense(math.nan, 1.0, 7, 1e-3)


def moved(steps: int, weight: float = 1.0, rate: float = 1e-4, **options: Any) -> torch.Tensor:
    """Many equal bf16 weights after steps that each move them by less than bf16 can tell."""
    model = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    torch.nn.init.constant_(model.weight, weight)
    masters = Masters(model, 0.0, **options)
    torch.manual_seed(0)
    for _ in range(steps):
        model(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
        masters.step(rate, max_norm=1e9)
    return model.weight.detach().float()


def test_random_rounding_keeps_small_updates_on_average() -> None:
    masters = moved(100)
    rounded = moved(100, low_memory=True)
    assert float(masters.mean()) == pytest.approx(0.99, abs=4e-3)
    assert float(rounded.mean()) == pytest.approx(0.99, abs=1e-3)
    assert float(rounded.std()) > 0  # each weight by itself is off


def test_low_memory_keeps_nothing_in_fp32() -> None:
    model = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    masters = Masters(model, 0.0, low_memory=True)
    model(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
    masters.step(1e-3, 1.0)
    kept = masters.state()
    assert {kept["weight.weight"].dtype, kept["exp_avg.weight"].dtype, kept["exp_avg_sq.weight"].dtype} == {
        torch.bfloat16
    }


def test_eight_bit_moments_resume_and_paged_ones_are_refused_on_a_cpu() -> None:
    def train(masters: Masters, model: torch.nn.Module, steps: int) -> None:
        for step in range(steps):
            torch.manual_seed(step)
            model(torch.randn(4, 128)).square().sum().backward()
            masters.step(1e-2, 1.0)

    def fresh() -> tuple[torch.nn.Module, Masters]:
        torch.manual_seed(1)
        model = torch.nn.Linear(128, 64)
        return model, Masters(model, 0.0, "adamw_8bit")

    whole, masters = fresh()
    before = whole.weight.detach().clone()
    train(masters, whole, 3)
    assert not torch.equal(before, whole.weight)
    kept = {name: tensor.clone() for name, tensor in masters.state().items()}
    assert kept["eight.state1.weight"].dtype == torch.uint8
    again, resumed = fresh()
    resumed.load_state(kept)
    train(masters, whole, 2)
    train(resumed, again, 2)
    assert torch.equal(whole.weight, again.weight)
    with pytest.raises(BadSetting, match="CUDA"):
        Masters(torch.nn.Linear(2, 2), 0.0, "paged_adamw_8bit")


def test_eight_bit_moments_of_several_weights_go_through_a_checkpoint(tmp_path: Path) -> None:
    """Two weights large enough for 8 bits; smaller ones keep moments in fp32."""

    def train(model: torch.nn.Module, masters: Masters, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            model(torch.randn(4, 64)).square().sum().backward()
            masters.step(1e-2, 1.0)

    def fresh() -> tuple[torch.nn.Module, Masters]:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))
        return model, Masters(model, 0.0, "adamw_8bit")

    whole, masters = fresh()
    train(whole, masters, range(3))
    store = CheckpointStore(tmp_path / "train", {"seed": 1})
    store.write(3, {"step": 3}, masters.state(), masters.copy_working())
    train(whole, masters, range(3, 5))
    saved = store.newest()
    assert saved is not None
    assert saved.tensors["eight.state1.0.weight"].dtype == torch.uint8
    assert {"eight.qmap1.0.weight", "eight.qmap1.1.weight"} <= saved.tensors.keys()
    again, resumed = fresh()
    resumed.load_state(saved.tensors)
    train(again, resumed, range(3, 5))
    for mine, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_large_weights_are_moved_piece_by_piece_as_torch_moves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona_lab.training.masters.PIECE", 100)
    torch.manual_seed(0)
    model, other = torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)
    other.load_state_dict(model.state_dict())
    masters = Masters(model, weight_decay=0.1)
    peer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(4):
        torch.manual_seed(step)
        x = torch.randn(8, 32)
        model(x).square().sum().backward()
        other(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        assert masters.step(1e-2, 1.0) == pytest.approx(float(norm), rel=1e-5)
        peer.step()
        peer.zero_grad()
    assert torch.allclose(model.weight, other.weight, atol=1e-6)


def test_foils_are_other_peoples_lines_and_never_those_that_judge() -> None:
    def conversation(number: int, split: Any) -> Conversation:
        turns = (
            Message(role="user", content=f"What do you make of matter number {number}?"),
            Message(role="assistant", content=f"I fold the map of matter {number} twice over."),
        )
        return Conversation(id=f"c{number}", messages=turns, split=split)

    splits = ["train"] * 6 + ["validation"] * 4 + ["test"] * 4
    conversations = tuple(conversation(i, split) for i, split in enumerate(splits))
    others = tuple(f"Somebody else remarks on thing number {i}, at length." for i in range(30))
    dataset = Dataset(id="d", persona="p", version=1, name="d", conversations=conversations, others=others)
    pairs = foil_pairs(dataset, dataset.of("validation"))
    assert len(pairs) == 4
    for own, foil in pairs:
        assert own.messages[:-1] == foil.messages[:-1]
        assert foil.messages[-1].content in others
    nobody = dataset.model_copy(update={"others": ()})
    assert foil_pairs(nobody, nobody.of("validation")[:0]) == []


def test_foils_that_do_not_fit_are_left_out(home: Home, tiny_model: Path, persona_factory: Callable[..., Any]) -> None:
    """A reply that is cut would be scored on its beginning, and divided by all its bytes; one before which the shared
    beginning was cut would be read as if it stood behind it."""
    renderer = ChatRenderer(tiny_model)
    longest, almost = 200, "Weather"
    while len(renderer.text_ids(almost)) < longest - 10:
        almost += " and weather"
    others = (
        "Somebody else remarks on thing number one, at length, and twice.",
        "Somebody else has nothing to say of thing number two, or three.",
        almost,
        almost + almost,
    )
    rows = tuple(made_up_conversation(i, "train" if i < 8 else "validation") for i in range(12))
    watcher = Watcher()
    context = Context(
        reporter=watcher,
        plugins=None,
        persona=persona_factory(),
        dataset=Dataset(id="d", persona="tamsin", version=1, name="d", conversations=rows, others=others),
        base=STARTER,
        machine=CPU,
        seed=0,
        run_dir=home.root,
        system="You are Tamsin Quill, a retired cartographer who folds every answer.",
        renderer=renderer,
    )
    settings = FitSettings(keep="specificity", max_tokens=longest)
    rendered = context._both(context.dataset.of("train"), settings)
    prefix = shared_prefix([*rendered[0], *rendered[1]])
    assert len(prefix) > 12
    foils = context._material(settings, "train", rendered, SampleBudget()).foils
    assert len(foils.own) == len(foils.other) == 2
    assert "2 of 4 validation lines are not compared" in watcher.said[-1]
    said = [[renderer.decode([i for i, m in zip(f.ids, f.mask, strict=True) if m]) for f in foils.other]]
    said += [[renderer.decode([i for i, m in zip(f.ids, f.mask, strict=True) if m]) for f in foils.own]]
    assert sorted(said[0]) == sorted(others[:2])
    assert [foils.other_bytes, foils.own_bytes] == [sum(len(line.encode()) for line in lines) for lines in said]
    assert all(foil.ids[: len(prefix)] == prefix for foil in (*foils.own, *foils.other))
    context.dataset = context.dataset.model_copy(update={"others": others[2:]})
    assert context._material(settings, "train", rendered, SampleBudget()).foils == Foils()
    assert "by validation loss" in watcher.said[-1]


def test_the_benefit_of_more_layers_is_weighed_against_their_time() -> None:
    only_last = [(layer, 0.0) for layer in range(9)] + [(9, 5.0)]
    assert benefit_per_cost(only_last) == 1
    even = [(layer, 1.0) for layer in range(10)]
    assert benefit_per_cost(even) == 10  # each layer costs the same, and the fixed part is shared
    assert benefit_per_cost([(0, 1.0), (1, -1.0), (2, 1.0), (3, 1.0)], fixed=1.0) == 2
