"""The contract of every strategy, on a tiny model."""

from __future__ import annotations

from persona_lab.testing import Workshop, check_lightness, check_strategy


def test_soft_prompt(workshop: Workshop) -> None:
    check_strategy(workshop, "soft_prompt", {"epochs": 2, "samples": 0, "length": 4})


def test_nothing_heavy_is_imported_too_soon() -> None:
    check_lightness("soft_prompt")
