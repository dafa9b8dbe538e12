"""Trait sliders: which traits there are, what they do on a model, and variants that keep a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lab.errors import BadInput
from persona_lab.parts.base import Part
from persona_lab.types import Trait, TraitState, Variant

if TYPE_CHECKING:
    from persona_lab.types import BaseModelInfo


class Pulling(Part):
    """Trait sliders: which traits there are, what they do on a model, and variants that keep a setting."""

    def traits(self, base: str = "starter", variant: Variant | None = None) -> list[TraitState]:
        """Every trait as a slider on a base, or on a variant: its own vectors where it has some, else its base's.

        Raises:
            UnknownName, BadModel: there is no such base.
        """
        from persona_lab.traits.library import states

        weights = self._trait_weights(self.base_model(variant.base if variant else base), variant)
        return states(self.home, weights, variant)

    def trait(self, trait_id: str) -> Trait:
        """One trait.

        Raises:
            UnknownName. BadInput: the user's file of it is damaged.
        """
        from persona_lab.traits.library import trait

        return trait(self.home, trait_id)

    def add_trait(self, trait: Trait) -> Trait:
        """Keep a trait of the user's own; one of the same id is replaced, and has to be computed again.

        Raises:
            BadInput: the id belongs to a shipped trait, or both sides are the same. DiskFull
        """
        from persona_lab.traits.library import add

        with self._guard:
            return add(self.home, trait)

    def delete_trait(self, trait_id: str) -> None:
        """Put one of the user's own traits aside; `undo_delete` brings the last one back. Variants keep their copies.

        Raises:
            UnknownName. BadInput: it is a shipped one.
        """
        with self._guard:
            if not (self.home.traits / trait_id / "trait.json").is_file():
                self.trait(trait_id)
                raise BadInput(f"The trait {trait_id!r} is shipped, so it cannot be deleted.", "Leave its slider at 0.")
            self.catalog.trash.put_aside(self.home.traits / trait_id, trait_id, [])

    def compute_traits(
        self, trait_ids: Sequence[str], base: str = "starter", variant_id: str = "", seed: int = 0
    ) -> str:
        """Queue the computation of traits' vectors on a base, or on a trained variant's own weights; the run's id.

        Raises:
            UnknownName. BadInput: none is named, or the variant has no weights of its own.
        """
        if not trait_ids:
            raise BadInput("No trait is named.", "Name some; persona-lab traits list shows them.")
        for trait_id in trait_ids:
            self.trait(trait_id)
        variant = self.variant(variant_id) if variant_id else None
        if variant is not None and variant.kind not in ("adapter", "weights"):
            raise BadInput(
                f"{variant.name!r} has no weights of its own: the traits of {variant.base!r} are its own, too.",
                f"Compute them for the base: persona-lab traits compute ... --base {variant.base}.",
            )
        info = self.base_model(variant.base if variant else base)
        names = list(dict.fromkeys(trait_ids))
        return self._submit(
            "traits",
            "traits",
            name=f"Traits of {variant.name if variant else info.name}: {', '.join(names)}"[:120],
            base=info.id,
            variants=(variant,) if variant else (),
            config={"traits": names},
            seed=seed,
        )

    def pulled(self, variants: Sequence[Variant], settings: Mapping[str, float]) -> list[Variant]:
        """The variants with their sliders at these settings, for the chat; nothing is saved.

        Traits that are not named keep a steered variant's own setting.

        Raises:
            UnknownName. BadInput: out of bounds, not computed for a variant's base, or it does not steer that.
        """
        return [self._pulled(variant, settings) for variant in variants]

    def save_steered(self, variant: Variant | str, settings: Mapping[str, float], name: str = "") -> Variant:
        """A variant with its sliders at these settings as a new one, with copies of the vectors and of its weights.

        Raises:
            UnknownName, BadModel, DiskFull. BadInput: nothing is set, or see `pulled`.
        """
        made = self._pulled(self.variant(variant) if isinstance(variant, str) else variant, settings)
        if not made.traits:
            raise BadInput("Every slider stands at 0, so there is nothing to keep.", "Move one first.")
        with self._guard:
            weights = self._trait_weights(self.base_model(made.base), made)
            return self.catalog.save_steered(made, weights, name)

    def _pulled(self, variant: Variant, settings: Mapping[str, float]) -> Variant:
        from persona_lab.inference.trait_files import find_kept, settings_of, total_shift

        merged = settings_of({**variant.traits, **settings})
        made = variant.model_copy(update={"traits": merged})
        weights = self._trait_weights(self.base_model(made.base), made) if merged else []
        for trait_id in settings:
            if find_kept(made, self.home, trait_id, weights) is None:
                self.trait(trait_id)  # says so if there is no such trait
        total_shift(made, self.home, weights)  # says so if one cannot be pulled so
        return made

    def _trait_weights(self, base: BaseModelInfo, variant: Variant | None) -> list[str]:
        """Names of the weights whose vectors suit, best first, as the workers name them; [] while the base is not
        there."""
        from persona_lab.models.weights import kept_fingerprint, weights_name

        # nothing was computed yet: large weights need not be looked at for that. Else whoever computed it has left
        # their fingerprint
        if not base.ready or not any(self.home.traits.glob("*/*.safetensors")):
            return []
        own = []
        if variant is not None and variant.kind in ("adapter", "weights") and variant.path:
            own = [weights_name(variant, self.home)]
        return [*own, kept_fingerprint(Path(base.path), self.home)]
