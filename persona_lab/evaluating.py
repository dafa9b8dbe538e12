"""What is asked of an evaluation, checked before anything starts: settings, variants, wrong characters as controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.errors import BadInput, BadSetting
from persona_lab.personas.prompt import system_prompt
from persona_lab.plugins import Plugins
from persona_lab.settings import validate_settings
from persona_lab.types import Persona, Variant


def evaluator_settings(plugins: Plugins, chosen: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"forgetting.max_items": "8"}` as validated settings by evaluator.

    Raises:
        BadSetting: a key without an evaluator in front, an evaluator that is not chosen, or a value out of bounds.
        UnknownName: no such evaluator.
    """
    sorted_out: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        evaluator, dot, setting = key.partition(".")
        if not dot or not setting:
            raise BadSetting(f"{key!r} does not say which evaluator it is for.", "Write --set evaluator.setting=value.")
        plugins.get("evaluator", evaluator)
        if evaluator not in chosen:
            raise BadSetting(
                f"{key!r} is for the evaluator {evaluator!r}, which is not part of this evaluation.",
                f"Add it: --evaluators {','.join([*chosen, evaluator])}.",
            )
        sorted_out.setdefault(evaluator, {})[setting] = value
    checked = {}
    for evaluator, values in sorted_out.items():
        config = plugins.get("evaluator", evaluator).Config
        settings = validate_settings(config, values, f"evaluator {evaluator!r}")
        checked[evaluator] = settings.model_dump(mode="json", exclude_unset=True)
    return checked


def cast(variants: Sequence[Variant], persona: Persona | None, personas: Mapping[str, str]) -> list[Variant]:
    """The variants as they are scored on one persona's probes; those of other personas become controls.

    A control keeps its weights and speaks under the scored persona's card, so that only the weights are wrong.

    Args:
        persona: whose probes are asked; None: all variants must belong to one persona, and it is that one's.
        personas: name of each variant's persona, by id, for the control's name.

    Raises:
        BadInput: several personas and none chosen, or nothing to score.
    """
    if not variants:
        raise BadInput("No variant was named.", "Name at least one; see `persona-lab variants list`.")
    owners = {variant.persona for variant in variants}
    if persona is None:
        if len(owners) > 1:
            raise BadInput(
                f"These variants belong to several personas ({', '.join(sorted(owners))}).",
                "Say whose lines to score them on with --persona ID: the others are then scored as wrong characters.",
            )
        return list(variants)
    return [v if v.persona == persona.id else _control(v, persona, personas) for v in variants]


def _control(variant: Variant, persona: Persona, personas: Mapping[str, str]) -> Variant:
    if variant.kind == "base":
        raise BadInput(
            f"{variant.id!r} is the base under another character's card: that is no wrong character.",
            f"Use base-{persona.id}.",
        )
    whose = personas.get(variant.persona, variant.persona)
    return variant.model_copy(
        update={
            "persona": persona.id,
            "name": f"{variant.name} (trained on {whose})",
            "control": True,
            "prompt_mode": "card",
            "system": system_prompt(persona),
        }
    )
