"""The chat worker as the page uses it: a real process, real weights (tiny), several panes, cancel, death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from persona_lab.home import Home
from persona_lab.inference.client import ChatClient
from persona_lab.models.weights import fingerprint
from persona_lab.types import ChatChunk, ChatRequest, Message, Sampling, Variant

GREEDY = Sampling(temperature=0, max_new_tokens=12, repetition_penalty=1)


@pytest.fixture
def chat(home: Home) -> Iterator[ChatClient]:
    client = ChatClient(home)
    yield client
    client.close()


def variant(name: str, base: Path, **fields: Any) -> Variant:
    return Variant(
        **{"id": name, "name": name, "persona": "tamsin", "base": str(base), "strategy": "base", "kind": "base"}
        | fields
    )


def ask(pane: str, who: Variant, sampling: Sampling = GREEDY) -> ChatRequest:
    return ChatRequest(
        pane=pane, variant=who, messages=(Message(role="user", content="Are you lost?"),), sampling=sampling
    )


def lora(base: Path, folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def gather(chunks: list[ChatChunk]) -> dict[str, tuple[str, ChatChunk]]:
    """Pane -> its whole text and its last chunk."""
    return {c.pane: ("".join(d.text for d in chunks if d.pane == c.pane), c) for c in chunks}


def endless(base: Path) -> ChatRequest:
    return ask("a", variant("base", base), Sampling(max_new_tokens=4096, temperature=2, top_p=1))


def test_panes_are_stamped_with_what_made_them_and_fail_alone(
    chat: ChatClient, tiny_model: Path, tmp_path: Path
) -> None:
    folder = lora(tiny_model, tmp_path / "lora")
    tuned = variant("tuned", tiny_model, kind="adapter", strategy="lora", path=str(folder))
    requests = [
        ask("a", variant("base", tiny_model)),
        ask("b", tuned),
        ask("c", variant("gone", tiny_model, kind="adapter", strategy="lora", path=str(tmp_path / "gone"))),
        ask("d", variant("nobody", tmp_path / "no-model")),
        ask("e", variant("carded", tiny_model, kind="prompt", strategy="prompt", system="You are a kettle.")),
    ]
    panes = gather(list(chat.stream(requests)))
    base_text, base_end = panes["a"]
    tuned_text, tuned_end = panes["b"]
    assert base_end.stamp is not None
    assert tuned_end.stamp is not None
    assert base_end.stamp.adapter == f"base {tiny_model} {fingerprint(tiny_model)}"
    assert tuned_end.stamp.adapter == f"lora tuned {fingerprint(folder)}"
    assert base_text != tuned_text
    assert 0 < base_end.stamp.first_token_seconds <= base_end.stamp.seconds
    assert "gone" in panes["c"][1].error
    assert "no model" in panes["d"][1].error
    assert panes["e"][1].done
    # the base alone, in the same worker, now that the adapter is loaded: still the base
    [(again, _)] = gather(list(chat.stream(requests[:1]))).values()
    assert again == base_text
    assert panes.keys() == {"a", "b", "c", "d", "e"}


def test_cancel_keeps_what_was_said(chat: ChatClient, tiny_model: Path) -> None:
    chunks = []
    for chunk in chat.stream([endless(tiny_model)]):
        chunks.append(chunk)
        chat.cancel()
    [(_, last)] = gather(chunks).values()
    assert last.done
    assert last.stopped
    assert last.stamp is not None
    assert last.stamp.tokens < 250


def test_stopping_ones_own_replies_leaves_those_of_others_alone(chat: ChatClient, tiny_model: Path) -> None:
    def tokens(stopped: str) -> int:
        chunks = []
        for chunk in chat.stream([endless(tiny_model)], owner="me"):
            chunks.append(chunk)
            chat.cancel(stopped)
        assert chunks[-1].stamp is not None
        return chunks[-1].stamp.tokens

    whole = tokens("nobody")
    assert tokens("somebody else") == whole
    assert tokens("me") < whole


def test_a_killed_worker_is_explained_and_the_next_message_starts_another(chat: ChatClient, tiny_model: Path) -> None:
    chunks = []
    for chunk in chat.stream([endless(tiny_model)]):
        if not chunks:
            [worker] = [p for p in psutil.Process().children() if "persona_lab.inference.chat_worker" in p.cmdline()]
            worker.send_signal(signal.SIGKILL)
        chunks.append(chunk)
    assert "memory" in chunks[-1].error
    [(_, last)] = gather(list(chat.stream([ask("a", variant("base", tiny_model))]))).values()
    assert last.done


def test_the_worker_ends_with_its_page_and_keeps_its_output_clean(home: Home, tiny_model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "persona_lab.inference.chat_worker", "--home", str(home.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    assert process.stdin is not None
    process.stdin.write(b'this is no JSON\n{"id": 1, "requests": [{"pane": 3}]}\n')
    process.stdin.flush()
    assert process.stdout is not None
    assert process.stdout.readline() == b'{"id": 1, "end": true}\n'
    process.stdin.close()
    start = time.monotonic()
    assert process.wait(30) == 0
    assert time.monotonic() - start < 15
    assert process.stdout.read() == b""
    process.stdout.close()
