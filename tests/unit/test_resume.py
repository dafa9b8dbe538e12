"""A run of any strategy that was stopped anywhere and resumed ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from persona_lab.errors import Cancelled, DiskFull
from persona_lab.models.weights import folder_bytes
from persona_lab.plugins import Plugins
from persona_lab.testing import Watcher, Workshop
from persona_lab.training.validation import validation_loss

FAST: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "samples": 1}
HYBRID: dict[str, Any] = {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "layers": 1, "samples": 1}
TOLERANCE = 1e-6
"""Of any weight: what is computed is the same, so what is left is rounding."""
# strategy, settings, the stage and step after which it is stopped
CASES = {
    "lora": ("lora", FAST, "train", 5),
    "lora with dropout": ("lora", FAST | {"dropout": 0.1}, "train", 8),
    "dora": ("lora", FAST | {"dora": True}, "train", 5),
    "qlora": ("qlora", FAST, "train", 5),
    "full": ("full", FAST | {"learning_rate": 1e-3}, "train", 5),
    "full, low memory": ("full", FAST | {"learning_rate": 1e-3, "low_memory": True}, "train", 5),
    "freeze": ("freeze", FAST | {"layers": 1}, "train", 5),
    "hybrid, first stage": ("hybrid", HYBRID, "lora", 5),
    "hybrid, first step of the second stage": ("hybrid", HYBRID, "layers", 1),
    "hybrid, second stage": ("hybrid", HYBRID, "layers", 5),
    "hybrid by gradients, second stage": ("hybrid", HYBRID | {"criterion": "sensitivity"}, "layers", 5),
    "hybrid by ablation, second stage": ("hybrid", HYBRID | {"criterion": "ablation"}, "layers", 5),
}


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.load()


@pytest.fixture
def train(tmp_path: Path, plugins: Plugins, tiny_model: Path) -> Callable[..., Any]:
    shop = Workshop(tmp_path, plugins, tiny_model)

    def go(strategy: str, run_id: str, settings: dict[str, Any], watcher: Watcher | None = None) -> Any:
        return shop.train(strategy, watcher, run_id, 6, **settings)

    return go


def tensors(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Everything that was saved."""
    folder = Path(result["artifact"]["path"])
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(train: Callable[..., Any], case: str) -> None:
    strategy, settings, stage, step = CASES[case]
    whole = train(strategy, "whole", settings)
    with pytest.raises(Cancelled):
        train(strategy, "stopped", settings, Watcher(stop_at=step, stage=stage))
    watcher = Watcher()
    resumed = train(strategy, "stopped", settings, watcher)
    expected, found = tensors(whole), tensors(resumed)
    assert set(found) == set(expected)
    assert expected
    for name, tensor in expected.items():
        assert float((found[name].float() - tensor.float()).abs().max()) <= TOLERANCE, name
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=TOLERANCE)
    assert resumed["checksums"] == whole["checksums"] or resumed["fingerprint"] == whole["fingerprint"]
    if strategy == "hybrid" and stage == "layers":
        assert {stage for _, stage in watcher.steps if stage} == {"layers"}  # the first stage is not done again
        details = [r["artifact"]["details"]["chosen"] for r in (whole, resumed)]
        assert details[0] == details[1]


def test_a_damaged_checkpoint_costs_steps_and_not_the_result(train: Callable[..., Any], tmp_path: Path) -> None:
    whole = train("lora", "whole", FAST)
    with pytest.raises(Cancelled):
        train("lora", "stopped", FAST, Watcher(stop_at=9, stage="train"))
    newest = sorted(tmp_path.rglob("runs/stopped/checkpoints/train/step-*"))[-1]
    (newest / "state.json").write_text(json.dumps({"step": 1}))
    watcher = Watcher()
    resumed = train("lora", "stopped", FAST, watcher)
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert any("is damaged (state.json" in said and "passed over" in said for said in watcher.said), watcher.said


def test_what_a_stopped_run_has_written_is_not_asked_for_again(
    train: Callable[..., Any], plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Cancelled):
        train("lora", "stopped", FAST, Watcher(stop_at=5, stage="train"))
    own = folder_bytes(next(tmp_path.rglob("runs/stopped/checkpoints")))
    part = plugins.get("strategy", "lora")
    estimate, free = part.estimate, 10**9
    needed = {"disk_bytes": free + own}
    monkeypatch.setattr(part, "estimate", lambda *asked: estimate(*asked).model_copy(update=needed))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DiskFull, match="MB of disk"):
        train("lora", "fresh", FAST)
    assert train("lora", "stopped", FAST)["artifact_bytes"] > 0


def test_scoring_after_a_stage_that_was_finished_before_takes_the_fast_path(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[str] = []

    def scored(model: Any, examples: Any, prefix: Any, path: Any, *rest: Any) -> float:
        paths.append(path.name)
        return validation_loss(model, examples, prefix, path, *rest)

    with pytest.raises(Cancelled):
        train("hybrid", "stopped", HYBRID, Watcher(stop_at=1, stage="layers"))
    next(tmp_path.rglob("runs/stopped/checkpoints/layers.json")).unlink()  # as if it was stopped while it was drawn
    monkeypatch.setattr("persona_lab.training.context.validation_loss", scored)
    train("hybrid", "stopped", HYBRID)
    assert set(paths) == {"packed"}
