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
from persona_lab.training.memory import memory_errors
from persona_lab.traits import library
from persona_lab.traits.calibrate import STEPS, compute
from persona_lab.types import Job, Trait, TraitCalibration


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
    with host.model_for(unsteered) as model:
        renderer = ChatRenderer(Path(info.path))
        weights = host.trait_weights(unsteered)[0]
        found = compute_all(model, renderer, home, chosen, weights, job.seed, reporter)
    return {"weights": weights, "traits": {name: _document(one) for name, one in found.items()}}


def compute_all(
    model: Any, renderer: ChatRenderer, home: Home, chosen: Sequence[Trait], weights: str, seed: int, reporter: Reporter
) -> dict[str, TraitCalibration]:
    """Compute traits on a loaded model and keep each for weights of this name as soon as it is there.

    Raises:
        OutOfMemory, WorkFailed, Cancelled, DiskFull
    """
    found = {}
    for number, trait in enumerate(chosen):
        reporter.phase(f"{trait.title}: {trait.away_label} to {trait.towards_label}", len(chosen) * STEPS)
        with memory_errors("Use a smaller base model, or close other programs."):
            kept = compute(model, renderer, trait, seed, _progress(reporter, number, len(chosen)))
        write_kept(kept_path(home, trait.id, weights), kept)
        found[trait.id] = kept.calibration
        reporter.log(library.told(library.state(home, trait, [weights])))
    return found


def missing(home: Home, names: Sequence[str], weights: Sequence[str]) -> list[Trait]:
    """Those of these traits that were not computed for these weights."""
    chosen = [library.trait(home, name) for name in names]
    return [trait for trait in chosen if library.state(home, trait, weights).status == "not computed"]


def _progress(reporter: Reporter, number: int, count: int) -> Callable[[int, str], None]:
    return lambda done, what: reporter.step(number * STEPS + done, count * STEPS, stage=what)


def _document(calibration: TraitCalibration) -> dict[str, Any]:
    return calibration.model_dump(mode="json") | {"steers": calibration.steers}
