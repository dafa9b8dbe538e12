"""Which traits there are: those shipped, and the user's own in the home. Light: no torch; computes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from persona_lab.errors import BadInput, BadModel, UnknownName
from persona_lab.home import Home, write_atomic
from persona_lab.inference.trait_files import defined_trait, find_kept, is_of, read_kept, read_trait, shipped_traits
from persona_lab.types import Trait, TraitState, Variant

MAX_FILE_BYTES = 1 << 20


def shipped() -> tuple[Trait, ...]:
    """The traits that come along."""
    return shipped_traits()


def own_traits(home: Home) -> list[Trait]:
    """The user's own, by id. One whose file is damaged is left out; `trait` says why."""
    found = []
    for path in sorted(home.traits.glob("*/trait.json")):
        try:
            found.append(read_trait(path))
        except BadInput:
            continue
    return found


def traits(home: Home) -> list[Trait]:
    """All: shipped first, then the user's own."""
    return [*shipped(), *own_traits(home)]


def trait(home: Home, trait_id: str) -> Trait:
    """One trait.

    Raises:
        UnknownName. BadInput: the user's file of it is damaged.
    """
    found = defined_trait(home, trait_id)
    if found is not None:
        return found
    raise UnknownName("trait", trait_id, [known.id for known in traits(home)])


def add(home: Home, new: Trait) -> Trait:
    """Keep one of the user's own; an own one of the same id is replaced.

    Raises:
        BadInput: the id belongs to a shipped trait, or both sides are the same. DiskFull
    """
    if new.id in {known.id for known in shipped()}:
        raise BadInput(f"There is a shipped trait {new.id!r} already.", "Choose another id.")
    if new.towards.strip().lower() == new.away.strip().lower():
        raise BadInput("Both descriptions of the trait are the same.", "Describe two opposites.")
    if (home.traits / new.id / "trait.json").is_file():
        for path in (home.traits / new.id).glob("*.safetensors"):
            if not is_of(path, new):
                path.unlink(missing_ok=True)  # of the definition before
    write_atomic(home.traits / new.id / "trait.json", new.model_dump_json(indent=1, exclude={"own"}) + "\n")
    return trait(home, new.id)


def read_file(text: str) -> Trait:
    """A trait from the text of a JSON file.

    Raises:
        BadInput: with every problem.
    """
    if len(text.encode()) > MAX_FILE_BYTES:
        raise BadInput("The file is larger than any trait should be (1 MB).", "Keep to a few dozen lines a side.")
    try:
        return Trait.model_validate({**json.loads(text), "own": True})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'trait'}: {p['msg']}" for p in error.errors())
        raise BadInput(f"This is no trait: {problems}.", "See docs/traits.md for what a trait has.") from error
    except (ValueError, TypeError) as error:
        raise BadInput(f"This is no JSON object: {error}.", "See docs/traits.md for what a trait has.") from error


def states(home: Home, weights: Sequence[str], variant: Variant | None = None) -> list[TraitState]:
    """Every trait as a slider on a model.

    Args:
        weights: names of the weights whose vectors may be used, best first; none: nothing was computed.
        variant: one that may have copies of its own, which come before all others.
    """
    return [state(home, known, weights, variant) for known in traits(home)]


def state(home: Home, known: Trait, weights: Sequence[str], variant: Variant | None = None) -> TraitState:
    """One trait as a slider on a model."""
    path = find_kept(variant, home, known.id, weights)
    try:
        kept = read_kept(path, vectors=False) if path is not None else None
    except BadModel:
        kept = None  # damaged: it has to be computed again
    if kept is not None:
        status = "ready" if kept.calibration.steers else "does not steer"
        return TraitState(trait=known, status=status, calibration=kept.calibration)
    return TraitState(trait=known, status="not computed")


def told(state: TraitState) -> str:
    """One sentence for people on what a trait does on a model."""
    trait, calibration = state.trait, state.calibration
    if calibration is None:
        return f"{trait.title} was not computed for this model yet; it takes about a minute."
    ways = [(trait.towards_label, calibration.towards), (trait.away_label, calibration.away)]
    works = [label for label, strength in ways if strength is not None]
    fails = [label for label, strength in ways if strength is None]
    if not works:
        return f"{trait.title} does not steer this model: its replies fall apart before they change, or stay the same."
    if fails:
        return f"{trait.title} steers this model towards {works[0]} only, not towards {fails[0]}."
    return f"{trait.title} steers this model both ways, towards {works[0]} and {works[1]}."
