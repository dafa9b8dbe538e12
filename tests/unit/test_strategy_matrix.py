"""The one matrix that every strategy is in: built-in, and a third party's. A new one joins with a line in CASES.

A package of your own joins from its own tests: `persona_lab.testing.check_strategy` runs the same checks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from persona_lab.home import Home
from persona_lab.inference.trait_files import KeptTrait, kept_path, write_kept
from persona_lab.models.weights import fingerprint
from persona_lab.plugins import Plugins
from persona_lab.testing import (
    CHECKS,
    Workshop,
    check_estimate,
    check_lightness,
    check_settings,
    check_strategy,
)
from persona_lab.traits import library
from persona_lab.types import TraitCalibration

EXAMPLE = Path(__file__).resolve().parents[1] / "example_plugin" / "src" / "persona_lab_example" / "good.py"
FAST = {"epochs": 2, "learning_rate": 5e-3, "samples": 1}
FULL = FAST | {"learning_rate": 2e-3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # name of the case -> (strategy, settings that learn something on 22 conversations in at least 6 steps)
    "prompt": ("prompt", {"count": 2}),
    "prompt-fixed": ("prompt", {"count": 2, "choose": "fixed"}),
    "lora": ("lora", FAST),
    "lora-attention-rslora": ("lora", FAST | {"targets": "attention", "rslora": True, "alpha": 8}),
    "lora-dora": ("lora", FAST | {"dora": True}),
    "lora-pissa": ("lora", FAST | {"initialisation": "pissa", "learning_rate": 1e-3, "rank": 4, "alpha": 4}),
    "lora-eva": ("lora", FAST | {"initialisation": "eva", "rank": 4, "alpha": 8}),
    "qlora": ("qlora", FAST),
    "qlora-single": ("qlora", FAST | {"double_quantisation": False}),
    "freeze": ("freeze", FULL),
    "full": ("full", FULL),
    "hybrid": ("hybrid", {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "layers": 1}),
    "hybrid-ablation": ("hybrid", {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "criterion": "ablation"}),
    "hybrid-sensitivity": ("hybrid", {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "criterion": "sensitivity"}),
    "hybrid-benefit": ("hybrid", {"lora_learning_rate": 5e-3, "learning_rate": 2e-3, "criterion": "benefit"}),
    "continue": ("continue", FAST | {"learning_rate": 2e-3}),
    "full-low-memory": ("full", FULL | {"low_memory": True}),
    "foundation": ("foundation", FAST | {"corpus_learning_rate": 1e-3}),
    "aspects": ("aspects", FAST),
    "steer": ("steer", {"traits": "grumpy=60,archaic=-30"}),
    "first_lines": ("first_lines", {}),
}


@pytest.fixture(scope="module")
def plugins_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugins folder with the third party's file in it."""
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copyfile(EXAMPLE, folder / "third_party.py")
    return folder


@pytest.fixture(scope="module")
def shop(
    plugins_folder: Path, tiny_model: Path, embedding_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("shop"), Plugins.load(plugins_folder), tiny_model)
    made.home.model("x").parent.mkdir(parents=True)
    shutil.copytree(embedding_model, made.home.model(embedding_model.name))
    for number, trait in enumerate(("grumpy", "archaic")):
        _computed(made.home, tiny_model, trait, number)
    return made


def _computed(home: Home, model: Path, trait_id: str, seed: int) -> None:
    """A trait that is there for the model already: on an untrained one none could be calibrated."""
    vectors = {layer: numpy.random.default_rng(seed).normal(size=64).astype(numpy.float32) for layer in (0, 1)}
    calibration = TraitCalibration(
        layers=(0, 1), towards=2.0, away=2.0, unsteered_bits_per_byte=1.0, unsteered_repetition=0.0
    )
    kept = KeptTrait(library.trait(home, trait_id), calibration, vectors)
    write_kept(kept_path(home, trait_id, fingerprint(model)), kept)


def test_every_strategy_is_in_the_matrix(shop: Workshop) -> None:
    assert {part.id for part in shop.plugins.all("strategy")} == {strategy for strategy, _ in CASES.values()}


@pytest.mark.parametrize("strategy", sorted({strategy for strategy, _ in CASES.values()}))
def test_settings_and_lightness(strategy: str, shop: Workshop, plugins_folder: Path) -> None:
    check_settings(shop, strategy)
    check_lightness(strategy, plugins_folder)


@pytest.mark.parametrize("case", CASES)
def test_estimate(case: str, shop: Workshop) -> None:
    check_estimate(shop, *CASES[case])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_strategy(check: Callable[..., None], case: str, shop: Workshop) -> None:
    check(shop, *CASES[case], case)


def test_whole_weights_are_gone_on_from(shop: Workshop) -> None:
    shop.whole("freeze", FULL, "freeze")
    settings = FULL | {"variant": "whole-freeze", "replay": 0.5}
    result = shop.whole("continue", settings, "continue-weights")
    assert result["artifact"]["kind"] == "weights"
    for check in CHECKS:
        check(shop, "continue", settings, "continue-weights")


def test_the_checks_notice(shop: Workshop, plugins_folder: Path, tmp_path: Path) -> None:
    """A strategy whose settings explain nothing, and one that swallows a stop, fail."""
    (tmp_path / "bad.py").write_text(
        "from persona_lab.api import Estimate, Frozen, Strategy, hookimpl\n"
        "class Bad(Strategy):\n"
        "    id, title, summary = 'bad', 'Bad', 'Bad.'\n"
        "    class Config(Frozen):\n"
        "        size: int = 1\n"
        "    def estimate(self, config, base, dataset, machine):\n"
        "        import torch\n"
        "        return Estimate(trainable_parameters=0, peak_memory_bytes=10**8, seconds=1, disk_bytes=0)\n"
        "    def train(self, job, ctx):\n"
        "        return ctx.save_prompt(())\n"
        "@hookimpl\n"
        "def persona_lab_strategies():\n"
        "    return [Bad]\n"
    )
    bad = Workshop(tmp_path / "shop", Plugins.load(tmp_path), shop.base)
    with pytest.raises(AssertionError, match="size needs"):
        check_strategy(bad, "bad")
    with pytest.raises(AssertionError, match="imports"):
        check_lightness("bad", tmp_path)
