"""Computes traits on a model, in the worker: one file a trait, kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import Reporter
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home
from persona_lab.inference.loading import VariantHost
from persona_lab.inference.trait_files import kept_path, write_kept
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.traits import library
from persona_lab.traits.calibrate import STEPS, compute
from persona_lab.types import Job, TraitCalibration, TraitState, Variant


def run(job: Job, reporter: Reporter) -> dict[str, Any]:
    """Compute the traits that `job.config["traits"]` names, on the base, or on `job.variants[0]`'s own weights.

    Returns:
        `weights` (their name) and `traits`: id -> status and calibration.

    Raises:
        UnknownName, BadModel, ModelUnavailable, OutOfMemory, WorkFailed, Cancelled, DiskFull
    """
    home = Home(Path(job.home))
    chosen = [library.trait(home, name) for name in job.config["traits"]]
    info = registry.ensure(job.base, home, reporter)
    host = VariantHost(info, worker_machine(home.root), home)
    variant = job.variants[0] if job.variants else None
    unsteered = variant.model_copy(update={"traits": {}}) if variant is not None else None
    found = {}
    with host.model_for(unsteered) as model:
        renderer = ChatRenderer(Path(info.path))
        weights = host.trait_weights(unsteered)[0]
        for number, trait in enumerate(chosen):
            reporter.phase(f"{trait.title}: {trait.away_label} to {trait.towards_label}", len(chosen) * STEPS)
            kept = compute(model, renderer, trait, job.seed, _progress(reporter, number, len(chosen)))
            write_kept(kept_path(home, trait.id, weights), kept)
            found[trait.id] = kept.calibration
            reporter.log(told(library.state(home, trait, [weights])))
    return {"weights": weights, "traits": {name: _document(one) for name, one in found.items()}}


def missing(home: Home, names: Sequence[str], variant: Variant | None, weights: Sequence[str]) -> list[str]:
    """Those of these traits whose vectors are neither kept for these weights nor by the variant."""
    own = Path(variant.steering) if variant is not None and variant.steering else None
    return [
        name
        for name in names
        if not (own is not None and (own / f"{name}.safetensors").is_file())
        and library.state(home, library.trait(home, name), weights).status == "not computed"
    ]


def told(state: TraitState) -> str:
    """One sentence for people on what a trait does on a model."""
    trait, calibration = state.trait, state.calibration
    if calibration is None:
        return f"{trait.title} was not computed for this model yet."
    ways = [(trait.towards_label, calibration.towards), (trait.away_label, calibration.away)]
    works = [label for label, strength in ways if strength is not None]
    fails = [label for label, strength in ways if strength is None]
    if not works:
        return f"{trait.title} does not steer this model: its replies fall apart before they change, or stay the same."
    if fails:
        return f"{trait.title} steers this model towards {works[0]}, but not towards {fails[0]}."
    return f"{trait.title} steers this model both ways, towards {works[0]} and {works[1]}."


def _progress(reporter: Reporter, number: int, count: int) -> Callable[[int, str], None]:
    return lambda done, what: reporter.step(number * STEPS + done, count * STEPS, stage=what)


def _document(calibration: TraitCalibration) -> dict[str, Any]:
    return calibration.model_dump(mode="json") | {"steers": calibration.steers}
