"""Scoring against a plain computation, and decoding: padding, seeds, streaming, stopping. Tiny random models, fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput
from persona_lab.home import Home
from persona_lab.inference.decoding import generate
from persona_lab.inference.loading import load_model
from persona_lab.inference.sampling import RowSampler
from persona_lab.inference.scoring import loglikelihood
from persona_lab.inference.text_stream import TextStream
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.types import Message, Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=12, repetition_penalty=1)
SYSTEM = Message(role="system", content="You are Tamsin Quill, a retired cartographer who folds every answer twice.")


def load(folder: Path, home: Home) -> tuple[Any, ChatRenderer]:
    info = registry.describe(str(folder), home)
    return load_model(info, worker_machine(home.root), full_precision=True), ChatRenderer(folder)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def plain_loglikelihood(model: Any, renderer: ChatRenderer, messages: list[Message], reply: str) -> tuple[float, int]:
    """One item, the whole sequence, all logits: the definition."""
    prompt = renderer.prompt_ids(messages)
    rendered = renderer.render([*messages, Message(role="assistant", content=reply)])
    end = max(i for i, trained in enumerate(rendered.mask) if trained)
    assert rendered.ids[end] in renderer.eos_ids
    with torch.no_grad():
        ids = torch.tensor([rendered.ids], device=model.device)
        log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(log_p[i - 1, rendered.ids[i]]) for i in range(len(prompt), end)), end - len(prompt)


ITEMS = [
    ([SYSTEM, user("Are you lost?")], "Never. The map is merely late."),
    ([SYSTEM, user("Why?")], "Because."),
    ([SYSTEM, user("Hello"), Message(role="assistant", content="Hm."), user("Where is north?")], "In the drawer, é☕!"),
    ([SYSTEM, user("Say something long about soup and clocks.")], "The soup counts slowly: 1, 2, 3, 5, 8, 13."),
    ([user("No system prompt here.")], "Then I am nobody in particular."),
    ([Message(role="system", content="You are a kettle."), user("Are you hot?")], "Only about the weather."),
]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [4096, 90])
def test_loglikelihood_equals_the_plain_computation(
    architecture: str, batch_tokens: int, tiny_model_of: Callable[[str], Path], home: Home
) -> None:
    model, renderer = load(tiny_model_of(architecture), home)
    for (messages, reply), found in zip(ITEMS, loglikelihood(model, renderer, ITEMS, batch_tokens), strict=True):
        total, tokens = plain_loglikelihood(model, renderer, messages, reply)
        assert found.total == pytest.approx(total, abs=1e-3, rel=1e-5)
        assert found.tokens == tokens
        assert found.bytes == len(reply.encode())


def test_loglikelihood_in_bf16_is_near_and_leaves_the_model_alone(tiny_model: Path, home: Home) -> None:
    exact, renderer = load(tiny_model, home)
    half, _ = load(tiny_model, home)
    half = half.bfloat16()
    before = [m for m in half.modules() if m._forward_hooks or m._forward_pre_hooks]
    for a, b in zip(loglikelihood(exact, renderer, ITEMS), loglikelihood(half, renderer, ITEMS), strict=True):
        assert b.total == pytest.approx(a.total, rel=0.03)
    assert [m for m in half.modules() if m._forward_hooks or m._forward_pre_hooks] == before


def test_loglikelihood_of_nothing_is_nothing(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    assert loglikelihood(model, renderer, []) == []
    [blank] = loglikelihood(model, renderer, [([user("Hello")], " ")])
    assert (blank.total, blank.tokens, blank.bytes) == (0.0, 0, 1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma2"])
def test_greedy_equals_transformers_alone_and_in_a_padded_batch(
    architecture: str, tiny_model_of: Callable[[str], Path], home: Home
) -> None:
    model, renderer = load(tiny_model_of(architecture), home)
    prompts = [[user("Hi")], [SYSTEM, user("Why do you keep the sea in a drawer?")], [SYSTEM, user("Why?")]]
    together = generate(model, renderer, prompts, GREEDY)
    for prompt, reply in zip(prompts, together, strict=True):
        ids = torch.tensor([renderer.prompt_ids(prompt)], device=model.device)
        with torch.no_grad():
            theirs = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=12,
                eos_token_id=list(renderer.eos_ids),
            )
        expected = renderer.decode([t for t in theirs[0, ids.shape[1] :].tolist() if t not in renderer.eos_ids])
        assert reply.text == expected.replace("\ufffd", "")
        assert 0 < reply.first_token_seconds <= reply.seconds
        assert generate(model, renderer, [prompt], GREEDY)[0].text == reply.text


def test_a_rows_sample_does_not_depend_on_the_batch(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    sampling = [Sampling(seed=seed, max_new_tokens=5 + seed, temperature=1) for seed in range(4)]
    prompts = [[SYSTEM, user(f"Question {i}" + " and so on" * i)] for i in range(4)]
    together = generate(model, renderer, prompts, sampling)
    alone = [generate(model, renderer, [p], s)[0] for p, s in zip(prompts, sampling, strict=True)]
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    again = generate(model, renderer, prompts[:1], Sampling(seed=99, max_new_tokens=12, temperature=1))
    assert again[0].text != together[0].text


def test_streamed_pieces_join_to_the_reply_and_hold_no_broken_characters(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    pieces: dict[int, str] = {0: "", 1: ""}

    def on_token(row: int, text: str) -> None:
        assert text
        assert "\ufffd" not in text
        pieces[row] += text

    # a random model at high temperature writes half characters all the time
    sampling = Sampling(temperature=3, top_p=1, max_new_tokens=80)
    replies = generate(model, renderer, [[user("One")], [user("Two")]], sampling, on_token=on_token)
    assert [r.text for r in replies] == [pieces[0], pieces[1]]
    assert len(pieces[0]) > 20


@pytest.mark.parametrize("text", ["naïve café ☕ done", "日本語のテキスト", "👩‍👩‍👧‍👦 family", "a  b\n\n c"])
def test_text_stream_gives_back_any_text(text: str, tiny_model: Path) -> None:
    renderer = ChatRenderer(tiny_model)
    rendered = renderer.render([user("x"), Message(role="assistant", content=text)])
    ids = [t for t, m in zip(rendered.ids, rendered.mask, strict=True) if m and t not in renderer.eos_ids]
    stream = TextStream(renderer)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == text == stream.text
    assert not any("\ufffd" in piece for piece in pieces)


def test_stopping_keeps_what_was_written(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    asked = []
    [reply] = generate(
        model,
        renderer,
        [[user("Go on")]],
        Sampling(max_new_tokens=50, temperature=1),
        should_stop=lambda: len(asked) >= 3 or asked.append(1) is not None,
    )
    assert reply.tokens <= 3
    assert not reply.finished
    [none] = generate(model, renderer, [[user("Go on")]], GREEDY, should_stop=lambda: True)
    assert (none.text, none.tokens) == ("", 0)


def test_oldest_turns_are_dropped_and_an_endless_prompt_is_refused(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    turns = [SYSTEM]
    for i in range(30):
        turns += [user(f"Question number {i} about soup?"), Message(role="assistant", content="It counts slowly.")]
    [reply] = generate(model, renderer, [[*turns, user("And?")]], GREEDY)
    assert reply.tokens > 0
    with pytest.raises(BadInput, match="does not fit"):
        generate(model, renderer, [[user("word " * 2000)]], GREEDY)


def test_sampler_top_p_penalty_and_exemption() -> None:
    logits = torch.log(torch.tensor([0.6, 0.25, 0.1, 0.05]))
    drawn = {
        RowSampler(Sampling(seed=s, temperature=1, top_p=0.8, repetition_penalty=1), (), ()).draw(logits)
        for s in range(200)
    }
    assert drawn == {0, 1}
    counts = [0] * 4
    for seed in range(2000):
        counts[RowSampler(Sampling(seed=seed, temperature=1, top_p=1, repetition_penalty=1), (), ()).draw(logits)] += 1
    assert [c / 2000 for c in counts] == pytest.approx([0.6, 0.25, 0.1, 0.05], abs=0.04)
    strong = Sampling(temperature=0, repetition_penalty=2)
    close = torch.tensor([2.0, 1.9, -1.0])
    assert RowSampler(strong, (), (), used=[0]).draw(close) == 1
    assert RowSampler(strong, (), exempt=[0], used=[0]).draw(close) == 0
    repeated = RowSampler(strong, (), ())
    assert [repeated.draw(close), repeated.draw(close)] == [0, 1]
