"""Guests of a shared page: the links they come by, and what plugins' content filters say of their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from persona_lab.access.store import AccessStore
from persona_lab.errors import BadInput
from persona_lab.parts.base import Part
from persona_lab.settings import validate_settings

if TYPE_CHECKING:
    from persona_lab.access.records import GuestLimits, GuestLink


class Guests(Part):
    """Guests of a shared page."""

    _access: AccessStore | None = None

    @property
    def access(self) -> AccessStore:
        """Links, the pause, the owner's password: what is kept of sharing. Works beside a running page."""
        with self._guard:
            if self._access is None:
                self._access = AccessStore(self.home.root)
            return self._access

    def guest_limits(self, values: Mapping[str, Any]) -> GuestLimits:
        """Limits of a guest; what is absent keeps its default.

        Raises:
            BadSetting: with every unknown name and value out of bounds.
        """
        from persona_lab.access.records import GuestLimits

        checked = validate_settings(GuestLimits, values, "a guest link's limits")
        return GuestLimits.model_validate(checked.model_dump())

    def make_guest_link(
        self,
        persona_id: str,
        variant_ids: Sequence[str],
        *,
        vote: bool = False,
        hours: float = 24,
        name: str = "",
        limits: GuestLimits | None = None,
    ) -> GuestLink:
        """A link by which guests may talk to these variants of one character.

        Args:
            vote: let them compare two at a time, blind, and vote. Needs two variants.
            hours: for so long it holds.

        Raises:
            UnknownName. BadInput: a variant is another character's. BadSetting: the link would allow nothing.
        """
        self.persona(persona_id)
        variants = [self.variant(variant_id) for variant_id in variant_ids]
        for variant in variants:
            if variant.persona != persona_id:
                raise BadInput(
                    f"The variant {variant.id!r} is of {variant.persona!r}, not of {persona_id!r}.",
                    "A link is for one character.",
                )
        ids = [variant.id for variant in variants]
        return self.access.make_link(persona_id, ids, vote=vote, hours=hours, name=name, limits=limits)

    @property
    def filtering(self) -> bool:
        """Whether a plugin wants to read what guests say and hear."""
        return self.plugins.filtering

    def refusal(self, text: str, role: str, persona_id: str) -> str:
        """Why a guest's message (`role` is "user") or a reply to it ("assistant") is not passed on; empty: it is."""
        return self.plugins.refusal(text, role, persona_id)
