"""What a variant's training run left behind: loss curves, costs and the command that repeats it. Only reads."""

from __future__ import annotations

import json
import shlex
import statistics
from dataclasses import dataclass, field
from typing import Any

from persona_lab.events import Done, Step, Validation, read_events
from persona_lab.formats import upgraded
from persona_lab.home import Home
from persona_lab.types import Job, Variant


@dataclass(frozen=True)
class History:
    """Losses in nats a token over optimizer steps counted through all stages; `result` is the run's own summary."""

    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    tokens_per_second: float | None = None
    """Median over the steps of the training."""

    def cost(self, variant: Variant) -> dict[str, Any]:
        """Trainable parameters, seconds, peak memory, bytes on disk, tokens a second; None: was not recorded."""
        seconds = self.result.get("seconds") or {}
        free = variant.kind in ("base", "prompt")
        return {
            "variant": variant.id,
            "trainable_parameters": self.result.get("trainable_parameters", 0 if free else None),
            "seconds": seconds.get("total") if isinstance(seconds, dict) else None,
            "peak_memory_bytes": self.result.get("peak_memory_bytes"),
            "artifact_bytes": self.result.get("artifact_bytes", variant.bytes or (0 if free else None)),
            "tokens_per_second": self.tokens_per_second,
        }


def history_of(variant: Variant, home: Home) -> History:
    """Read a variant's run; empty where there is none (the base, or a run that was deleted)."""
    if not variant.run:
        return History()
    events, _ = read_events(home.run(variant.run) / "events.jsonl")
    train: dict[tuple[str, int], float] = {}  # a resumed run repeats steps: the last word counts
    validation: dict[tuple[str, int], float] = {}
    result: dict[str, Any] = {}
    speeds: list[float] = []
    for event in events:
        if isinstance(event, Step) and event.loss is not None:
            train[event.stage, event.step] = event.loss
            speeds += [event.tokens_per_second] if event.tokens_per_second else []
        elif isinstance(event, Validation):
            validation[event.stage, event.step] = event.loss
        elif isinstance(event, Done):
            result = event.result
    offsets = _stage_offsets([*train, *validation])
    speed = statistics.median(speeds) if speeds else None
    return History(_line(train, offsets), _line(validation, offsets), result, speed)


def repeat_command(variant: Variant, home: Home) -> str:
    """The command line that trains this variant again; empty for the base."""
    if variant.kind == "base":
        return ""
    if variant.merged:
        blend = ",".join(f"{name}={weight:g}" for name, weight in variant.merged["blend"].items())
        rank = ["--rank", str(variant.merged["rank"])] if variant.merged["rank"] else []
        return shlex.join(["persona-lab", "variants", "merge", variant.merged["from"], "--blend", blend, *rank])
    parts = ["persona-lab", "train", "--persona", variant.persona, "--strategy", variant.strategy]
    parts += ["--base", variant.compared_with, "--seed", str(variant.seed), "--name", variant.name]
    job = job_of(variant, home)
    if job is not None:
        settings = (
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in job.config.items()
        )
        parts += [part for setting in settings for part in ("--set", setting)]
    return shlex.join(parts)


def job_of(variant: Variant, home: Home) -> Job | None:
    """The job that made a variant, or None where its run is gone or unreadable."""
    path = home.run(variant.run) / "job.json"
    if not variant.run or not path.is_file():
        return None
    try:
        return upgraded("job", path.read_bytes(), Job)
    except (ValueError, OSError):
        return None


def _stage_offsets(keys: list[tuple[str, int]]) -> dict[str, int]:
    """Where each stage begins when stages are laid end to end, in the order they were first seen."""
    lengths: dict[str, int] = {}
    for stage, step in keys:
        lengths[stage] = max(lengths.get(stage, 0), step)
    offsets, start = {}, 0
    for stage, length in lengths.items():
        offsets[stage] = start
        start += length
    return offsets


def _line(points: dict[tuple[str, int], float], offsets: dict[str, int]) -> list[tuple[int, float]]:
    return sorted((offsets[stage] + step, loss) for (stage, step), loss in points.items())
