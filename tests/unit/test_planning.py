"""The plan: what fits, what would make it fit, which strategy comes first and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from persona_lab.advisor import FEW, Advisor, Outcome, outcomes_of, packaged_evidence
from persona_lab.errors import BadSetting, WillNotFit
from persona_lab.planning import plan_strategies
from persona_lab.plugins import Plugins
from persona_lab.training.remedies import memory_available, refuse_misfit
from persona_lab.types import BaseModelInfo, Dataset, Machine, Persona, PlanRow

GIB = 1 << 30
CPU = Machine(
    device="cpu", device_name="test", cores=2, memory_bytes=8 << 30, memory_free_bytes=8 << 30,
    disk_free_bytes=1 << 40, bf16=True,
)  # fmt: skip
BASE = BaseModelInfo(
    id="starter", key="starter", name="starter", path="/none", ready=True, parameters=134_515_008,
    architecture="LlamaForCausalLM",
    config={
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    """The built-in plugins."""
    return Plugins.load()


@pytest.fixture
def persona(persona_factory: Callable[..., Persona]) -> Persona:
    """Somebody."""
    return persona_factory()


def data(conversations_factory: Callable[..., Any], count: int) -> Dataset:
    """A dataset of so many training conversations."""
    rows = conversations_factory(count, "train") + [
        c.model_copy(update={"id": f"v{i}"}) for i, c in enumerate(conversations_factory(4, "validation"))
    ]
    return Dataset(id="d", persona="tamsin", version=1, name="d", conversations=tuple(rows))


@pytest.fixture
def rows_of(plugins: Plugins, persona: Persona, conversations_factory: Callable[..., Any]) -> Callable[..., Any]:
    """Plans for a dataset of `count` conversations on a machine with so much free memory."""

    def plan(count: int = 40, free: float = 20 * GIB, strategy: str = "", advisor: Any = None, **on: Any) -> Any:
        machine = CPU.model_copy(update={"memory_free_bytes": int(free)} | on)
        parts = [plugins.get("strategy", strategy)] if strategy else plugins.all("strategy")
        base: BaseModelInfo = BASE
        dataset = data(conversations_factory, count)
        return plan_strategies(plugins, parts, persona, dataset, base, machine, {}, bool(strategy), advisor)

    return plan


def test_every_row_has_the_promised_keys(rows_of: Callable[..., list[PlanRow]]) -> None:
    promised = {
        "strategy", "fits", "rank", "reason", "trainable_parameters", "peak_memory_bytes", "seconds", "disk_bytes",
        "uncertainty", "evidence", "recommended", "changes", "problems",
    }  # fmt: skip
    rows = rows_of()
    assert all(promised <= row.model_dump().keys() for row in rows)
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    assert [row.recommended for row in rows] == [True] + [False] * (len(rows) - 1)


# --- memory ---------------------------------------------------------------------------------------


def test_what_would_fit_is_offered_and_fits(rows_of: Callable[..., list[PlanRow]]) -> None:
    (usual,) = rows_of(strategy="full")
    free = 0.98 * usual.peak_memory_bytes / usual.memory_uncertainty  # not even at the lower end of its bar
    (full,) = rows_of(strategy="full", free=free)
    assert not full.fits
    assert full.changes
    assert all(change.peak_memory_bytes <= 0.9 * free for change in full.changes)
    assert "lora" in [change.strategy for change in full.changes]
    problem = next(p for p in full.problems if p.severity == "error")
    assert "What would fit: " in problem.fix
    assert "--strategy lora" in problem.fix


def test_the_least_harm_comes_first(rows_of: Callable[..., list[PlanRow]]) -> None:
    (usual,) = rows_of(strategy="lora")
    free = usual.peak_memory_bytes * 0.98
    (lora,) = rows_of(strategy="lora", free=free)
    assert lora.fits  # it may just fit: a warning
    assert [p.severity for p in lora.problems if "memory" in p.message] == ["warning"]
    assert lora.changes[0].strategy == "lora"
    assert lora.changes[0].set == {"checkpointing": "on"}


def test_nothing_helps_a_base_that_is_too_large(rows_of: Callable[..., list[PlanRow]]) -> None:
    (lora,) = rows_of(strategy="lora", free=0.2 * GIB)
    assert not lora.fits
    assert lora.changes == ()
    assert "smaller base model" in lora.problems[-1].fix


def test_only_a_gpu_is_offered_four_bits(rows_of: Callable[..., list[PlanRow]]) -> None:
    (lora,) = rows_of(strategy="lora", free=1.0 * GIB)
    assert "qlora" not in [change.strategy for change in lora.changes]
    gpu = CPU.model_copy(update={"device": "cuda", "accelerator_bytes": 3 * GIB})
    assert memory_available(gpu) == 3 * GIB


def test_low_memory_and_8_bit_moments_are_refused_before_anything_starts(
    plugins: Plugins, persona: Persona, conversations_factory: Callable[..., Any]
) -> None:
    parts, dataset = [plugins.get("strategy", "full")], data(conversations_factory, 40)
    both = {"low_memory": True, "optimizer": "adamw_8bit"}
    (row,) = plan_strategies(plugins, parts, persona, dataset, BASE, CPU, both, True)
    assert not row.fits
    assert "moments of its own" in row.reason


def test_a_misfit_is_refused_with_what_would_fit(
    plugins: Plugins, persona: Persona, conversations_factory: Callable[..., Any]
) -> None:
    part = plugins.get("strategy", "full")
    dataset = data(conversations_factory, 40)

    def start(free: float) -> Any:
        machine = CPU.model_copy(update={"memory_free_bytes": int(free)})
        return refuse_misfit(plugins, part, part.Config(), persona, BASE, dataset, machine)

    with pytest.raises(WillNotFit) as caught:
        start(2 * GIB)
    assert caught.value.exit_code == 2
    assert "2.0 GB are free" in caught.value.message
    assert "--force" in caught.value.fix
    assert start(8 * GIB).peak_memory_bytes > 2 * GIB


# --- advice ---------------------------------------------------------------------------------------


def test_few_rows_need_no_training(rows_of: Callable[..., list[PlanRow]]) -> None:
    first = rows_of(count=FEW - 1)[0]
    assert first.strategy == "prompt"
    assert "too little to train on" in first.reason
    reasons = {row.strategy: row.reason for row in rows_of(count=FEW - 1)}
    assert "too few" in reasons["lora"]
    assert "too few" not in reasons["continue"]  # the variant knows more
    assert rows_of(count=40)[0].strategy == "lora"


def test_a_time_budget_is_kept(rows_of: Callable[..., list[PlanRow]]) -> None:
    rows = rows_of(count=200, advisor=Advisor(minutes=0.6))
    assert rows[0].strategy == "prompt"
    late = next(row for row in rows if row.strategy == "lora")
    assert "more than the 0.6 you have" in late.reason
    assert rows[0].recommended


def test_what_takes_too_long_is_not_recommended_and_the_soonest_comes_first(
    rows_of: Callable[..., list[PlanRow]],
) -> None:
    rows = rows_of(count=200, advisor=Advisor(minutes=0.01))
    assert not any(row.recommended for row in rows)
    usable = [row.seconds for row in rows if row.fits]
    assert usable == sorted(usable)


def test_a_setting_that_no_strategy_has_is_refused(
    plugins: Plugins, persona: Persona, conversations_factory: Callable[..., Any]
) -> None:
    dataset = data(conversations_factory, 40)
    with pytest.raises(BadSetting, match="did you mean 'rank'"):
        plan_strategies(plugins, plugins.all("strategy"), persona, dataset, BASE, CPU, {"rnak": "3"}, False)
    rows = plan_strategies(plugins, plugins.all("strategy"), persona, dataset, BASE, CPU, {"rank": "3"}, False)
    assert len(rows) == len(plugins.all("strategy"))


def test_a_setting_that_one_strategy_refuses_hides_no_other(
    plugins: Plugins, persona: Persona, conversations_factory: Callable[..., Any]
) -> None:
    dataset = data(conversations_factory, 40)
    rows = plan_strategies(plugins, plugins.all("strategy"), persona, dataset, BASE, CPU, {"rank": "512"}, False)
    assert len(rows) == len(plugins.all("strategy"))
    fits = {row.strategy: row.fits for row in rows}
    assert fits["lora"]
    assert not fits["aspects"]
    assert "rank" in next(row.reason for row in rows if row.strategy == "aspects")
    with pytest.raises(BadSetting, match="rank"):
        plan_strategies(plugins, plugins.all("strategy"), persona, dataset, BASE, CPU, {"rank": "0"}, False)


def test_a_base_that_is_not_fetched_yet_is_taken_to_be_as_large_for_every_strategy(
    plugins: Plugins, persona: Persona, conversations_factory: Callable[..., Any]
) -> None:
    hub = BASE.model_copy(update={"parameters": 0, "config": {}, "ready": False})
    found = {
        name: plan_strategies(
            plugins, [plugins.get("strategy", name)], persona, data(conversations_factory, 40), hub, CPU, {}, True
        )[0]
        for name in ("lora", "freeze", "full")
    }
    assert found["lora"].peak_memory_bytes < found["freeze"].peak_memory_bytes < found["full"].peak_memory_bytes
    assert found["freeze"].trainable_parameters < found["full"].trainable_parameters == 500_000_000


def test_without_a_gpu_qlora_comes_last_and_says_why(rows_of: Callable[..., list[PlanRow]]) -> None:
    rows = rows_of()
    last = [row for row in rows if row.fits][-1]
    assert last.strategy == "qlora"
    assert "Without a graphics card" in last.reason


def test_packaged_evidence_is_what_was_measured(rows_of: Callable[..., list[PlanRow]]) -> None:
    import json
    import runpy
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    made = runpy.run_path(str(root / "benchmarks" / "evidence.py"))["evidence"]
    measured = made(json.loads((root / "docs" / "measured.json").read_text()))
    assert [outcome.model_dump() for outcome in packaged_evidence()] == measured["outcomes"]
    lora = next(row for row in rows_of() if row.strategy == "lora")
    assert any(line.startswith("Measured on Lord Goring") for line in lora.evidence)


def test_ones_own_runs_count_before_ours(rows_of: Callable[..., list[PlanRow]]) -> None:
    def outcome(strategy: str, value: float) -> Outcome:
        return Outcome(strategy=strategy, persona="", value=value, low=value - 0.02, high=value + 0.02, n=60)

    rows = rows_of(advisor=Advisor(own=(outcome("full", 0.2), outcome("lora", 0.05))))
    assert rows[0].strategy == "full"
    alike = rows_of(advisor=Advisor(own=(outcome("full", 0.2), outcome("lora", 0.17))))
    assert alike[0].strategy == "lora"  # intervals that overlap cannot be told apart: then its own rank decides
    assert any(line.startswith("Your own: specificity +0.200") for line in rows[0].evidence)


def test_outcomes_are_read_from_evaluations_newest_first() -> None:
    def report(value: float | None) -> dict[str, Any]:
        metric = {"metric": "specificity", "value": value, "low": 0.0, "high": 0.2, "n": 40}
        return {"variants": [{"variant": "v", "metrics": [metric]}, {"variant": "other", "metrics": [metric]}]}

    found = outcomes_of([report(0.1), report(0.3), {}], {"v": "lora"})
    assert [(o.strategy, o.value) for o in found] == [("lora", 0.1)]
    assert outcomes_of([report(None)], {"v": "lora"}) == ()


def test_limits_of_the_process_are_respected() -> None:
    pytest.importorskip("resource", reason="Windows has no limits of this kind")
    import subprocess
    import sys

    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30));"
        "from persona_lab.models.machine import memory_bytes; print(*memory_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    total, free = map(int, done.stdout.split())
    assert total <= 3 << 30
    assert free <= (3 << 30) - 1_000_000_000


def test_machines_of_gpus_are_judged_by_the_gpu() -> None:
    gpu = Machine(
        device="cuda", device_name="g", cores=8, memory_bytes=64 * GIB, memory_free_bytes=60 * GIB,
        accelerator_bytes=8 * GIB, disk_free_bytes=1 << 40, bf16=True,
    )  # fmt: skip
    assert memory_available(gpu) == 8 * GIB
