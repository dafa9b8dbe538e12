"""The vectors of traits on disk, and what a variant's sliders add up to. Numbers only: no torch.

    <home>/traits/<trait>/trait.json               the user's own traits
    <home>/traits/<trait>/<weights>.safetensors    the vector of one trait on one model, calibrated
    <variant>/steering/<trait>.safetensors         a steered variant's own copies, which nothing changes any more

`<weights>` names the weights by fingerprint. A file holds `layer.N` [hidden], fp32, and in its metadata the trait and
its calibration; a file whose trait was changed since, by its user or by a new version of this program, is not used.
What the shipped traits are is read here, too, because that decides it: `shipped_traits.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from persona_lab.errors import BadInput, BadModel
from persona_lab.home import Home, write_atomic
from persona_lab.types import Trait, TraitCalibration, Variant

Vector = NDArray[numpy.float32]
FULL = 100.0
STEERING = "steering"


@dataclass(frozen=True)
class KeptTrait:
    """A trait on one model: `vectors` are the mean differences towards - away [hidden] by layer (from 0)."""

    trait: Trait
    calibration: TraitCalibration
    vectors: Mapping[int, Vector]

    def pulled(self, setting: float) -> dict[int, Vector]:
        """What is added at each layer at this setting of the slider, -100..100.

        Raises:
            BadInput: the model cannot be pulled that way.
        """
        strength = self.calibration.towards if setting > 0 else self.calibration.away
        if setting == 0:
            return {}
        if strength is None:
            trait = self.trait
            label = trait.towards_label if setting > 0 else trait.away_label
            raise BadInput(
                f"{trait.title} does not steer this model towards {label!r}: its replies fall apart or stay the same.",
                "Set it to 0, or choose another trait.",
            )
        return {
            layer: (vector * numpy.float32(setting / FULL * strength)).astype(numpy.float32)
            for layer, vector in self.vectors.items()
        }


def kept_path(home: Home, trait_id: str, weights: str) -> Path:
    """Where the vector of a trait on these weights lies."""
    return home.traits / trait_id / f"{weights}.safetensors"


def write_kept(path: Path, kept: KeptTrait) -> None:
    """Write it, whole or not at all.

    Raises:
        DiskFull
    """
    from safetensors.numpy import save

    metadata = {"trait": kept.trait.model_dump_json(), "calibration": kept.calibration.model_dump_json()}
    tensors = {f"layer.{layer}": numpy.ascontiguousarray(vector) for layer, vector in kept.vectors.items()}
    write_atomic(path, save(tensors, metadata=metadata))


def read_kept(path: Path, vectors: bool = True) -> KeptTrait:
    """What `write_kept` wrote.

    Args:
        vectors: False leaves them out: what the trait is and does is in the file's head.

    Raises:
        BadModel: it is gone or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about: Any = file.metadata() or {}
            names = list(file.keys()) if vectors else []
            found = {int(name.removeprefix("layer.")): file.get_tensor(name) for name in names}
        trait = Trait.model_validate_json(about["trait"])
        calibration = TraitCalibration.model_validate_json(about["calibration"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadModel(f"The trait's file {path} cannot be used: {error}.", "Compute the trait again.") from error
    return KeptTrait(trait, calibration, found)


def own_copy(variant: Variant, trait_id: str) -> Path | None:
    """A steered variant's own vector of a trait; None where it has none."""
    path = Path(variant.steering) / f"{trait_id}.safetensors" if variant.steering else None
    return path if path is not None and path.is_file() else None


def same_trait(a: Trait, b: Trait) -> bool:
    """Whether both would give the same vector: names for people do not count."""
    names = {"title", "towards_label", "away_label", "own"}
    return a.model_dump(exclude=names) == b.model_dump(exclude=names)


@cache
def shipped_traits() -> tuple[Trait, ...]:
    """The traits that come along."""
    text = resources.files("persona_lab.inference").joinpath("shipped_traits.json").read_text(encoding="utf-8")
    return tuple(Trait.model_validate(row) for row in json.loads(text))


def defined_trait(home: Home, trait_id: str) -> Trait | None:
    """The trait as it is now, shipped or the user's own; None: there is none of this id.

    Raises:
        BadInput: the user's file of it is damaged.
    """
    for known in shipped_traits():
        if known.id == trait_id:
            return known
    for path in home.traits.glob("*/trait.json"):
        if path.parent.name == trait_id:
            return read_trait(path)
    return None


def find_kept(variant: Variant | None, home: Home | None, trait_id: str, weights: Sequence[str]) -> Path | None:
    """The vector's file: the variant's own copy, which stays what it is, else (with a home) that of the first of these
    weights that has one of the trait as it is now; None: not computed.

    Raises:
        BadInput: the user's file of the trait is damaged.
    """
    if variant is not None and (own := own_copy(variant, trait_id)):
        return own
    now = defined_trait(home, trait_id) if home is not None else None
    if home is None or now is None:
        return None
    for path in (kept_path(home, trait_id, name) for name in weights):
        if path.is_file() and is_of(path, now):
            return path
    return None


def is_of(path: Path, trait: Trait) -> bool:
    """Whether the file can be read and has the vector of the trait as it is now."""
    state = path.stat()
    kept = _kept_trait(path, state.st_mtime_ns, state.st_size)
    return kept is not None and same_trait(kept, trait)


@lru_cache(maxsize=256)
def _kept_trait(path: Path, _changed: int, _size: int) -> Trait | None:
    """The trait in a file's head, as long as the file stays as it is; None: it is damaged."""
    try:
        return read_kept(path, vectors=False).trait
    except BadModel:
        return None


def kept_file(variant: Variant, home: Home | None, trait_id: str, weights: Sequence[str]) -> Path:
    """`find_kept`.

    Raises:
        BadInput: it was not computed, or the user's file of the trait is damaged.
    """
    path = find_kept(variant, home, trait_id, weights)
    if path is None:
        raise BadInput(
            f"The trait {trait_id!r} was not computed for {variant.base!r} yet.",
            f"Compute it: persona-lab traits compute {trait_id} --base {variant.base}.",
        )
    return path


def settings_of(traits: Mapping[str, float]) -> dict[str, float]:
    """The settings that do something, checked.

    Raises:
        BadInput: one is outside of -100..100.
    """
    for name, value in traits.items():
        if not math.isfinite(value) or abs(value) > FULL:
            raise BadInput(f"The trait {name!r} is set to {value:g}.", "Choose a number from -100 to 100.")
    return {name: float(value) for name, value in sorted(traits.items()) if value}


def balanced(traits: Mapping[str, float]) -> dict[str, float]:
    """The settings as they are applied: where several together would pull harder than one at 100 (root of the sum of
    squares), all are weakened alike, since 100 is the most one reply can bear."""
    length = math.sqrt(sum(value**2 for value in traits.values()))
    return {name: value * min(1.0, FULL / length) for name, value in traits.items()} if length else {}


def total_shift(variant: Variant, home: Home | None, weights: Sequence[str]) -> dict[int, Vector]:
    """What a variant's sliders add at each layer, all traits together; {} where none is set.

    Args:
        home: None: only the variant's own copies are used.
        weights: names of the weights whose vectors may be used, best first.

    Raises:
        BadInput: a setting is out of bounds, a trait was not computed, or does not steer this model. BadModel
    """
    total: dict[int, Vector] = {}
    for trait_id, setting in balanced(settings_of(variant.traits)).items():
        for layer, vector in read_kept(kept_file(variant, home, trait_id, weights)).pulled(setting).items():
            total[layer] = total[layer] + vector if layer in total else vector
    return total


def copy_kept(variant: Variant, home: Home, weights: Sequence[str], target: Path) -> None:
    """Copy the vectors of the variant's traits into a folder, as a steered variant keeps them.

    Raises:
        BadInput: one was not computed. BadModel: one is damaged. DiskFull
    """
    for trait_id in settings_of(variant.traits):
        write_kept(target / f"{trait_id}.safetensors", read_kept(kept_file(variant, home, trait_id, weights)))


def parse_traits(text: str) -> dict[str, float]:
    """`grumpy=60, archaic=-30` as settings.

    Raises:
        BadInput
    """
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.replace(";", ",").split(","))):
        name, sign, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name.strip():
            raise BadInput(f"{part!r} is no trait setting.", "Write settings like grumpy=60,archaic=-30.") from None
    settings_of(found)
    return found


def told(traits: Mapping[str, float]) -> str:
    """`archaic +30, grumpy -60`, for people; empty where nothing is set."""
    return ", ".join(f"{name} {value:+g}" for name, value in sorted(traits.items()) if value)


def read_trait(path: Path) -> Trait:
    """One of the user's own traits.

    Raises:
        BadInput: it cannot be used.
    """
    try:
        return Trait.model_validate({**json.loads(path.read_text(encoding="utf-8")), "own": True})
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise BadInput(f"The trait in {path} cannot be read: {error}.", "Mend or delete the file.") from error
