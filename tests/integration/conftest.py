"""Fixtures for tests that run real workers: a home with a persona, a dataset and a tiny base model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from persona_lab.engine import Engine
from persona_lab.home import Home

SLOW_STRATEGY = '''
import time
from pydantic import Field
from persona_lab.api import Estimate, Frozen, Strategy, hookimpl


class Slow(Strategy):
    """Counts slowly, so that there is time to kill it."""

    id = "slow"
    title = "Slow"
    summary = "Counts."

    class Config(Frozen):
        steps: int = Field(40, ge=1, le=10000, description="How far it counts.")
        deaf: bool = Field(False, description="Does not look at the cancel flag.")

    def estimate(self, config, base, dataset, machine):
        return Estimate(trainable_parameters=0, peak_memory_bytes=1, seconds=1, disk_bytes=1)

    def train(self, job, ctx):
        ctx.phase("Counting", total=job.settings.steps)
        for number in range(1, job.settings.steps + 1):
            if not job.settings.deaf:
                ctx.step(number, job.settings.steps, loss=1.0 / number)
            time.sleep(0.05)
        return ctx.save_prompt(())


@hookimpl
def persona_lab_strategies():
    return [Slow]
'''


def rows(count: int = 24) -> list[dict[str, Any]]:
    """Conversations that are unlike each other."""
    things = ("kettle", "harbour", "violin", "orchard", "ladder", "pigeon", "engine", "lantern", "marble", "thimble")
    verbs = ("sings", "rusts", "floats", "argues", "glows", "sleeps")
    return [
        {
            "messages": [
                {"role": "user", "content": f"What about the {things[n % 10]} that {verbs[n % 6]} number {n}?"},
                {
                    "role": "assistant",
                    "content": f"Ah, {things[(n * 7) % 10]} {n}: it {verbs[(n * 5) % 6]}, friend {n * 31}.",
                },
            ]
        }
        for n in range(count)
    ]


@pytest.fixture
def ready_home(embedding_home: Home, tmp_path: Path) -> Home:
    """A home with persona `tam`, its dataset, and the strategy `slow` in its plugins folder."""
    home = embedding_home
    home.plugins.mkdir(exist_ok=True)
    (home.plugins / "slow.py").write_text(SLOW_STRATEGY)
    card = tmp_path / "tam.json"
    card.write_text(json.dumps({"name": "Tam", "description": "A mender of clocks."}))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows()))
    with Engine.open(home.root) as engine:
        engine.import_persona(card, "tam")
        engine.import_dataset(data, "tam")
    return home


@pytest.fixture
def engine(ready_home: Home) -> Iterator[Engine]:
    """An engine on `ready_home`."""
    with Engine.open(ready_home.root) as opened:
        yield opened


@pytest.fixture
def cli(home: Home) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `persona-lab ARGS --home HOME` as a user would."""

    def run(*arguments: str, home_folder: Path | None = None, timeout: float = 280, **environment: str) -> Any:
        command: Sequence[str] = [sys.executable, "-m", "persona_lab.cli", *arguments]
        return subprocess.run(
            [*command, "--home", str(home_folder or home.root)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | environment,
            check=False,
        )

    return run
