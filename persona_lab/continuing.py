"""Which variant a run goes on from: resolved and refused before anything is started. Reads no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_lab.errors import BadInput, UnknownName
from persona_lab.types import Persona, Variant

TRAINED = ("adapter", "weights")


def parent_of(part: Any, config: Any, persona: Persona, base: str, variants: Sequence[Variant]) -> Variant | None:
    """The variant that a strategy's setting `variant` names, by id or name; None for strategies that begin anew.

    Args:
        base: what the user asked for; `starter`, the default, gives way to the variant's own.
        variants: all of the library.

    Raises:
        UnknownName, BadInput: naming the variants that can be gone on from.
    """
    if not getattr(part, "goes_on", False):
        return None
    usable = [v.id for v in variants if v.persona == persona.id and v.kind in TRAINED]
    known = f"Known: {', '.join(usable[:20])}." if usable else f"{persona.name} has none yet: train one first."
    if not config.variant:
        raise BadInput(f"The strategy {part.id!r} needs a variant to go on from.", f"Set variant=ID. {known}")
    named = [v for v in variants if v.id == config.variant] or [v for v in variants if v.name == config.variant]
    if len(named) != 1:
        raise UnknownName("variant", config.variant, usable)
    (parent,) = named
    if parent.persona != persona.id:
        raise BadInput(f"{parent.id!r} is a variant of {parent.persona!r}, not of {persona.id!r}.", known)
    if parent.kind not in TRAINED:
        raise BadInput(f"{parent.id!r} has no trained weights to go on from: it changes only the prompt.", known)
    if parent.traits:
        raise BadInput(
            f"{parent.id!r} is pulled along traits, which training would not see.",
            f"Go on from {parent.parent!r}, from which it was made, and pull the outcome.",
        )
    if base not in ("starter", parent.base):
        fix = f"Leave the base out, or use {parent.base}."
        raise BadInput(f"{parent.id!r} was trained on {parent.base!r}, not on {base!r}.", fix)
    return parent
