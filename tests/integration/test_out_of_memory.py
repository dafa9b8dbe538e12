"""The kernel ends a worker for want of memory, in a real control group; it is named, and started again smaller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from persona_lab.home import Home

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
LIMIT = 1200 * 2**20
"""Of page and worker. What they read of torch's libraries counts too, if nobody else had it in memory: half a gigabyte,
which must not end the worker before it eats."""
HUNGRY = '''
from pydantic import Field
from persona_lab.api import Estimate, Frozen, Strategy, hookimpl


class Hungry(Strategy):
    """Takes and touches 1 GB for each conversation of a batch but the first."""

    id = "hungry"
    title = "Hungry"
    summary = "Eats."

    class Config(Frozen):
        batch_size: int = Field(2, ge=1, le=8, description="How much it eats.")

    def estimate(self, config, base, dataset, machine):
        # as predictions go: much too little
        needed = 200_000_000 * config.batch_size
        return Estimate(trainable_parameters=0, peak_memory_bytes=needed, seconds=1, disk_bytes=1)

    def train(self, job, ctx):
        ctx.phase("Eating")
        held = bytearray(1_000_000_000 * (job.settings.batch_size - 1) + 1)
        held[::4096] = bytes(len(held[::4096]))
        return ctx.save_prompt(())


@hookimpl
def persona_lab_strategies():
    return [Hungry]
'''
PAGE = """
import json, os, sys
home, model, group = sys.argv[1:]
open(os.path.join(group, "cgroup.procs"), "w").write(str(os.getpid()))
from persona_lab.engine import Engine
with Engine.open(home) as engine:
    run = engine.wait(engine.train("tam", "hungry", base=model))
    again = engine.wait(engine.retry_smaller(run.id))
    print(json.dumps([run.model_dump(mode="json"), again.model_dump(mode="json")]))
"""


EATER = """
import os, sys
open(os.path.join(sys.argv[1], "cgroup.procs"), "w").write(str(os.getpid()))
held = bytearray(int(sys.argv[2]))
held[::4096] = bytes(len(held[::4096]))
"""


def _enforced(folder: Path) -> bool:
    """Whether the kernel really ends who takes more (some sandboxes only pretend to have control groups)."""
    eater = subprocess.run([sys.executable, "-c", EATER, str(folder), str(LIMIT + 200 * 2**20)], check=False)
    return eater.returncode == -9


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with a limit of memory; needs the right to make one."""
    versions = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
    for root, limit in versions.items():
        folder = root / f"persona-lab-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / limit).exists():
                (folder / limit).write_text(str(LIMIT))
                if _enforced(folder):
                    yield folder
                    return
        except OSError:
            continue
        finally:
            folder.rmdir()
    pytest.skip("no control group with a limit of memory can be made here")


@pytest.mark.slow
def test_a_worker_that_the_kernel_ends_is_named_and_started_smaller(
    ready_home: Home, tiny_model: Path, group: Path
) -> None:
    (ready_home.plugins / "hungry.py").write_text(HUNGRY)
    page = subprocess.run(
        [sys.executable, "-c", PAGE, str(ready_home.root), str(tiny_model), str(group)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert page.returncode == 0, page.stderr[-2000:]
    run, again = json.loads(page.stdout.splitlines()[-1])
    assert (run["status"], run["cause"]) == ("failed", "out_of_memory"), run
    assert run["phase"] == "Eating"
    assert "memory ran out" in run["message"]
    assert "--set batch_size=1" in run["fix"]
    assert f"persona-lab runs retry {run['id']}" in run["fix"]
    assert (again["status"], again["config"]) == ("done", {"batch_size": 1}), again
