"""Which formats a variant can be taken away in, and how large each would be. Cheap; no torch."""

from __future__ import annotations

from typing import Any

from persona_lab.types import BaseModelInfo, Frozen, Problem, Variant


class ExportChoice(Frozen):
    """One format for one variant. `bytes`: about how large; None: its plugin does not say."""

    format: str
    title: str
    summary: str
    possible: bool
    bytes: int | None
    problems: tuple[Problem, ...] = ()


def export_choices(plugins: Any, variant: Variant, base: BaseModelInfo) -> list[ExportChoice]:
    """Every exporter's view of this variant, in the exporters' order; what is impossible last.

    Raises:
        PluginFailed
    """
    found = []
    for part in plugins.all("exporter"):
        settings = part.Config()
        problems = plugins.guarded("exporter", part.id, part.check, variant)
        problems += plugins.guarded("exporter", part.id, part.check_base, variant, base, settings)
        possible = not any(problem.severity == "error" for problem in problems)
        size = 0
        if possible:
            size = plugins.guarded("exporter", part.id, part.estimate_bytes, variant, base, settings)
        found.append(
            ExportChoice(
                format=part.id,
                title=part.title,
                summary=part.summary,
                possible=possible,
                bytes=size or None,
                problems=tuple(problems),
            )
        )
    return sorted(found, key=lambda choice: not choice.possible)
