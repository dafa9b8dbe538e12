"""The fast training path must be the plain one, only faster: same loss, same gradients, on several architectures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.models.work import BatchShape, Kind, activation_bytes, shape_in
from persona_lab.testing import CPU
from persona_lab.training.batches import batches_of_epoch, collate, shared_prefix, sorted_batches
from persona_lab.training.lora import attach_lora, train_layers
from persona_lab.training.loss import head_loss
from persona_lab.training.lower import Lower, frozen_depth, lower_for
from persona_lab.training.memory import Recompute, free_memory
from persona_lab.training.packing import EVEN
from persona_lab.training.paths import LossPath, batch_loss, choose_path, prepared
from persona_lab.types import Conversation, Message, Rendered

SYSTEM = Message(role="system", content="You are Tamsin Quill, a retired cartographer who folds every answer.")
PLAIN = LossPath("plain")


def rendered(folder: Path, conversations: list[Conversation]) -> list[Rendered]:
    renderer = ChatRenderer(folder)
    return [renderer.render([SYSTEM, *conversation.messages]) for conversation in conversations]


def load(folder: Path, lora: bool) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not lora:
        return model
    torch.manual_seed(1)
    model = attach_lora(model.requires_grad_(False), rank=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first: the update would not be seen at all
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients(model: Any, examples: list[Rendered], path: LossPath) -> tuple[float, torch.Tensor]:
    prefix = shared_prefix(examples) if path.uses_prefix() else ()
    batch = collate(examples, len(prefix), 0, "cpu")
    model.zero_grad(set_to_none=True)
    model.eval()  # dropout (GPT-2's default) would make two passes differ
    with prepared(model, path):
        loss = batch_loss(model, batch, prefix, path) / batch.supervised
        loss.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return loss.item(), torch.cat(found)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "gpt2"])
def test_prefix_path_has_the_plain_paths_gradients(
    architecture: str, lora: bool, tiny_model_of: Callable[[str], Path], conversations_factory: Callable[..., Any]
) -> None:
    folder = tiny_model_of(architecture)
    examples = rendered(folder, conversations_factory(5))
    assert len(shared_prefix(examples)) > 12
    model = load(folder, lora)
    expected_loss, expected = gradients(model, examples, PLAIN)
    paths = [LossPath("packed", True, True), LossPath("packed", True), LossPath("prefix", True), LossPath("prefix")]
    for path in (*paths, LossPath("head", True), LossPath("head")):
        loss, got = gradients(model, examples, path)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert float((got - expected).norm() / expected.norm()) < 1e-4, path


def test_a_packed_row_has_one_of_few_lengths(tiny_model: Path, conversations_factory: Callable[..., Any]) -> None:
    examples = rendered(tiny_model, conversations_factory(9))
    prefix, model = shared_prefix(examples), load(tiny_model, lora=False)
    met: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: met.add(args[0].shape[:-1].numel()))
    lengths = set()
    with prepared(model, LossPath("packed", True)):
        for few in range(1, 10):
            batch = collate(examples[:few], len(prefix), 0, "cpu")
            lengths.add(len(prefix) + batch.tokens)
            batch_loss(model, batch, prefix, LossPath("packed", True)).backward()
    assert any(length % EVEN for length in lengths)
    assert met
    assert {rows % EVEN for rows in met} == {0}, "oneDNN keeps a program for every other number"


def test_choose_path_takes_the_fastest_and_leaves_the_attention_alone(
    tiny_model: Path, conversations_factory: Callable[..., Any]
) -> None:
    model = load(tiny_model, lora=True)
    before = model.get_base_model().config._attn_implementation
    said: list[str] = []
    path = choose_path(model, rendered(tiny_model, conversations_factory(5)), 0, "cpu", said.append)
    assert path == LossPath("packed", attention=True, kernels=True)
    assert not said
    assert model.get_base_model().config._attn_implementation == before


def test_on_cuda_long_conversations_are_not_packed_where_their_scores_would_fill_the_memory(
    tiny_model: Path, conversations_factory: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, said = load(tiny_model, lora=True), list[str]()
    monkeypatch.setattr("persona_lab.training.paths._loss_of", lambda *_: 1.0)  # there is no such device here
    monkeypatch.setattr("persona_lab.training.paths.packed_calls", itertools.count(step=9).__next__)
    short = rendered(tiny_model, conversations_factory(5))
    ids = (*shared_prefix(short), *[40] * 16_000)
    long = Rendered(ids=ids, mask=(False,) * (len(ids) - 9) + (True,) * 9)
    scores = 4 * len(ids) ** 2 * 4  # heads, pairs, bytes
    for free, device, found in ((9 * scores, "cuda", "prefix"), (11 * scores, "cuda", "packed"), (1, "cpu", "packed")):
        said.clear()
        path = choose_path(model, [*short, long], 0, device, said.append, free_bytes=free)
        assert (path.name, len(said)) == (found, int(found == "prefix"))


def test_choose_path_falls_back_and_says_why(
    tiny_model_of: Callable[[str], Path], conversations_factory: Callable[..., Any]
) -> None:
    folder = tiny_model_of("gemma2")  # it caps its logits after the head, which the head-only paths do not
    said: list[str] = []
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, final_logit_softcapping=1.0)
    path = choose_path(model, rendered(folder, conversations_factory(5)), 0, "cpu", said.append)
    assert path == PLAIN
    assert said
    assert "its loss is" in said[0]


def test_a_model_whose_tokens_meet_outside_the_attention_interface_is_not_packed(
    tiny_model: Path, conversations_factory: Callable[..., Any]
) -> None:
    """BLOOM attends by itself: in one row its examples would see each other, which a mean loss hardly shows."""
    from transformers import BloomConfig, BloomForCausalLM

    examples = rendered(tiny_model, conversations_factory(5))
    vocabulary = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    model = BloomForCausalLM(BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=4))
    said: list[str] = []
    path = choose_path(model, examples, 0, "cpu", said.append, True)
    assert path.name != "packed"
    model.to(torch.bfloat16)
    said.clear()
    assert choose_path(model, examples, 0, "cpu", said.append).name != "packed"
    assert "0 of its 2 layers attend through transformers' attention interface" in " ".join(said)


def test_memory_that_torch_keeps_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (3 << 30, 80 << 30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 50 << 30)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda: 10 << 30)
    assert free_memory(CPU.model_copy(update={"device": "cuda"})) == 43 << 30


def test_long_conversations_need_more_than_their_tokens(tiny_model: Path) -> None:
    """As packed attention keeps: each head's weights of all pairs."""
    config = AutoConfig.from_pretrained(tiny_model)
    shape, kind = shape_in(config.to_dict(), 0), Kind(0, False)
    short, long = (activation_bytes(BatchShape(1, width, 0, 0), shape, kind, 4) for width in (100, 1000))
    assert long > 10 * short
    pairs = 1000**2 * config.num_attention_heads * config.num_hidden_layers * 4
    assert long - activation_bytes(BatchShape(1, 1000, 0, 0, scores=False), shape, kind, 4) == pairs


@pytest.mark.parametrize("path", [LossPath("packed"), LossPath("prefix", True), LossPath("head")], ids=str)
def test_a_batch_is_as_large_as_what_its_path_computes(
    path: LossPath, tiny_model: Path, conversations_factory: Callable[..., Any]
) -> None:
    examples = rendered(tiny_model, conversations_factory(5))
    prefix = len(shared_prefix(examples)) if path.uses_prefix() else 0
    size = path.shape(collate(examples, prefix, 0, "cpu"), prefix)
    last = [max(i for i, trained in enumerate(example.mask) if trained) for example in examples]
    assert size.supervised == sum(sum(example.mask) for example in examples)
    packed = sum(last) - len(examples) * prefix
    assert size.tokens == prefix + (packed if path.name == "packed" else len(examples) * (max(last) - prefix))
    assert size.scores is (path.name != "head")


def test_head_loss_equals_cross_entropy_for_any_head() -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(600, 8, requires_grad=True), torch.randint(0, 50, (600,))
    for bias in (False, True):
        head = torch.nn.Linear(8, 50, bias=bias)
        expected = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
        wanted = torch.autograd.grad(expected, [hidden, head.weight])
        got = torch.autograd.grad(head_loss(head, hidden, targets), [hidden, head.weight])
        assert head_loss(head, hidden, targets).item() == pytest.approx(expected.item(), rel=1e-5)
        for a, b in zip(got, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_collate_aligns_targets_with_the_states_that_predict_them() -> None:
    long = Rendered(ids=(1, 2, 3, 4, 5, 6), mask=(False, False, False, True, False, True))
    short = Rendered(ids=(1, 2, 7, 8), mask=(False, False, False, True))
    batch = collate([long, short], 1, 99, "cpu")
    assert batch.ids.tolist() == [[2, 3, 4, 5], [2, 7, 99, 99]]  # what follows the last target's predictor is left out
    assert batch.tokens == 6
    assert batch.targets.tolist() == [4, 6, 8]
    assert [int(batch.ids[r, c]) for r, c in zip(batch.rows, batch.columns, strict=True)] == [3, 5, 7]


def test_shared_prefix_never_holds_a_state_that_predicts_a_trained_token() -> None:
    ids = tuple(range(20))
    one = Rendered(ids=ids, mask=tuple(i >= 15 for i in range(20)))
    assert shared_prefix([one, one]) == ids[:14]
    assert shared_prefix([one, one.model_copy(update={"ids": (9, *ids[1:])})]) == ()


def test_batches_hold_every_example_once_and_depend_on_seed_and_epoch() -> None:
    lengths = [5 + (i * 37) % 60 for i in range(23)]
    plan = batches_of_epoch(lengths, 4, seed=1, epoch=0)
    assert sorted(i for batch in plan for i in batch) == list(range(23))
    assert plan == batches_of_epoch(lengths, 4, seed=1, epoch=0)
    assert plan != batches_of_epoch(lengths, 4, seed=1, epoch=1) != batches_of_epoch(lengths, 4, seed=2, epoch=1)
    padding = sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in plan)
    assert padding < 0.15 * sum(lengths)
    assert sorted(i for batch in sorted_batches(lengths, 8) for i in batch) == list(range(23))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt2"])
def test_kept_states_of_the_frozen_layers_change_nothing(
    architecture: str, tiny_model_of: Callable[[str], Path], conversations_factory: Callable[..., Any]
) -> None:
    folder = tiny_model_of(architecture)
    examples = rendered(folder, conversations_factory(5))
    model = load(folder, lora=False)
    depth = model.config.num_hidden_layers - 1
    train_layers(model, [depth])
    assert frozen_depth(model) == depth
    model.eval()
    path, prefix = LossPath("packed", True, True), shared_prefix(examples)
    batch = collate(examples, len(prefix), 0, "cpu")
    expected_loss, expected = gradients(model, examples, path)
    model.zero_grad()
    with prepared(model, path):
        lower = Lower(model, depth, prefix, 0, "cpu")
        states = lower.states(examples)
        with lower.upper_only():
            loss = batch_loss(model, batch, prefix, path, states) / batch.supervised
    if architecture == "gpt2":  # it adds its positions to whatever stands in for the embeddings: noticed, and not used
        assert loss.item() != pytest.approx(expected_loss, rel=1e-3)
        return
    loss.backward()
    got = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert float((got - expected).norm() / expected.norm()) < 1e-4
    assert len(model.get_decoder().layers) == depth + 1  # all layers are back


def test_layers_of_other_kinds_in_another_order_are_not_left_out() -> None:
    """Gemma3 and others look up by a layer's place in the list whether it sees all or a window."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    examples = [Rendered(ids=tuple(range(1, 20)), mask=(False,) * 10 + (True,) * 9)]
    for first, alike in ((4, False), (6, True)):  # every sixth layer sees everything
        train_layers(model, range(first, 8))
        lower, why = lower_for(model, examples, (), 0, "cpu", lambda _: (1.0, 1.0))
        assert (lower is not None) == alike
        assert alike or "other kinds" in why


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_recomputed_activations_give_the_same_gradients(
    lora: bool, tiny_model: Path, conversations_factory: Callable[..., Any]
) -> None:
    examples = rendered(tiny_model, conversations_factory(5))
    model = load(tiny_model, lora)
    path, prefix = LossPath("packed", True, True), shared_prefix(examples)
    expected_loss, expected = gradients(model, examples, path)
    model.zero_grad(set_to_none=True)
    batch = collate(examples, len(prefix), 0, "cpu")
    recompute = Recompute(model, "auto")
    said: list[str] = []
    model.train()  # layers are recomputed in training mode only; this model drops nothing
    with prepared(model, path), recompute:
        recompute.decide(BatchShape(4, 25, 0, 40), 1.0, free_bytes=1 << 50, say=said.append)
        assert not recompute.active
        recompute.decide(BatchShape(4, 25, 0, 40), 1.0, free_bytes=1000, say=said.append)
        assert recompute.active
        assert "recomputed" in said[0]
        loss = batch_loss(model, batch, prefix, path) / batch.supervised
        loss.backward()
    got = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert float((got - expected).norm() / expected.norm()) < 1e-4
