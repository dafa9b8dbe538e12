"""Plans that learn: steps measured in real processes on a tiny model, and runs compared with what was predicted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from persona_lab.engine import Engine
from persona_lab.home import Home
from persona_lab.models.calibration import measured_for
from persona_lab.models.machine import worker_machine


def test_calibrate_then_plan_then_train(
    cli: Callable[..., subprocess.CompletedProcess[str]], ready_home: Home, tiny_model: Path
) -> None:
    asked = ("plan", "--persona", "tam", "--strategy", "lora", "--base", str(tiny_model), "--json")
    (before,) = json.loads(cli(*asked).stdout)
    measured = cli(*asked, "--calibrate")
    assert measured.returncode == 0, measured.stderr
    (after,) = json.loads(measured.stdout)
    assert after["uncertainty"] < before["uncertainty"]
    assert "measured here" in after["reason"]

    with Engine.open(ready_home.root) as engine:
        base = engine.base_model(str(tiny_model))
        run = engine.wait(engine.train("tam", "lora", str(tiny_model), {"epochs": 1}))
        assert run.status == "done", run.message
        predicted, result = run.result["predicted"], run.result
    # a tiny model is mostly start-up, so only the order of magnitude is asked of its time
    assert 0.2 < predicted["seconds"] / result["seconds"]["total"] < 5
    assert 0.6 < predicted["peak_memory_bytes"] / result["peak_memory_bytes"] < 1.6

    known = measured_for(ready_home, worker_machine(ready_home.root), base)
    assert known.rates is not None
    (residual,) = known.residuals
    assert residual.strategy == "lora"
    assert residual.memory_bytes == result["peak_memory_bytes"]
