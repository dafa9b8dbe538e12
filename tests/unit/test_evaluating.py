"""What is asked of an evaluation, before it starts: settings by evaluator, and wrong characters as controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from persona_lab.errors import BadInput, BadSetting, UnknownName
from persona_lab.evaluating import cast, evaluator_settings
from persona_lab.personas.prompt import system_prompt
from persona_lab.plugins import Plugins
from persona_lab.types import Persona, Variant


def variant(persona: str, **changes: Any) -> Variant:
    made = Variant(
        id=f"{persona}-1", name="lora", persona=persona, base="starter", strategy="lora", kind="adapter", system="S."
    )
    return made.model_copy(update=changes)


def test_settings_are_checked_before_anything_starts() -> None:
    plugins = Plugins.load()
    assert evaluator_settings(plugins, ["held_out_gain"], {}) == {}
    with pytest.raises(BadSetting, match="does not say which evaluator"):
        evaluator_settings(plugins, ["held_out_gain"], {"max_items": "8"})
    with pytest.raises(BadSetting, match="there is no such setting"):
        evaluator_settings(plugins, ["held_out_gain"], {"held_out_gain.colour": "red"})
    with pytest.raises(BadSetting, match="not part of this evaluation"):
        evaluator_settings(plugins, ["held_out_gain"], {"break_character.x": "1"})
    with pytest.raises(UnknownName):
        evaluator_settings(plugins, ["held_out_gain"], {"held_in_gain.x": "1"})


def test_a_variant_of_somebody_else_becomes_a_control_under_the_scored_card(
    persona_factory: Callable[..., Persona],
) -> None:
    persona = persona_factory()
    own, foreign = variant(persona.id), variant("cato")
    scored = cast([own, foreign], persona, {"cato": "Cato"})
    assert scored[0] == own
    assert (scored[1].control, scored[1].persona, scored[1].name) == (True, persona.id, "lora (trained on Cato)")
    assert scored[1].system == system_prompt(persona)
    assert (scored[1].id, scored[1].path) == (foreign.id, foreign.path)


def test_several_personas_need_one_whose_lines_are_asked(persona_factory: Callable[..., Persona]) -> None:
    with pytest.raises(BadInput, match="several personas") as error:
        cast([variant("a"), variant("b")], None, {})
    assert "--persona" in error.value.fix
    with pytest.raises(BadInput, match="No variant"):
        cast([], None, {})
    with pytest.raises(BadInput, match="another character"):
        cast([variant("cato", kind="base")], persona_factory(), {})
