"""Lorebook entries at a depth stand in the conversation, and turns go on alternating as chat templates ask."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home
from persona_lab.inference.prompting import prompt_of
from persona_lab.lore import in_conversation
from persona_lab.personas.prompt import system_prompt
from persona_lab.types import ChatRequest, Inserted, Message, Persona, Role, Variant

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST_ONLY = STRICT.replace("{{ raise_exception('no') }}", "{% continue %}")
LETTERS = {"s": "system", "u": "user", "a": "assistant"}


def talk(text: str) -> tuple[Message, ...]:
    """`u1 a2 u3` as messages."""
    return tuple(Message(role=LETTERS[word[0]], content=word[1:]) for word in text.split())


def put(said: str, *entries: tuple[int, Role, str], between: bool = True, system: str = "S") -> str:
    variant = Variant(id="v", name="v", persona="t", base="b", strategy="lora", kind="base", system=system)
    inserted = tuple(Inserted(depth=depth, role=role, content=content) for depth, role, content in entries)
    request = ChatRequest(pane="0", variant=variant, messages=talk(said), inserted=inserted)
    found = prompt_of(request, between)
    return " ".join(message.role[0] + message.content.replace("\n\n", "+").replace("\n", "/") for message in found)


@pytest.mark.parametrize(
    ("said", "entries", "expected"),
    [
        ("u1 a2 u3", [(0, "system", "X")], "sS u1 a2 u3 sX"),
        ("u1 a2 u3", [(1, "system", "X")], "sS u1 a2 sX u3"),
        ("u1 a2 u3", [(2, "system", "X")], "sS u1 sX a2 u3"),
        ("u1 a2 u3", [(3, "system", "X")], "sS+X u1 a2 u3"),
        ("u1 a2 u3", [(99, "system", "X")], "sS+X u1 a2 u3"),
        ("u1 a2 u3", [(0, "user", "X")], "sS u1 a2 u3+X"),
        ("u1 a2 u3", [(1, "user", "X")], "sS u1 a2 uX+3"),
        ("u1 a2 u3", [(2, "user", "X")], "sS u1+X a2 u3"),
        ("u1 a2 u3", [(0, "assistant", "X")], "sS u1 a2+X u3"),
        ("u1 a2 u3", [(2, "assistant", "X")], "sS u1 aX+2 u3"),
        ("u1 a2 u3", [(3, "assistant", "X")], "sS+X u1 a2 u3"),
        ("u1", [(0, "assistant", "X")], "sS u1 sX"),
        ("u1 a2 u3 a4", [(0, "system", "X")], "sS u1 a2 u3 sX a4"),
        ("u1 a2 u3 a4", [(0, "user", "X")], "sS u1 a2 u3+X a4"),
        ("a1 u2", [(2, "user", "X")], "sS uX a1 u2"),
        ("u1 a2 u3", [(1, "system", "X"), (1, "user", "Y"), (1, "system", "Z"), (0, "system", "W")],
         "sS u1 a2 sX/Z uY+3 sW"),
    ],
)  # fmt: skip
def test_where_entries_stand(said: str, entries: list[tuple[int, Role, str]], expected: str) -> None:
    assert put(said, *entries) == expected


def test_where_a_template_takes_no_system_message_it_joins_the_users_turn() -> None:
    assert put("u1 a2 u3", (0, "system", "X"), between=False) == "sS u1 a2 u3+X"
    assert put("u1 a2 u3", (2, "system", "X"), between=False) == "sS u1+X a2 u3"
    assert put("u1 a2 u3", (9, "system", "X"), between=False, system="") == "uX+1 a2 u3"


@pytest.mark.parametrize(("template", "takes"), [(None, True), (STRICT, False), (FIRST_ONLY, False)])
def test_what_a_template_takes_is_found_out(
    template: str | None, takes: bool, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    renderer = ChatRenderer(folder)
    assert renderer.takes_system_between is takes
    variant = Variant(id="v", name="v", persona="t", base="b", strategy="lora", kind="base", system="Sys")
    inserted = tuple(
        Inserted(depth=n, role=role, content=f"In{n}{role}") for n in range(4) for role in LETTERS.values()
    )
    request = ChatRequest(pane="0", variant=variant, messages=talk("uOne aTwo uThree"), inserted=inserted)
    text = renderer.decode(renderer.prompt_ids(prompt_of(request, takes)), skip_special=False)
    assert all(entry.content in text for entry in inserted), "nothing is lost, whatever the template takes"


def test_a_woken_entry_goes_to_its_place_and_the_prompt_stays(
    persona_factory: Callable[..., Persona], home: Home
) -> None:
    deep = {"keys": ["tug"], "content": "{{char}}: no tugs.", "extensions": {"position": 4, "depth": 1, "role": 0}}
    persona = persona_factory(character_book={"entries": [deep]})
    variant = Variant(
        id="v", name="v", persona="t", base="starter", strategy="lora", kind="base", system=system_prompt(persona)
    )
    request = ChatRequest(pane="0", variant=variant, messages=talk("uHello aWell utug?"))
    found = in_conversation(request, persona, home)
    assert found.variant == variant, "the very prompt it was trained with"
    assert found.inserted == (Inserted(depth=1, role="system", content="Tamsin Quill: no tugs."),)
    quiet = request.model_copy(update={"messages": talk("uHello")})
    assert in_conversation(quiet, persona, home) is quiet
