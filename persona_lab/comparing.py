"""Two runs side by side: what was set differently, what came of it, and both curves. Reads events, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.events import AnyEvent, Step, Validation
from persona_lab.types import RunView

SET = ("persona", "strategy", "base", "dataset", "seed")
"""Of a run itself; its strategy's settings come after these."""
OUTCOMES = (
    ("status", ("status",)),
    ("validation loss before", ("loss", "validation_before")),
    ("validation loss after", ("loss", "validation_after")),
    ("training loss", ("loss", "train")),
    ("seconds", ("seconds", "total")),
    ("peak memory, bytes", ("peak_memory_bytes",)),
    ("numbers trained", ("trainable_parameters",)),
    ("bytes on disk", ("artifact_bytes",)),
)
Points = list[tuple[float, float]]


def settings_of(run: RunView) -> dict[str, Any]:
    """Everything a run was started with, flat."""
    return {name: getattr(run, name) for name in SET} | run.config


def differences(a: RunView, b: RunView) -> list[dict[str, Any]]:
    """What was set differently: `setting`, `a`, `b`; None where a strategy has no such setting."""
    left, right = settings_of(a), settings_of(b)
    names = list(dict.fromkeys([*left, *right]))
    return [
        {"setting": name, "a": left.get(name), "b": right.get(name)}
        for name in names
        if left.get(name) != right.get(name) or (name in left) != (name in right)
    ]


def outcomes(a: RunView, b: RunView) -> list[dict[str, Any]]:
    """What came of them: `measure`, `a`, `b`; measures that neither has are left out."""
    rows = [{"measure": name, "a": _at(a, path), "b": _at(b, path)} for name, path in OUTCOMES]
    return [row for row in rows if row["a"] is not None or row["b"] is not None]


def _at(run: RunView, path: Sequence[str]) -> Any:
    value: Any = {**run.result, "status": run.status}
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def curves_of(events: Sequence[AnyEvent]) -> dict[str, Points]:
    """(step, loss) of training and validation; stages end to end, and a step done twice counts once."""
    train: dict[tuple[str, int], float] = {}
    validation: dict[tuple[str, int], float] = {}
    stages: list[str] = []
    for event in events:
        if isinstance(event, Step | Validation) and event.loss is not None:
            if event.stage not in stages:
                stages.append(event.stage)
            (train if isinstance(event, Step) else validation)[event.stage, event.step] = event.loss
    begin, found = 0.0, {"train": [], "validation": []}  # type: ignore[var-annotated]
    for stage in stages:
        for name, kept in (("train", train), ("validation", validation)):
            found[name] += [(begin + step, loss) for (where, step), loss in sorted(kept.items()) if where == stage]
        begin = max((x for points in found.values() for x, _ in points), default=begin)
    return found


def compared(a: RunView, b: RunView, events_a: Sequence[AnyEvent], events_b: Sequence[AnyEvent]) -> dict[str, Any]:
    """What `runs compare --json` prints and the page shows."""
    same = [name for name, value in settings_of(a).items() if settings_of(b).get(name, object()) == value]
    return {
        "a": {"id": a.id, "name": a.name, "status": a.status, "created": a.created},
        "b": {"id": b.id, "name": b.name, "status": b.status, "created": b.created},
        "differences": differences(a, b),
        "same": same,
        "outcomes": outcomes(a, b),
        "curves": {"a": curves_of(events_a), "b": curves_of(events_b)},
    }
