"""A run that cannot fit is stopped before it starts: real processes under a real limit of their address space."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.engine import Engine
from persona_lab.events import Failed, Phase, read_events
from persona_lab.home import Home
from persona_lab.jobs import read_job

resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not enforce RLIMIT_AS")

TIGHT, AMPLE = 1_350_000_000, 12_000_000_000
"""Bytes of address space: a worker can begin in the first, but not train; the second is enough."""
LOADING = "Loading the base model"


def limited(command: list[str], limit: int) -> subprocess.CompletedProcess[str]:
    """Run a command under a limit of its address space; what it starts inherits it."""

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    # one thread each: what is tested is memory, and stacks count
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        preexec_fn=set_limit,
        check=False,
    )


def train(home: Home, model: Path, limit: int, *more: str) -> subprocess.CompletedProcess[str]:
    """`persona-lab train` on the tiny model under a limit."""
    command = ["persona_lab.cli", "train", "--persona", "tam", "--strategy", "lora", "--base", str(model)]
    return limited([*command, "--set", "epochs=1", "--set", "samples=0", "--home", str(home.root), *more], limit)


def test_the_command_refuses_and_a_higher_limit_lets_it_start(ready_home: Home, tiny_model: Path) -> None:
    refused = train(ready_home, tiny_model, TIGHT)
    assert refused.returncode == 2, refused.stderr
    told = " ".join(refused.stderr.split())
    assert "LoRA was not started: it needs about" in told
    assert "GB are free" in told
    assert "--force" in told
    assert "Traceback" not in told
    assert not list(ready_home.root.glob("runs/*"))

    allowed = train(ready_home, tiny_model, AMPLE, "--json")
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads(allowed.stdout)["status"] == "done"


def test_the_plan_says_so_before_the_button(ready_home: Home, tiny_model: Path) -> None:
    command = ["persona_lab.cli", "plan", "--persona", "tam", "--base", str(tiny_model), "--json"]
    planned = limited([*command, "--home", str(ready_home.root)], TIGHT)
    assert planned.returncode == 0, planned.stderr
    rows = {row["strategy"]: row for row in json.loads(planned.stdout)}
    assert not rows["full"]["fits"]
    assert not rows["lora"]["fits"]
    assert "GB are free" in rows["lora"]["reason"]


@pytest.fixture
def worker_events(ready_home: Home, tiny_model: Path) -> Callable[..., Any]:
    """Runs a worker on the same job under a limit, as if memory had gone since it was queued; gives its events."""
    with Engine.open(ready_home.root) as engine:
        run = engine.wait(engine.train("tam", "lora", str(tiny_model), {"epochs": 1, "samples": 0}))
    assert run.status == "done", run.message
    job = read_job(ready_home.run(run.id))

    def work(name: str, limit: int, **changes: Any) -> list[Any]:
        folder = ready_home.run(name)
        folder.mkdir()
        (folder / "job.json").write_text(job.model_copy(update={"id": name} | changes).model_dump_json())
        limited(["persona_lab.worker", str(folder)], limit)
        return read_events(folder / "events.jsonl")[0]

    return work


def test_the_worker_refuses_before_it_loads(worker_events: Callable[..., Any]) -> None:
    events = worker_events("tight", TIGHT)
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.cause == "will_not_fit", failed
    assert LOADING not in [event.title for event in events if isinstance(event, Phase)]

    tried = worker_events("forced", TIGHT, force=True)
    assert LOADING in [event.title for event in tried if isinstance(event, Phase)]
    assert worker_events("ample", AMPLE)[-1].kind == "done"
