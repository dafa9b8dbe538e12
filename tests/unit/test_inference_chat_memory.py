"""What the chat worker keeps between messages changes no reply, and int8 weights are said to be int8."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.errors import OutOfMemory
from persona_lab.home import Home
from persona_lab.inference import chat_worker, loading
from persona_lab.inference.chat_worker import ChatWorker
from persona_lab.types import ChatChunk, ChatRequest, Message, Sampling, Variant

SAMPLING = Sampling(seed=5, temperature=1, max_new_tokens=12)


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Callable[[str], Variant]:
    """Makes a LoRA variant of a rank of its own."""

    def make(name: str) -> Variant:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(len(name))
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        config = LoraConfig(r=2 + len(name), target_modules="all-linear", init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(tmp_path / name)
        return variant(tiny_model, name, kind="adapter", strategy="lora", path=str(tmp_path / name))

    return make


def variant(base: Path, name: str, **fields: Any) -> Variant:
    given = {"id": name, "name": name, "persona": "t", "base": str(base), "strategy": "base", "kind": "base"}
    return Variant(**given | {"system": "You are a kettle that was promised the sea."} | fields)


def worker(home: Home, bf16: bool) -> ChatWorker:
    made = ChatWorker(home)
    made.machine = made.machine.model_copy(update={"bf16": bf16})
    return made


def ask(chat: ChatWorker, variants: list[Variant], *texts: str, **fields: Any) -> dict[str, tuple[str, ChatChunk]]:
    """Variant -> its reply and last chunk; `texts` are user, assistant, user, ..."""
    roles: list[Any] = ["user", "assistant"]
    messages = tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(texts))
    requests = [
        ChatRequest(pane=v.id, variant=v, messages=messages, **{"sampling": SAMPLING} | fields) for v in variants
    ]
    chunks: list[ChatChunk] = []
    chat.answer(requests, chunks.append, lambda: False)
    return {c.pane: ("".join(d.text for d in chunks if d.pane == c.pane), c) for c in chunks}


def test_a_conversation_with_memory_is_the_one_without(
    home: Home, tiny_model: Path, adapter: Callable[[str], Variant]
) -> None:
    variants = [variant(tiny_model, "base"), adapter("one"), adapter("three")]
    chat = worker(home, bf16=False)
    first = ask(chat, variants, "Are you lost?")
    assert {name: text for name, (text, _) in ask(chat, variants, "Are you lost?").items()} == {
        name: text for name, (text, _) in first.items()
    }
    later = ["Are you lost?", first["one"][0] or ".", "And now?"]
    assert ask(chat, variants, *later)["one"][0] == ask(worker(home, bf16=False), variants, *later)["one"][0]
    [served] = chat._served.values()
    assert 0 < served.prefixes.bytes() < 10_000_000


def test_a_pane_that_fails_does_not_stop_the_others(
    home: Home, tiny_model: Path, adapter: Callable[[str], Variant]
) -> None:
    gone = variant(tiny_model, "gone", kind="adapter", strategy="lora", path="/nowhere")
    chat = worker(home, bf16=False)
    alone = ask(chat, [adapter("one")], "Why?")["one"][0]
    panes = ask(chat, [gone, adapter("one"), variant(tiny_model, "base")], "Why?")
    assert "gone" in panes["gone"][1].error
    assert (panes["one"][1].error, panes["one"][0]) == ("", alone)
    assert panes["base"][1].done


def test_int8_is_stamped_and_only_where_it_ran(home: Home, tiny_model: Path, adapter: Callable[[str], Variant]) -> None:
    variants = [variant(tiny_model, "base"), adapter("one")]
    chat = worker(home, bf16=True)
    for request in ({}, {"weights": "int8"}, {}):
        panes = ask(chat, variants, "Are you lost?", **request)
        for _, last in panes.values():
            assert last.stamp is not None
            assert last.stamp.adapter.endswith("int8 weights") == bool(request)
    refused = ask(worker(home, bf16=False), variants, "Are you lost?", weights="int8")
    assert all("int8" in last.error for _, last in refused.values())


@pytest.fixture
def room_for_one(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine whose memory is full while any model is alive; gives weak references to all that were loaded."""
    loaded: list[Any] = []
    load = loading.load_model

    def noted(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loading, "load_model", noted)
    monkeypatch.setattr(loading, "_free_bytes", lambda machine: 0 if any(model() for model in loaded) else 1 << 40)
    return loaded


def test_a_base_that_is_idle_makes_room_for_another(
    home: Home, tiny_model: Path, tiny_model_of: Callable[[str], Path], room_for_one: list[Any]
) -> None:
    chat, variants = worker(home, bf16=False), [variant(tiny_model, "one"), variant(tiny_model_of("qwen2"), "other")]
    for _ in range(2):
        panes = ask(chat, variants, "Are you lost?")
        assert [last.error for _, last in panes.values()] == ["", ""]
        assert list(chat._served) == [variants[1].base]
    assert len(room_for_one) == 4


def test_a_base_that_ran_out_of_memory_is_gone_before_it_is_loaded_again(
    home: Home,
    tiny_model: Path,
    adapter: Callable[[str], Variant],
    room_for_one: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = chat_worker.generate

    def short_of_memory(model: Any, renderer: Any, prompts: Any, *arguments: Any, **named: Any) -> Any:
        if len(prompts) > 1:
            raise OutOfMemory("There is not enough memory to write replies.", "Ask for fewer.")
        return decode(model, renderer, prompts, *arguments, **named)

    monkeypatch.setattr(chat_worker, "generate", short_of_memory)
    panes = ask(worker(home, bf16=False), [variant(tiny_model, "base"), adapter("one")], "Are you lost?")
    assert [last.error for _, last in panes.values()] == ["", ""]
    assert len(room_for_one) == 2


def test_after_a_stop_no_further_model_is_loaded(
    home: Home, tiny_model: Path, tiny_model_of: Callable[[str], Path], room_for_one: list[Any]
) -> None:
    chat = worker(home, bf16=False)
    requests = [
        ChatRequest(pane=v.id, variant=v, messages=(Message(role="user", content="Why?"),), sampling=SAMPLING)
        for v in (variant(tiny_model, "one"), variant(tiny_model_of("qwen2"), "other"))
    ]
    chunks: list[ChatChunk] = []
    chat.answer(requests, chunks.append, lambda: True)
    assert chunks == [ChatChunk(pane=name, done=True, stopped=True) for name in ("one", "other")]
    assert (room_for_one, list(chat._served)) == ([], [])
    chunks.clear()
    chat.answer(requests, chunks.append, lambda: bool(chunks))
    assert chunks[-2].stamp is not None
    assert chunks[-1] == ChatChunk(pane="other", done=True, stopped=True)
    assert list(chat._served) == [str(tiny_model)]


def test_panes_that_fail_after_they_began_to_speak_are_not_begun_again(
    home: Home, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*arguments: Any, on_token: Any, **named: Any) -> Any:
        on_token(0, "Well")
        raise ValueError("broken")

    monkeypatch.setattr(chat_worker, "generate", breaks)
    requests = [
        ChatRequest(pane=v.id, variant=v, messages=(Message(role="user", content="Why?"),), sampling=SAMPLING)
        for v in (variant(tiny_model, "one"), variant(tiny_model, "other"))
    ]
    chunks: list[ChatChunk] = []
    worker(home, bf16=False).answer(requests, chunks.append, lambda: False)
    assert [(c.pane, c.text, "broken" in c.error) for c in chunks] == [
        ("one", "Well", False),
        ("one", "", True),
        ("other", "", True),
    ]
