"""The renderer on the real starter model: token for token what transformers gives, and fast."""

from __future__ import annotations

import time

import pytest

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home
from persona_lab.models.registry import describe
from persona_lab.personas.prompt import system_prompt
from persona_lab.personas.store import example_folders, load_persona
from persona_lab.types import Conversation, Message


@pytest.fixture
def renderer(starter_home: Home) -> ChatRenderer:
    from pathlib import Path

    return ChatRenderer(Path(describe("starter", starter_home).path))


def conversations() -> list[Conversation]:
    """All conversations of the shipped examples, each with its persona's system prompt."""
    import json

    found = []
    for folder in example_folders().values():
        system = Message(role="system", content=system_prompt(load_persona(folder)))
        for line in (folder / "dataset.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            messages = (system, *(Message(**message) for message in row["messages"]))
            found.append(Conversation(id=row["id"], messages=messages))
    return found


def test_examples_render_as_in_transformers(renderer: ChatRenderer) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(renderer.folder)
    options = {"tokenize": True, "return_dict": False, "sanitize_control_tokens": True}
    for conversation in conversations()[::5]:
        rendered = renderer.render(conversation.messages)
        plain = [message.model_dump() for message in conversation.messages]
        assert list(rendered.ids) == tokenizer.apply_chat_template(plain, **options)
        replies = [m.content for m in conversation.messages if m.role == "assistant"]
        trained = renderer.decode([i for i, on in zip(rendered.ids, rendered.mask, strict=True) if on], False)
        assert trained == "".join(f"{reply}<|im_end|>" for reply in replies)
        assert rendered.prefix > 50


def test_default_system_message_of_the_template_is_kept(renderer: ChatRenderer) -> None:
    messages = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello.")]
    text = renderer.decode(renderer.render(messages).ids, skip_special=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert renderer.decode(renderer.prompt_ids(messages[:1]), False).endswith("<|im_start|>assistant\n")


def test_three_hundred_conversations_render_in_a_moment(renderer: ChatRenderer) -> None:
    chosen = conversations()[:300]
    renderer.render(chosen[0].messages)
    begun = time.perf_counter()
    for conversation in chosen:
        renderer.render(conversation.messages, 1024)
    assert time.perf_counter() - begun < 3  # 0.3 s on two idle cores; other tests may run beside it
