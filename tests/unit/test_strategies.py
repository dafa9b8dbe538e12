"""The built-in strategies: settings that explain themselves, estimates without torch, and real runs on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.api import Strategy
from persona_lab.datasets.store import save_dataset
from persona_lab.errors import BadInput, BadSetting, Cancelled, PluginFailed, UnknownName
from persona_lab.events import Checkpoint, Sample, Validation
from persona_lab.home import Home
from persona_lab.plugins import Plugins
from persona_lab.training.run import run
from persona_lab.types import BaseModelInfo, Dataset, Job, Machine, now

IDS = ["prompt", "lora", "qlora", "full", "hybrid"]
FAST = {"epochs": 2, "learning_rate": 5e-3, "samples": 2}
CONFIG: dict[str, dict[str, Any]] = {
    "prompt": {"count": 2},
    "lora": FAST,
    "qlora": FAST,
    "full": FAST | {"learning_rate": 2e-3},
    "hybrid": {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "layers": 1},
}
CPU = Machine(
    device="cpu",
    device_name="a CPU",
    cores=2,
    memory_bytes=16 << 30,
    memory_free_bytes=12 << 30,
    disk_free_bytes=99 << 30,
    bf16=True,
)
STARTER = BaseModelInfo(
    id="starter",
    key="starter",
    name="SmolLM2-135M-Instruct",
    path="",
    ready=True,
    parameters=134_515_008,
    config={
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
)


class Watcher:
    """A reporter that keeps everything; raises Cancelled at a step if told to."""

    def __init__(self, stop_at: int = 0, stage: str = "") -> None:
        self.stop_at, self.stage = stop_at, stage
        self.phases: list[str] = []
        self.steps: list[tuple[int, str]] = []
        self.said: list[str] = []
        self.events: list[Any] = []

    def phase(self, title: str, total: int | None = None) -> None:
        self.phases.append(title)

    def step(self, step: int, total: int, **values: Any) -> None:
        stage = str(values.get("stage", ""))
        self.steps.append((step, stage))
        if self.stop_at and step == self.stop_at and stage == self.stage:
            raise Cancelled("Stopped on request.")

    def log(self, message: str, level: str = "info") -> None:
        self.said.append(message)

    def emit(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.load()


@pytest.fixture
def train(
    home: Home,
    plugins: Plugins,
    tiny_model: Path,
    persona_factory: Callable[..., Any],
    conversations_factory: Callable[..., Any],
) -> Callable[..., dict[str, Any]]:
    """Runs a strategy on the tiny model, as the worker does."""

    def go(strategy: str, watcher: Watcher | None = None, run_id: str = "", validation: int = 6, **config: Any) -> Any:
        conversations = [
            c.model_copy(update={"split": "validation" if i < validation else "train"})
            for i, c in enumerate(conversations_factory(28))
        ]
        dataset = Dataset(id="d", persona="tamsin", version=1, name="made up", conversations=tuple(conversations))
        save_dataset(home.root / "d.jsonl", dataset)
        job = Job(
            id=run_id or f"run-{strategy}",
            kind="train",
            name="test",
            home=str(home.root),
            created=now(),
            persona=persona_factory(),
            dataset=str(home.root / "d.jsonl"),
            base=str(tiny_model),
            strategy=strategy,
            config=config or CONFIG.get(strategy, {}),
            seed=4,
        )
        return run(job, watcher or Watcher(), plugins)

    return go


@pytest.mark.parametrize("strategy", IDS)
def test_settings_explain_themselves(strategy: str, plugins: Plugins) -> None:
    part: Strategy = plugins.get("strategy", strategy)
    for name, field in part.Config.model_json_schema()["properties"].items():
        assert field["description"].endswith("."), name
        assert "default" in field, name
        assert {"minimum", "exclusiveMinimum"} & field.keys(), name
    assert part.title
    assert part.summary.endswith(".")


@pytest.mark.parametrize("strategy", IDS)
def test_estimates_are_plausible(strategy: str, plugins: Plugins) -> None:
    part = plugins.get("strategy", strategy)
    estimate = part.estimate(part.Config(), STARTER, None, CPU)
    assert estimate.peak_memory_bytes > 134_515_008
    wanted = {"prompt": 0, "lora": 4_884_480, "qlora": 4_884_480, "full": 134_515_008}
    if strategy in wanted:
        assert estimate.trainable_parameters == wanted[strategy]
    else:
        assert 25e6 < estimate.trainable_parameters < 32e6  # 8 of 30 layers


def test_estimates_and_checks_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from persona_lab.plugins import Plugins\n"
        "from persona_lab.types import BaseModelInfo, Machine\n"
        f"base = BaseModelInfo.model_validate_json({STARTER.model_dump_json()!r})\n"
        f"machine = Machine.model_validate_json({CPU.model_dump_json()!r})\n"
        "for part in Plugins.load().all('strategy'):\n"
        "    part.check(part.Config(), None, None, machine)\n"
        "    part.estimate(part.Config(), base, None, machine)\n"
        "assert not {'torch', 'transformers', 'peft', 'bitsandbytes'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_qlora_warns_on_a_cpu(plugins: Plugins) -> None:
    part = plugins.get("strategy", "qlora")
    problems = part.check(part.Config(), None, None, CPU)
    assert [p.severity for p in problems] == ["warning"]
    assert "lora" in problems[0].fix


@pytest.mark.parametrize("strategy", ["lora", "qlora", "full", "hybrid"])
def test_every_strategy_learns_and_leaves_an_artifact(strategy: str, train: Callable[..., Any]) -> None:
    watcher = Watcher()
    result = train(strategy, watcher)
    loss, artifact = result["loss"], result["artifact"]
    assert loss["validation_after"] < loss["validation_before"] - 0.02
    assert result["changed"].startswith("Yes:")
    assert "its weights moved by" in result["changed"]
    assert result["examples"] == 22
    assert result["supervised_tokens"] > 200
    assert 0 < result["trainable_parameters"] <= result["total_parameters"]
    assert result["artifact_bytes"] > 1000
    assert result["peak_memory_bytes"] > 10_000_000
    assert len(result["fingerprint"]) == 12
    assert result["system"]
    assert set(result["seconds"]) == {"total", "load", "train", "save"}
    assert artifact["kind"] == ("adapter" if "lora" in strategy else "weights")
    assert artifact["quantization"] == ("nf4" if strategy == "qlora" else None)
    json.dumps(result, allow_nan=False)
    files = {path.name for path in Path(artifact["path"]).iterdir()}
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    kinds = {type(event) for event in watcher.events}
    assert kinds >= {Validation, Sample}
    assert not (Path(artifact["path"]).parent / "checkpoints").exists()


def test_an_adapter_names_its_base_and_no_path_of_this_machine(train: Callable[..., Any], tiny_model: Path) -> None:
    folder = Path(train("lora")["artifact"]["path"])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_model.name
    assert str(tiny_model.parent) not in (folder / "adapter_config.json").read_text()


def test_weights_load_as_a_base_model_of_their_own(train: Callable[..., Any], home: Home, tiny_model: Path) -> None:
    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.inference.loading import load_model
    from persona_lab.models import registry

    folder = Path(train("hybrid")["artifact"]["path"])
    info = registry.ensure(str(folder), home, Watcher())
    assert info.ready
    assert load_model(info, CPU).dtype.itemsize == 2
    assert ChatRenderer(folder).pad_id == ChatRenderer(tiny_model).pad_id
    assert str(tiny_model) not in (folder / "config.json").read_text()


def test_prompt_trains_nothing_and_says_what_it_measured(train: Callable[..., Any]) -> None:
    result = train("prompt")
    assert result["artifact"]["kind"] == "prompt"
    assert len(result["artifact"]["examples"]) == 2
    assert result["trainable_parameters"] == 0
    assert result["loss"]["train"] is None
    assert result["loss"]["validation_before"] > 0
    assert result["loss"]["validation_after"] > 0


def test_hybrid_keeps_its_ranking_and_trains_only_the_top(train: Callable[..., Any]) -> None:
    result = train("hybrid")
    details = result["artifact"]["details"]
    assert set(details["layers"]) == {"0", "1"}
    assert details["chosen"] == [int(max(details["layers"], key=details["layers"].get))]
    assert result["trainable_parameters"] < result["total_parameters"] / 2
    assert result["loss"]["validation_after"] <= details["after_lora"] + 1e-3


def test_hybrid_resumes_in_its_second_stage(train: Callable[..., Any]) -> None:
    whole = train("hybrid", run_id="whole")
    with pytest.raises(Cancelled):
        train("hybrid", Watcher(stop_at=5, stage="layers"), run_id="killed")
    watcher = Watcher()
    resumed = train("hybrid", watcher, run_id="killed")
    assert {stage for _, stage in watcher.steps} == {"layers"}
    assert watcher.steps[0] == (4, "layers")
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert resumed["loss"] == whole["loss"]


def test_checkpoints_are_announced_and_survive_a_cancel(train: Callable[..., Any]) -> None:
    watcher = Watcher(stop_at=5, stage="train")
    with pytest.raises(Cancelled):
        train("lora", watcher)
    announced = [event for event in watcher.events if isinstance(event, Checkpoint)]
    assert [event.step for event in announced] == [3]
    assert (Path(announced[0].path) / "valid.json").exists()


def test_without_validation_rows_losses_are_not_claimed(train: Callable[..., Any]) -> None:
    result = train("lora", validation=0, **FAST)
    assert result["loss"]["validation_before"] is None
    assert result["loss"]["validation_after"] is None
    assert "no validation conversations" in result["changed"]


def test_bad_settings_are_all_named(train: Callable[..., Any]) -> None:
    with pytest.raises(BadSetting) as caught:
        train("lora", rank=0, epochs=-1, colour="red")
    assert {field for field, _ in caught.value.problems} == {"rank", "epochs", "colour"}
    with pytest.raises(UnknownName, match="lora"):
        train("lara")


def test_data_that_cannot_be_trained_on_is_refused(train: Callable[..., Any]) -> None:
    with pytest.raises((BadInput, BadSetting), match="no conversation"):
        train("lora", validation=28, **FAST)


def test_a_strategy_that_raises_is_named(train: Callable[..., Any], plugins: Plugins) -> None:
    class Broken(type(plugins.get("strategy", "lora"))):  # type: ignore[misc]
        id = "broken"

        def train(self, job: Any, ctx: Any) -> Any:
            raise KeyError("a fault of the plugin")

    plugins.parts["strategy", "broken"] = Broken()
    try:
        with pytest.raises(PluginFailed, match="broken"):
            train("broken")
    finally:
        del plugins.parts["strategy", "broken"]


def test_a_long_run_on_an_unknown_machine_measures_first(
    train: Callable[..., Any], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona_lab.models import registry
    from persona_lab.models.calibration import measured_for
    from persona_lab.models.machine import worker_machine
    from persona_lab.training import forecast

    monkeypatch.setattr(forecast, "WORTH_MEASURING", 0.0)
    watcher = Watcher()
    result = train("lora", watcher)
    assert watcher.phases.index("Measuring a few steps on this machine") < watcher.phases.index("Training")
    assert any("By steps measured on this machine" in line for line in watcher.said)
    base = registry.describe(result["base"], home)
    known = measured_for(home, worker_machine(home.root), base)
    assert known.rates is not None
    assert known.same_base
    assert len(known.residuals) == 1
    train("lora", again := Watcher(), run_id="again")
    assert "Measuring a few steps on this machine" not in again.phases


def test_a_run_that_stopped_early_is_compared_with_the_steps_it_took() -> None:
    from persona_lab.training.forecast import executed_seconds
    from persona_lab.types import Artifact, Estimate, FitResult

    raw = Estimate(
        trainable_parameters=1,
        peak_memory_bytes=1,
        seconds=110,
        disk_bytes=1,
        parts={"load": 8.0, "check": 1.0, "save": 1.0, "train": 100.0},
        steps=50,
    )
    fit = FitResult(
        steps=25,
        examples=1,
        supervised_tokens=1,
        train_loss=1,
        validation_before=1,
        validation_after=1,
        best_step=1,
        seconds=1,
        stopped_early=True,
    )
    assert executed_seconds(raw, Artifact(kind="adapter", path="", fit=fit)) == 60
    assert executed_seconds(raw, Artifact(kind="prompt", path="")) == 110
