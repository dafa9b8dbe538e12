"""Steering: nothing added is nothing changed, and each row of a batch has its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadModel
from persona_lab.home import Home
from persona_lab.inference.decoding import DecodingMemory, generate
from persona_lab.inference.fast_linear import PackedWeights
from persona_lab.inference.kv_cache import PrefixCache
from persona_lab.inference.loading import load_model
from persona_lab.inference.scoring import loglikelihood
from persona_lab.inference.steering import Shift, decoder_layers, standing, steered
from persona_lab.inference.steps import FastSteps, PlainSteps, Prompt, open_steps
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.types import Message, Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=12, repetition_penalty=1)
SYSTEM = Message(role="system", content="You are Tamsin Quill, a retired cartographer who folds every answer twice.")
QUESTIONS = ["Hi", "Why do you keep the sea in a drawer?", "Why?", "Is it lost, and why there?"]
PROMPTS = [[SYSTEM, Message(role="user", content=question)] for question in QUESTIONS]


def load(folder: Path, home: Home, full_precision: bool = True) -> tuple[Any, ChatRenderer]:
    info = registry.describe(str(folder), home)
    return load_model(info, worker_machine(home.root), full_precision=full_precision), ChatRenderer(folder)


def shift(model: Any, seed: int, size: float = 3.0) -> Shift:
    """Something random at two layers, large enough to change what is said."""
    generator = torch.Generator().manual_seed(seed)
    hidden = model.get_input_embeddings().weight.shape[1]
    return Shift({layer: size * torch.randn(hidden, generator=generator) for layer in (0, 1)})


def prompts(renderer: ChatRenderer, shifts: list[Shift | None]) -> list[Prompt]:
    return [
        Prompt(tuple(renderer.prompt_ids(p)), 4, shift=s, weights=s.key if s else "")
        for p, s in zip(PROMPTS, shifts, strict=False)
    ]


LAST = {
    "llama": ("model.layers", "mlp.down_proj"),
    "qwen3": ("model.layers", "mlp.down_proj"),
    "gpt2": ("transformer.h", "mlp.c_proj"),
    "gemma2": ("model.layers", "post_feedforward_layernorm"),  # behind the last matrix, before the stream
}
"""Where the layers are, and what of a layer writes into the stream last."""


class Plus(torch.nn.Module):
    """A module with something added to what it gives."""

    def __init__(self, module: torch.nn.Module, vector: torch.Tensor) -> None:
        super().__init__()
        self.module, self.vector = module, vector

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self.module(*arguments) + self.vector


@pytest.mark.parametrize("architecture", list(LAST))
def test_a_shift_is_a_bias_behind_the_layer(
    architecture: str, tiny_model_of: Callable[[str], Path], home: Home
) -> None:
    """The reference is another copy of the model with the vector as a bias in it, put there by hand, without hooks."""
    model, renderer = load(tiny_model_of(architecture), home)
    added = shift(model, 1)
    ids = torch.tensor([renderer.prompt_ids(PROMPTS[1])])
    biased, _ = load(tiny_model_of(architecture), home)
    layers, last = LAST[architecture]
    for number, layer in enumerate(biased.get_submodule(layers)):
        parent, _, name = last.rpartition(".")
        setattr(layer.get_submodule(parent), name, Plus(layer.get_submodule(last), added.layers[number]))
    with torch.no_grad():
        expected, plain = (one(input_ids=ids).logits[0, -1] for one in (biased, model))
        with open_steps(model, [Prompt(tuple(ids[0].tolist()), 2, shift=added)], renderer.pad_id) as steps:
            assert isinstance(steps, FastSteps)
            found = steps.start()[0]
        with steered(model, [added]):
            hooked = model(input_ids=ids).logits[0, -1]
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(hooked, expected, atol=1e-4)
    assert (found - plain).abs().max() > 0.05


@pytest.mark.parametrize("packed", [None, PackedWeights()])
def test_nothing_added_gives_the_very_same_logits(packed: Any, tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home, full_precision=packed is None)
    rows = prompts(renderer, [None] * 4)
    with torch.no_grad():
        with open_steps(model, rows, renderer.pad_id, packed) as steps:
            before = [steps.start(), steps.step([5, 6, 7, 8])]
        with steered(model, [shift(model, 1)]):
            loglikelihood(model, renderer, [(PROMPTS[0], "Yes.")])
        with open_steps(model, rows, renderer.pad_id, packed) as steps:
            after = [steps.start(), steps.step([5, 6, 7, 8])]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


def test_zeros_give_the_very_same_logits(tiny_model: Path, home: Home) -> None:
    """A row at 0 in a batch with a steered one: its logits are those of the unsteered batch, bit by bit."""
    model, renderer = load(tiny_model, home)
    with torch.no_grad():
        with open_steps(model, prompts(renderer, [None] * 4), renderer.pad_id) as steps:
            alone = [steps.start(), steps.step([5, 6, 7, 8])]
        with open_steps(model, prompts(renderer, [None, shift(model, 1), None, None]), renderer.pad_id) as steps:
            mixed = [steps.start(), steps.step([5, 6, 7, 8])]
    for a, b in zip(alone, mixed, strict=True):
        assert torch.equal(a[[0, 2, 3]], b[[0, 2, 3]])
        assert not torch.allclose(a[1], b[1], atol=0.05)


@pytest.mark.parametrize("full_precision", [True, False])
def test_the_quick_token_and_the_plain_loop_agree(full_precision: bool, tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home, full_precision)
    rows = prompts(renderer, [shift(model, 1), None, shift(model, 2), shift(model, 1)])
    with torch.no_grad():
        with steered(model, [row.shift for row in rows]) as shifts:
            plain = PlainSteps(model, rows, renderer.pad_id, shifts)
            expected = [plain.start(), plain.step([5, 6, 7, 8])]
            plain.keep([2, 0])
            expected.append(plain.step([9, 10]))
        with open_steps(model, rows, renderer.pad_id, None if full_precision else PackedWeights()) as steps:
            assert isinstance(steps, FastSteps)
            assert (steps.token is None) == full_precision
            found = [steps.start(), steps.step([5, 6, 7, 8])]
            steps.keep([2, 0])
            found.append(steps.step([9, 10]))
    for a, b in zip(expected, found, strict=True):
        apart = float((a - b).square().mean().sqrt() / a.std())
        assert apart < (1e-4 if full_precision else 0.1)


def test_rows_of_a_batch_do_not_influence_each_other(tiny_model: Path, home: Home) -> None:
    """Token for token what each says alone, in fp32, with rows that leave at different times and a cache between."""
    model, renderer = load(tiny_model, home)
    shifts = [shift(model, 1), None, shift(model, 2), shift(model, 1, -3.0)]
    sampling = [GREEDY.model_copy(update={"max_new_tokens": n}) for n in (12, 5, 9, 12)]
    memory = DecodingMemory(None, PrefixCache(), ["base"] * 4)
    alone = [
        generate(model, renderer, [p], s, shifts=[x])[0].text for p, s, x in zip(PROMPTS, sampling, shifts, strict=True)
    ]
    together = [reply.text for reply in generate(model, renderer, PROMPTS, sampling, shifts=shifts)]
    kept = [reply.text for reply in generate(model, renderer, PROMPTS, sampling, memory=memory, shifts=shifts)]
    again = [reply.text for reply in generate(model, renderer, PROMPTS, sampling, memory=memory, shifts=shifts)]
    assert alone == together == kept == again
    assert together[0] != generate(model, renderer, PROMPTS[:1], GREEDY)[0].text


def test_known_beginnings_are_not_shared_between_settings(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    memory = DecodingMemory(None, PrefixCache(), ["base"])
    texts = [
        generate(model, renderer, PROMPTS[1:2], GREEDY, memory=memory, shifts=[s])[0].text
        for s in (None, shift(model, 1), shift(model, 2))
    ]
    fresh = [
        generate(model, renderer, PROMPTS[1:2], GREEDY, shifts=[s])[0].text
        for s in (None, shift(model, 1), shift(model, 2))
    ]
    assert texts == fresh
    assert len(set(texts)) == 3


def test_a_standing_shift_holds_for_all_that_is_asked(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    added = shift(model, 3, 1.0)
    items = [(prompt, "The sea is in the drawer.") for prompt in PROMPTS]
    plain = [score.total for score in loglikelihood(model, renderer, items)]
    with steered(model, [added]):
        assert standing(model) is added
        pulled = [score.total for score in loglikelihood(model, renderer, items)]
        written = [reply.text for reply in generate(model, renderer, PROMPTS, GREEDY)]
        with steered(model, [None]):
            assert [score.total for score in loglikelihood(model, renderer, items)] == plain
        assert [score.total for score in loglikelihood(model, renderer, items)] == pulled
    assert standing(model) is None
    assert not any(layer._forward_hooks for layer in decoder_layers(model))
    assert written == [reply.text for reply in generate(model, renderer, PROMPTS, GREEDY, shifts=[added] * 4)]
    assert max(abs(a - b) for a, b in zip(plain, pulled, strict=True)) > 0.5
    assert [score.total for score in loglikelihood(model, renderer, items)] == plain


def test_shifts_add_up_and_are_told_apart() -> None:
    one, two = Shift({1: torch.ones(4)}), Shift({1: torch.ones(4), 3: torch.full((4,), 2.0)})
    both = one + two
    assert both.layers[1].tolist() == [2.0] * 4
    assert both.layers[3].tolist() == [2.0] * 4
    assert one.key == Shift({1: torch.ones(4)}).key != two.key


def test_a_shift_of_another_model_is_refused(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    for wrong in (Shift({0: torch.ones(3)}), Shift({7: torch.ones(64)})):
        with pytest.raises(BadModel, match="2 layers of 64"):
            generate(model, renderer, PROMPTS[:1], GREEDY, shifts=[wrong])
    assert not any(layer._forward_hooks for layer in decoder_layers(model))
