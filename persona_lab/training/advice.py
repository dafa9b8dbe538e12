"""Cheap remarks on a dataset before it is trained on, shared by strategies. No torch."""

from __future__ import annotations

from persona_lab.types import Dataset, FitSettings, Problem

FEW = 30
MANY_READINGS = 6


def data_problems(settings: FitSettings, dataset: Dataset | None) -> list[Problem]:
    """What speaks against training with these settings on this dataset; empty where nothing does, or without one."""
    if dataset is None:
        return []
    found = []
    count = len(dataset.of("train"))
    if count == 0:
        fix = "Import a dataset with replies of the character."
        found.append(Problem(message="There is no conversation to train on.", fix=fix))
    elif count < FEW:
        message = f"Only {count} conversations to train on: expect the voice at best, not the knowledge."
        found.append(Problem(message=message, fix=f"Collect at least {FEW}.", severity="warning"))
    if count and not dataset.of("validation"):
        message = "No validation conversations: the last weights will be kept, not the best."
        found.append(Problem(message=message, fix="Import more conversations.", severity="warning"))
    if settings.epochs > MANY_READINGS and count:
        message = f"{settings.epochs:g} readings of every conversation: a small model learns them by heart."
        found.append(Problem(message=message, fix="Use 1 to 3.", field="epochs", severity="warning"))
    return found
