"""The system prompt is compact, deterministic, and sensible for cards that hold next to nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from persona_lab.personas.prompt import greeting, substitute, system_prompt
from persona_lab.types import Persona


def test_a_name_is_enough() -> None:
    persona = Persona(id="ada", name="Ada", card={"data": {"name": "Ada"}})
    assert system_prompt(persona) == "You are Ada. Stay in character."
    assert greeting(persona) == ""


def test_fields_in_order_without_the_creator_notes(persona_factory: Callable[..., Persona]) -> None:
    persona = persona_factory(creator_notes="SECRET", post_history_instructions="Answer {{user}} briefly.")
    assert system_prompt(persona, "Kim").split("\n") == [
        "You are Tamsin Quill. Stay in character.",
        "Tamsin Quill is a retired cartographer who folds every answer along its creases.",
        "Personality: dry, exact, fond of biscuits",
        "Scenario: A lighthouse kitchen with too many drawers.",
        "Answer Kim briefly.",
    ]


def test_own_system_prompt_and_original(persona_factory: Callable[..., Persona]) -> None:
    assert system_prompt(persona_factory(system_prompt="Write as {{char}}.")).startswith("Write as Tamsin Quill.\n")
    both = system_prompt(persona_factory(system_prompt="{{original}} Rhyme."))
    assert both.startswith("You are Tamsin Quill. Stay in character. Rhyme.\n")
    assert "{{" not in system_prompt(persona_factory(post_history_instructions="{{original}}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{char}} {{CHAR}} {{ Char }} <BOT> <bot>", "Tam Tam Tam Tam Tam"),
        ("{{user}} <User>", "Kim Kim"),
        ("a{{// not for the model}}b{{comment: nor this}}c{{hidden_key:x}}", "abc"),
        ("{{reverse:abc}}", "cba"),
        ("{{unknown}} {{setvar::x::y}}", "{{unknown}} {{setvar::x::y}}"),
        ("{{random:{{char}}}}", "Tam"),
        ("{{random:a\\,b}}", "a,b"),
        ("{{random}} {{}} {{random:}}", "{{random}} {{}} "),
    ],
)
def test_macros(persona_factory: Callable[..., Persona], text: str, expected: str) -> None:
    assert substitute(text, persona_factory(nickname="Tam"), "Kim") == expected


def test_choices_are_the_same_every_time(persona_factory: Callable[..., Persona]) -> None:
    persona = persona_factory()
    texts = [substitute(f"{{{{random:a,b,c{i}}}}}{{{{roll:d6}}}}", persona) for i in range(20)]
    assert texts == [substitute(f"{{{{random:a,b,c{i}}}}}{{{{roll:d6}}}}", persona) for i in range(20)]
    assert len({text[0] for text in texts}) > 1
    assert all(text[-1] in "123456" for text in texts)


def test_hostile_macros_stay_bounded(persona_factory: Callable[..., Persona]) -> None:
    assert len(substitute("{{" * 50_000, persona_factory())) <= 200_000
    nested = "{{reverse:" * 30 + "x" + "}}" * 30
    assert "x" in substitute(nested, persona_factory())


def test_greeting(persona_factory: Callable[..., Persona]) -> None:
    assert greeting(persona_factory(), "Kim") == "Mind the stair, Kim; it was drawn from memory."


def test_macros_cannot_multiply_a_card(persona_factory: Callable[..., Persona]) -> None:
    persona = persona_factory(description="x" * 20_000, nickname="N" * 60_000)
    assert len(substitute("{{description}}" * 5_000, persona)) <= 200_000
    assert len(substitute("<BOT>" * 30_000, persona)) <= 400_000
    assert (
        len(system_prompt(persona_factory(description="{{scenario}}" * 9_000, scenario="{{description}}" * 9_000)))
        < 10**6
    )
