"""Scoring against a plain computation, and decoding: padding, seeds, streaming, stopping. Tiny random models, fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput
from persona_lab.home import Home
from persona_lab.inference import decoding, scoring
from persona_lab.inference.decoding import generate
from persona_lab.inference.loading import load_model
from persona_lab.inference.prefix_tree import grow
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


def test_numbers_come_to_the_cpu_before_they_are_widened() -> None:
    """An Apple GPU has no float64."""
    root = Path(__file__).resolve().parents[2]
    files = [file for folder in ("persona_lab", "plugins") for file in (root / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file.name for file in files if ".double().cpu()" in file.read_text(encoding="utf-8")] == []


def test_loglikelihood_of_nothing_is_nothing(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    assert loglikelihood(model, renderer, []) == []
    [blank] = loglikelihood(model, renderer, [([user("Hello")], " ")])
    assert (blank.total, blank.tokens, blank.bytes) == (0.0, 0, 1)


QUESTIONS = ("Why do you keep the sea in a drawer?", "Who is the keeper of small hours?", "Is it lost, and why there?")
ANSWERS = tuple(f"The clock counts {i} biscuits, slowly{', my dear' * (i % 3)}." for i in range(8))
TALK = (user("Is it raining on the stair?"), Message(role="assistant", content="It was, before the soup.")) * 4


def ranking() -> list[tuple[list[Message], str]]:
    """Eight candidates after each of three contexts, under two system prompts, after small talk that grows."""
    other = Message(
        role="system", content="You are a bicycle that was never told it is retired, and rings at strangers."
    )
    contexts = [[SYSTEM, *TALK[:turns], user(q)] for q in QUESTIONS for turns in (0, 4, 8)]
    contexts += [[other, user(q)] for q in QUESTIONS]
    return [(context, answer) for context in contexts for answer in ANSWERS]


class TokensRun:
    """Counts the tokens that a model is given, with padding."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, arguments: Any, named: Any) -> None:
        self.count += named["input_ids"].numel()


def assert_equal_to_plain(model: Any, renderer: ChatRenderer, items: list[tuple[list[Message], str]]) -> None:
    for (messages, reply), found in zip(items, loglikelihood(model, renderer, items), strict=True):
        total, tokens = plain_loglikelihood(model, renderer, messages, reply)
        assert found.tokens == tokens
        assert abs(found.total - total) / tokens < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma2", "mistral"])
def test_shared_contexts_are_run_once_and_change_nothing(
    architecture: str, tiny_model_of: Callable[[str], Path], home: Home
) -> None:
    model, renderer = load(tiny_model_of(architecture), home)
    items = ranking()
    assert_equal_to_plain(model, renderer, items)
    run = TokensRun(model)
    loglikelihood(model, renderer, items)
    assert run.count < sum(len(renderer.prompt_ids(messages)) for messages, _ in items) / 2


def test_a_model_whose_window_is_shorter_than_the_context_shares_nothing(
    tiny_model_of: Callable[[str], Path], home: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "short-window"
    shutil.copytree(tiny_model_of("mistral"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 24}))
    model, renderer = load(folder, home)
    whole, _ = load(tiny_model_of("mistral"), home)
    items = ranking()
    assert_equal_to_plain(model, renderer, items)
    assert plain_loglikelihood(model, renderer, *items[0]) != plain_loglikelihood(whole, renderer, *items[0])
    run = TokensRun(model)
    loglikelihood(model, renderer, items)
    assert run.count >= sum(len(renderer.prompt_ids(messages)) for messages, _ in items)


def test_a_model_that_keeps_a_state_shares_nothing(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home)
    model._is_stateful = True
    items = ranking()
    assert_equal_to_plain(model, renderer, items)
    run = TokensRun(model)
    loglikelihood(model, renderer, items)
    assert run.count >= sum(len(renderer.prompt_ids(messages)) for messages, _ in items)


def test_keys_and_values_of_a_batch_are_bounded(tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    model, renderer = load(tiny_model, home)
    rows = []
    model.register_forward_pre_hook(lambda m, a, named: rows.append(named["input_ids"].shape[0]), with_kwargs=True)
    items = ranking()
    many = loglikelihood(model, renderer, items)
    assert max(rows) > 4
    rows.clear()
    # 2 layers x 2 heads x 16 x keys and values in fp32 are 512 bytes a token
    monkeypatch.setattr(scoring, "CACHE_BYTES", 512 * 1000)
    few = loglikelihood(model, renderer, items)
    assert max(rows) <= 1000 // min(len(renderer.prompt_ids(m)) for m, _ in items)
    assert [r.total for r in few] == pytest.approx([r.total for r in many], abs=1e-3)


@dataclass
class Sequence:
    """What a prefix tree is made of."""

    ids: tuple[int, ...]
    start: int


def test_a_prefix_tree_has_a_level_only_where_it_saves_enough() -> None:
    system, filler = tuple(range(100, 150)), tuple(range(200, 260))
    short = [Sequence((*system, 1, i, 9), 52) for i in range(4)]
    long = [Sequence((*system, *filler, 1, i, 9), 112) for i in range(4)]
    alone = [Sequence((7, 8, 9), 2)]
    tree = grow([*short, *long, *alone], 128)
    assert (tree.length, tree.items) == (0, alone)
    [first] = tree.children
    assert (first.ids, first.items) == (system, short)
    [second] = first.children
    assert (second.ids, second.items, second.children) == ((*system, *filler, 1), long, [])
    assert len(tree.everything()) == 9
    assert grow([*short, *long], 200).children[0].children == []  # 4 x 61 tokens less one
    assert grow([*short, *long], None).children == []
    # the token before the start is run with each item, even if it is the same for all
    assert grow([Sequence(tuple(range(300)), 200) for _ in range(3)], 128).children[0].length == 199


def test_a_prefix_tree_of_a_very_long_chain_does_not_run_out_of_stack() -> None:
    chain = [Sequence(tuple(range(5 * i + 2)), 5 * i + 1) for i in range(1, 1500)]
    tree = grow(chain, 128)
    assert sorted(len(item.ids) for item in tree.everything()) == [len(item.ids) for item in chain]


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


HIDING = (  # shows the last exchange only, so that what was trained on earlier cannot be told
    "{% for m in messages[-2:] %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", ["", HIDING])
def test_earlier_replies_count_even_where_they_cannot_be_masked(
    template: str, tiny_model: Path, home: Home, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    if template:
        (folder / "chat_template.jinja").write_text(template)
    model, renderer = load(folder, home)
    first, last = "Hm." if template else " ", "The soup counts slowly."
    talk = [user("Hi"), Message(role="assistant", content=first), user("Well?")]
    talk += [Message(role="assistant", content=last), user("And?")]
    with pytest.raises(BadInput):
        renderer.render(talk[:4])
    [reply] = generate(model, renderer, [talk], GREEDY.model_copy(update={"repetition_penalty": 1.2}))
    assert reply.tokens > 0
    assert set(renderer.text_ids(last)) <= set(decoding._said(renderer, talk))


def test_without_a_penalty_earlier_replies_are_not_rendered_again(
    tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, renderer = load(tiny_model, home)
    monkeypatch.setattr(ChatRenderer, "render", lambda *_, **__: pytest.fail("rendered"))
    assert generate(model, renderer, [[SYSTEM, *TALK, user("And?")]], GREEDY)[0].tokens > 0


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
