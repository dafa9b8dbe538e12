"""The fast loop says what transformers and peft say, whatever is known already and whoever else is in the batch."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput
from persona_lab.home import Home
from persona_lab.inference.decoding import DecodingMemory, generate
from persona_lab.inference.fast_linear import (
    BASE,
    PackedWeights,
    RowAdapters,
    even_rows,
    evenly,
    fast_linears,
    worth_packing,
)
from persona_lab.inference.kv_cache import PrefixCache
from persona_lab.inference.loading import load_model
from persona_lab.inference.steps import FastSteps, PlainSteps, Prompt, open_steps
from persona_lab.inference.token_step import token_step
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.types import Dataset, Message, Persona, Sampling

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "gpt2"]
GREEDY = Sampling(temperature=0, max_new_tokens=12, repetition_penalty=1)
SYSTEM = Message(role="system", content="You are Tamsin Quill, a retired cartographer who folds every answer twice.")
RANKS = {"one": 4, "two": 7, "three": 2}


def load(folder: Path, home: Home) -> tuple[Any, ChatRenderer]:
    info = registry.describe(str(folder), home)
    return load_model(info, worker_machine(home.root), full_precision=True), ChatRenderer(folder)


def with_adapters(model: Any, **options: Any) -> Any:
    """Adapters of unequal ranks, one of them rank-stabilised, large enough to change what is said."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    options |= {"fan_in_fan_out": True} if model.config.model_type == "gpt2" else {}
    made = None
    for name, rank in RANKS.items():
        config = LoraConfig(
            r=rank, target_modules="all-linear", init_lora_weights=False, use_rslora=name == "two", **options
        )
        if made is None:
            made = get_peft_model(model, config, adapter_name=name)
        else:
            made.add_adapter(name, config)
    assert made is not None
    return made.eval().requires_grad_(False)


def user(text: str) -> Message:
    return Message(role="user", content=text)


QUESTIONS = ["Hi", "Why do you keep the sea in a drawer?", "Why?", "Is it lost, and why there?"]
PROMPTS = [[SYSTEM, user(question)] for question in QUESTIONS]


def theirs(model: Any, renderer: ChatRenderer, prompt: list[Message], tokens: int = 12) -> str:
    """transformers' own greedy reply."""
    ids = torch.tensor([renderer.prompt_ids(prompt)], device=model.device)
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=list(renderer.eos_ids),
        )
    reply = [t for t in out[0, ids.shape[1] :].tolist() if t not in renderer.eos_ids]
    return renderer.decode(reply).replace("\ufffd", "")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_the_fast_way_and_says_what_transformers_says(
    architecture: str, tiny_model_of: Callable[[str], Path], home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    model, renderer = load(tiny_model_of(architecture), home)
    expected = [theirs(model, renderer, prompt) for prompt in PROMPTS]
    # eight times each: the shared beginning is then worth a pass of its own
    replies = [r.text for r in generate(model, renderer, PROMPTS * 8, GREEDY)]
    assert replies == expected * 8
    assert "plain loop" not in caplog.text


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3_text"])
def test_a_reply_past_the_sliding_window_is_transformers_own(
    architecture: str,
    tiny_model_of: Callable[[str], Path],
    home: Home,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "short-window"
    shutil.copytree(tiny_model_of(architecture), folder)
    config = json.loads((folder / "config.json").read_text())
    longest = max(len(ChatRenderer(folder).prompt_ids(prompt)) for prompt in PROMPTS)
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": longest + 6}))
    model, renderer = load(folder, home)
    assert [r.text for r in generate(model, renderer, PROMPTS, GREEDY)] == [theirs(model, renderer, p) for p in PROMPTS]
    assert "sliding window" in caplog.text
    caplog.clear()
    few, kept = GREEDY.model_copy(update={"max_new_tokens": 5}), PrefixCache()
    expected = theirs(model, renderer, PROMPTS[1], 5)
    memory = DecodingMemory(None, kept, ["a"])
    assert generate(model, renderer, PROMPTS[1:2], few, memory=memory)[0].text == expected
    assert "plain loop" not in caplog.text
    memory = DecodingMemory(None, kept, ["a", "b"])  # what is known of one row stands beside all of the other
    assert [r.text for r in generate(model, renderer, [PROMPTS[1]] * 2, few, memory=memory)] == [expected] * 2
    assert "sliding window" in caplog.text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_different_adapters_say_what_peft_says_of_each_alone(
    architecture: str, tiny_model_of: Callable[[str], Path], home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    model, renderer = load(tiny_model_of(architecture), home)
    expected = {(BASE, i): theirs(model, renderer, prompt) for i, prompt in enumerate(PROMPTS)}
    tuned = with_adapters(model)
    for name in RANKS:
        tuned.set_adapter(name)
        expected |= {(name, i): theirs(tuned, renderer, prompt) for i, prompt in enumerate(PROMPTS)}
    rows = list(expected)
    replies = generate(tuned, renderer, [PROMPTS[i] for _, i in rows], GREEDY, adapter_names=[name for name, _ in rows])
    assert {row: reply.text for row, reply in zip(rows, replies, strict=True)} == expected
    assert len(set(expected.values())) > len(RANKS)
    assert "plain loop" not in caplog.text
    assert not [m for m in tuned.modules() if "forward" in vars(m)]


def test_without_names_rows_run_on_what_is_active_also_on_several_at_once(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    plain = theirs(model, renderer, PROMPTS[1])
    tuned = with_adapters(model)
    tuned.base_model.set_adapter(["one", "three"])
    both = theirs(tuned, renderer, PROMPTS[1])
    assert generate(tuned, renderer, PROMPTS, GREEDY)[1].text == both != plain
    with tuned.disable_adapter():
        assert generate(tuned, renderer, PROMPTS, GREEDY)[1].text == plain


@pytest.mark.parametrize("names", [None, [BASE, "one", "two", "three"]])
def test_what_is_known_already_changes_no_reply(names: list[str] | None, tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    model = with_adapters(model) if names else model
    prefixes = PrefixCache()
    tokens = TokensRun(model.get_base_model() if names else model)

    def say(prompts: list[list[Message]], kept: bool) -> tuple[list[str], int]:
        memory = DecodingMemory(None, prefixes, names or [""] * len(prompts)) if kept else None
        before = tokens.count
        sampling = [Sampling(seed=3, max_new_tokens=9 + i, temperature=1) for i in range(len(prompts))]
        replies = generate(model, renderer, prompts, sampling, adapter_names=names, memory=memory)
        return [reply.text for reply in replies], tokens.count - before

    say(PROMPTS, False)  # the check of the fast way runs tokens too
    fresh, cost = say(PROMPTS, False)
    first, _ = say(PROMPTS, True)
    again, little = say(PROMPTS, True)
    assert fresh == first == again
    assert little < cost / 3
    following = [
        [*prompt, Message(role="assistant", content=reply or "."), user("And then?")]
        for prompt, reply in zip(PROMPTS, first, strict=True)
    ]
    whole, cost = say(following, False)
    continued, little = say(following, True)
    assert whole == continued
    assert little < cost


class TokensRun:
    """Counts the tokens that a model is given, with padding."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, arguments: Any, named: Any) -> None:
        self.count += named["input_ids"].numel()


def test_a_prefix_cache_is_bounded_and_keeps_weights_apart() -> None:
    states = [(torch.zeros(2, 20, 4), torch.zeros(2, 20, 4))]
    logits = torch.zeros(10)
    cache = PrefixCache(limit=4 * 2 * 1280)
    cache.add("a", range(20), states, 15, logits)
    assert cache.find("b", range(20)) is None
    known = cache.find("a", range(15))
    assert known is not None
    assert known.length == 15
    assert known.logits is logits
    partly = cache.find("a", [*range(12), 99, 98])
    assert partly is not None
    assert (partly.length, partly.logits) == (12, None)
    cut = cache.find("a", range(18))  # what comes after 18 tokens was not kept, so the last one is run
    assert cut is not None
    assert (cut.length, cut.logits) == (17, None)
    cache.add("a", range(30), states, 25, logits)  # goes on from the first: takes its place
    again = cache.find("a", range(15))
    assert again is not None
    assert again.logits is logits
    for number in range(40):
        cache.add("a", range(100 * number, 100 * number + 20), states, 15, logits)
        assert cache.bytes() <= cache.limit
    assert cache.find("a", range(3900, 3920)) is not None
    assert cache.find("b", range(20)) is None


def test_an_adapter_that_is_not_finite_does_not_reach_the_other_rows(
    tiny_model: Path, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    model, renderer = load(tiny_model, home)
    tuned = with_adapters(model)
    names = ["one", "two"]
    expected = generate(tuned, renderer, PROMPTS[:2], GREEDY, adapter_names=names)[0].text
    for module in tuned.modules():
        if hasattr(module, "lora_B"):
            module.lora_B["two"].weight.fill_(float("inf"))
    assert generate(tuned, renderer, PROMPTS[:2], GREEDY, adapter_names=names)[0].text == expected
    assert "not finite" in caplog.text


def test_an_adapter_that_is_not_finite_does_not_reach_the_base_beside_it_or_later(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    tuned = with_adapters(model)
    rows, prefixes = [PROMPTS[0], PROMPTS[0]], PrefixCache()

    def base(beside: str) -> str:
        memory = DecodingMemory(None, prefixes, ["base", beside])
        return generate(tuned, renderer, rows, GREEDY, adapter_names=[BASE, beside], memory=memory)[0].text

    for module in tuned.modules():
        if hasattr(module, "lora_B"):
            module.lora_B["two"].weight.fill_(float("inf"))
    with tuned.disable_adapter():
        expected = generate(model, renderer, rows[:1], GREEDY)[0].text
    assert base("two") == expected  # first of all, so that nothing is known of the model yet
    assert base("one") == expected
    assert base("two") == expected
    memory = DecodingMemory(None, prefixes, ["base"])
    assert generate(tuned, renderer, rows[:1], GREEDY, adapter_names=[BASE], memory=memory)[0].text == expected


def test_one_broken_adapter_does_not_send_the_others_to_the_plain_loop(
    tiny_model: Path, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    model, renderer = load(tiny_model, home)
    tuned = with_adapters(model)
    for module in tuned.modules():
        if hasattr(module, "lora_B"):
            module.lora_B["two"].weight.fill_(float("nan"))
    generate(tuned, renderer, PROMPTS[:2], GREEDY, adapter_names=["one", "two"])
    assert "plain loop" in caplog.text
    caplog.clear()
    generate(tuned, renderer, PROMPTS[:2], GREEDY, adapter_names=["one", "three"])
    assert "plain loop" not in caplog.text


def test_what_cannot_be_mixed_is_left_to_the_plain_loop_with_a_reason(
    tiny_model: Path, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    model, renderer = load(tiny_model, home)
    tuned = with_adapters(model, use_dora=True)
    tuned.set_adapter("one")
    assert generate(tuned, renderer, PROMPTS, GREEDY)[1].text == theirs(tuned, renderer, PROMPTS[1])
    assert "more than plain LoRA" in caplog.text
    memory = DecodingMemory(PackedWeights("int8"), PrefixCache(), [""])
    with pytest.raises(BadInput, match="int8"):
        generate(tuned, renderer, PROMPTS[:1], GREEDY, memory=memory)


def test_a_fast_way_that_is_wrong_is_found_out(
    tiny_model: Path, home: Home, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, renderer = load(tiny_model, home)
    expected = theirs(model, renderer, PROMPTS[1])
    right = FastSteps._forward
    monkeypatch.setattr(FastSteps, "_forward", lambda self, ids, positions: right(self, ids.roll(1, 0), positions))
    assert generate(model, renderer, PROMPTS, GREEDY)[1].text == expected
    assert "standard deviations from the model's own" in caplog.text


def test_a_row_leaves_and_the_others_go_on_as_alone(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    tuned = with_adapters(model)
    sampling = [Sampling(seed=1, temperature=1, max_new_tokens=n) for n in (3, 14, 6, 11)]
    names = ["one", BASE, "two", "three"]
    together = generate(tuned, renderer, PROMPTS, sampling, adapter_names=names)
    for prompt, drawn, name, reply in zip(PROMPTS, sampling, names, together, strict=True):
        [alone] = generate(tuned, renderer, [prompt], drawn, adapter_names=[name])
        assert (alone.text, alone.tokens) == (reply.text, reply.tokens)


def test_a_cancelled_reply_is_kept_as_far_as_it_went(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    prefixes = PrefixCache()
    memory = DecodingMemory(None, prefixes, ["", ""])
    asked = itertools.count()
    long = Sampling(max_new_tokens=40, temperature=1)
    cut = generate(model, renderer, PROMPTS[:2], long, should_stop=lambda: next(asked) >= 4, memory=memory)
    fresh = generate(model, renderer, PROMPTS[:2], long)
    assert [r.text for r in generate(model, renderer, PROMPTS[:2], long, memory=memory)] == [r.text for r in fresh]
    assert all(f.text.startswith(c.text) and not c.finished for c, f in zip(cut, fresh, strict=True))
    assert generate(model, renderer, PROMPTS[:2], long, should_stop=lambda: True, memory=memory)[0].tokens == 0


@pytest.mark.parametrize("weights", ["native", "int8"])
def test_packed_weights_multiply_as_the_layers_do(weights: Any, tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    assert not worth_packing(model)
    model = model.bfloat16()
    assert worth_packing(model)
    ids = tuple(renderer.prompt_ids(PROMPTS[1]))
    rows = [Prompt(ids, 4)] * 3
    with torch.no_grad():
        expected = PlainSteps(model, rows, 0).start()
        with open_steps(model, rows, 0, PackedWeights(weights)) as fast:
            assert isinstance(fast, FastSteps)
            got = fast.start()
    apart = float((got - expected).square().mean().sqrt() / expected.std())
    assert apart < (0.02 if weights == "native" else 0.1)
    assert apart > 0 or weights == "native"
    with fast_linears(model, PackedWeights(weights), RowAdapters([frozenset()])):
        assert [m for m in model.modules() if "forward" in vars(m)]
    assert not [m for m in model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_layers_that_read_the_same_state_are_one_product_with_every_rows_adapters(
    architecture: str, tiny_model_of: Callable[[str], Path], home: Home
) -> None:
    folder = tiny_model_of(architecture)
    model, renderer = load(folder, home)
    model = with_adapters(model).to(torch.bfloat16)
    ids = tuple(renderer.prompt_ids(PROMPTS[1]))
    names = [*RANKS, BASE]
    rows = RowAdapters([frozenset() if name == BASE else frozenset([name]) for name in names])
    tokens = torch.tensor([ids] * len(names))
    inner = model.get_base_model()
    with torch.no_grad():
        with fast_linears(model, None, rows):
            apart = inner(tokens).logits.float()
        with fast_linears(model, PackedWeights(), rows):
            attention = next(m for m in model.modules() if hasattr(m, "q_proj"))
            assert attention.q_proj.forward.__qualname__.startswith("_as_one")
            together = inner(tokens).logits.float()
    for row in range(len(names)):
        error = (together[row] - apart[row]).square().mean().sqrt() / apart[row].std()
        assert error < 0.05, names[row]
    between = (together[0] - together[-1]).square().mean().sqrt() / together[0].std()
    assert between > 0.2  # the adapters matter


def test_joined_adapters_are_kept_until_one_of_them_changes(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    model = with_adapters(model).to(torch.bfloat16)
    inner, packed = model.get_base_model(), PackedWeights()
    tokens = torch.tensor([renderer.prompt_ids(PROMPTS[1])] * 2)
    rows = RowAdapters([frozenset({"one"}), frozenset({"two"})])

    def said(weights: PackedWeights) -> torch.Tensor:
        with torch.no_grad(), fast_linears(model, weights, RowAdapters(rows.rows)):
            return inner(tokens).logits.float()

    def kept() -> list[Any]:
        return [update for _, update in packed._updates.values()]

    first = said(packed)
    before = kept()
    assert before
    assert torch.equal(said(packed), first)
    assert all(a is b for a, b in zip(kept(), before, strict=True))

    layer = next(m for m in model.modules() if hasattr(m, "lora_B"))
    with torch.no_grad():
        layer.lora_B["two"].weight.mul_(3)
    assert torch.equal(said(packed), said(PackedWeights()))
    assert not torch.equal(said(packed)[1], first[1])
    layer.scaling["one"] *= 2
    assert torch.equal(said(packed), said(PackedWeights()))

    layer.lora_B["one"].weight.requires_grad_(True)  # as in training
    said(packed)
    layer.lora_B["one"].weight.data.mul_(2)  # counts up no version
    assert torch.equal(said(packed), said(PackedWeights()))
    layer.lora_B["one"].weight.requires_grad_(False)

    model.delete_adapter("two")  # another of the same name, perhaps at the same place in memory
    from peft import LoraConfig

    model.add_adapter("two", LoraConfig(r=RANKS["two"], target_modules="all-linear", init_lora_weights=False))
    model.to(torch.bfloat16).eval().requires_grad_(False)
    assert torch.equal(said(packed), said(PackedWeights()))


def test_adapters_on_a_4_bit_base_are_mixed_too(tiny_model: Path, home: Home, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    info = registry.describe(str(tiny_model), home)
    machine = worker_machine(home.root).model_copy(update={"bf16": False})
    tuned = with_adapters(load_model(info, machine, quantization="nf4"))
    replies = generate(tuned, ChatRenderer(tiny_model), PROMPTS[:3], GREEDY, adapter_names=list(RANKS))
    assert len({reply.text for reply in replies}) == len(RANKS)
    # 4-bit products round by the shape of the batch, so the texts need not be peft's; the check compared the logits
    assert "plain loop" not in caplog.text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_token_in_few_operations_gives_the_models_own_logits(
    architecture: str, tiny_model_of: Callable[[str], Path], home: Home
) -> None:
    model, renderer = load(tiny_model_of(architecture), home)
    tuned = with_adapters(model)
    inner = tuned.get_base_model()
    names = [BASE, *RANKS]
    rows = [Prompt(tuple(renderer.prompt_ids(PROMPTS[i])), 5, name) for i, name in enumerate(names)]
    adapters = RowAdapters([frozenset() if name == BASE else frozenset([name]) for name in names])
    with torch.no_grad(), fast_linears(inner, None, adapters) as joint:
        step = token_step(inner, joint)
        assert (step is not None) == (architecture in ("llama", "qwen2", "qwen3", "mistral"))
        if step is None:
            return
        own, fast = (FastSteps(inner, rows, renderer.pad_id, adapters, None, token) for token in (None, step))
        assert torch.equal(own.start(), fast.start())
        for tokens in ([5, 6, 7, 8], [9, 9, 3, 4]):
            expected, got = own.step(tokens), fast.step(tokens)
            assert torch.allclose(got, expected, atol=1e-5, rtol=1e-4)
        whole = adapters.rows
        own.keep([1, 3])
        expected = own.step([2, 1])
        adapters.set(whole)
        fast.keep([1, 3])
        assert torch.allclose(fast.step([2, 1]), expected, atol=1e-5, rtol=1e-4)


def test_weights_are_packed_once_and_again_when_they_change(
    tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona_lab.inference import decoding

    made: list[PackedWeights] = []

    class Counted(PackedWeights):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(decoding, "PackedWeights", Counted)
    model, renderer = load(tiny_model, home)
    model = model.bfloat16().requires_grad_(False)
    long = Sampling(temperature=0, max_new_tokens=24, repetition_penalty=1)
    first = [generate(model, renderer, PROMPTS[:1], long)[0].text for _ in range(2)]
    assert (len(made), first[0]) == (1, first[1])
    with torch.no_grad():
        model.lm_head.weight.neg_()
    changed = generate(model, renderer, PROMPTS[:1], long)[0].text
    assert len(made) == 2
    assert changed != first[0]
    model.lm_head.weight.data.neg_()  # as peft merges: counts up no version
    assert generate(model, renderer, PROMPTS[:1], long)[0].text == first[0]
    assert len(made) == 3
    decoding.forget_packed(model)
    assert generate(model, renderer, PROMPTS[:1], long)[0].text == first[0]
    assert len(made) == 4
    model.requires_grad_(True)
    for expected in (5, 6):  # of weights that are being trained nothing is kept
        generate(model, renderer, PROMPTS[:1], long)
        assert len(made) == expected


def test_sample_replies_of_a_training_leave_no_packed_weights_behind(
    tiny_model: Path, home: Home, persona_factory: Callable[..., Persona], conversations_factory: Callable[..., Any]
) -> None:
    """A second copy of the weights would lie beside the activations of every step to come."""
    from persona_lab.inference import decoding
    from persona_lab.training.context import SAMPLE_TOKENS, Context

    model, renderer = load(tiny_model, home)
    model = model.bfloat16().requires_grad_(False)
    opening = [Message(role="user", content="Who are you?")]
    generate(model, renderer, [opening], Sampling(max_new_tokens=SAMPLE_TOKENS))
    assert model in decoding._packed
    said: list[Any] = []
    context = Context(
        reporter=SimpleNamespace(emit=said.append),
        plugins=None,
        persona=persona_factory(),
        dataset=Dataset(
            id="d", version=1, name="d", persona="tamsin", conversations=tuple(conversations_factory(4, "validation"))
        ),
        base=registry.describe(str(tiny_model), home),
        machine=worker_machine(home.root),
        seed=0,
        run_dir=home.root,
        system="You are Tamsin.",
        renderer=renderer,
    )
    context._write_samples(model, 1, "train", 2)
    assert len(said) == 2
    assert model not in decoding._packed


def test_prompts_of_all_lengths_are_multiplied_in_few_shapes() -> None:
    met: set[int] = set()
    weight = torch.randn(6, 4)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        met.add(x.shape[0])
        return functional.linear(x, weight)

    for rows in range(1, 601):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(evenly(multiply)(x), functional.linear(x, weight))
        assert rows <= even_rows(rows) <= rows + max(7, rows / 4)
    assert met == {even_rows(rows) for rows in range(1, 601)}
    assert len(met) < 40
    batch = torch.randn(3, 5, 4)
    torch.testing.assert_close(evenly(multiply)(batch), functional.linear(batch, weight))
