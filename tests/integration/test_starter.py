"""The real starter: its folder works with tokenizers alone, and what it says makes sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home
from persona_lab.inference.decoding import generate
from persona_lab.inference.loading import load_model
from persona_lab.inference.scoring import loglikelihood
from persona_lab.models import registry, starter
from persona_lab.models.machine import worker_machine
from persona_lab.types import BaseModelInfo, Message, Sampling


@pytest.fixture(scope="module")
def info(starter_home: Home) -> BaseModelInfo:
    return registry.describe("starter", starter_home)


@pytest.fixture(scope="module")
def model(info: BaseModelInfo, starter_home: Home) -> Any:
    return load_model(info, worker_machine(starter_home.root), full_precision=True)


def test_cache_is_whole_and_says_where_it_comes_from(info: BaseModelInfo) -> None:
    folder = Path(info.path)
    assert info.ready
    assert info.parameters == starter.PARAMETERS
    assert {name: info.config[name] for name in starter.CONFIG} == starter.CONFIG
    marker = json.loads((folder / "persona_lab.json").read_text())
    assert marker["sha256"] == starter.GGUF_SHA256
    assert marker["license"] == "apache-2.0"
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".py", ".gguf")]


def test_tokenizer_ends_turns_and_splits_digits(info: BaseModelInfo) -> None:
    renderer = ChatRenderer(Path(info.path))
    ids = renderer.prompt_ids([Message(role="system", content="Hm."), Message(role="user", content="Add 1024.")])
    pieces = [renderer.decode([token], skip_special=False) for token in ids]
    assert (
        "".join(pieces)
        == "<|im_start|>system\nHm.<|im_end|>\n<|im_start|>user\nAdd 1024.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [p for p in pieces if p.strip().isdigit()] == ["1", "0", "2", "4"]
    assert renderer.decode(list(renderer.eos_ids), skip_special=False) == "<|im_end|>"
    assert renderer.context_length == 8192


def test_greedy_replies_are_sensible(info: BaseModelInfo, model: Any) -> None:
    renderer = ChatRenderer(Path(info.path))
    prompts = [[Message(role="user", content=text)] for text in ("Hello", "What is the capital of France?")]
    hello, france = generate(model, renderer, prompts, Sampling(temperature=0, max_new_tokens=24, repetition_penalty=1))
    assert hello.text == "Hello! How can I assist you today?"
    assert hello.finished
    assert "Paris" in france.text


def test_sense_is_likelier_than_nonsense(info: BaseModelInfo, model: Any) -> None:
    question = [Message(role="user", content="What is the capital of France?")]
    replies = ("The capital of France is Paris.", "The capital of France is Turnip.")
    right, wrong = loglikelihood(model, ChatRenderer(Path(info.path)), [(question, reply) for reply in replies])
    assert right.per_byte > wrong.per_byte
    assert -2 < right.per_byte < 0
