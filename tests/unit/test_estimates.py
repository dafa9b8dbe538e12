"""What a run will cost: the work laid out as the fit loop does it, rates, corrections by earlier runs. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.datasets.batching import VALIDATION_BATCH, batches_of_epoch, shared_prefix
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home
from persona_lab.models import calibration, registry
from persona_lab.models.calibration import KindTimes, StageTimes, corrected, rates_from
from persona_lab.models.counting import informed, token_counts
from persona_lab.models.estimate import combine_estimates, estimate_forward, estimate_training
from persona_lab.models.work import (
    CHECKED_EXAMPLES,
    MOST_VALIDATION,
    BatchShape,
    Kind,
    activation_bytes,
    best_bytes,
    load_of,
    shape_of,
    state_bytes,
    step_operations,
    weight_bytes,
)
from persona_lab.personas.prompt import system_prompt
from persona_lab.types import (
    BaseModelInfo,
    Dataset,
    Estimate,
    FitSettings,
    Machine,
    Measured,
    Message,
    Persona,
    Rates,
    Residual,
)

CPU = Machine(
    device="cpu", device_name="test", cores=2, memory_bytes=8 << 30, memory_free_bytes=8 << 30,
    disk_free_bytes=1 << 40, bf16=True,
)  # fmt: skip
CONFIG = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
BASE = BaseModelInfo(
    id="starter", key="starter", name="starter", path="/none", ready=True, parameters=134_515_008,
    architecture="LlamaForCausalLM", config=CONFIG,
)  # fmt: skip


@pytest.fixture
def dataset(conversations_factory: Callable[..., Any]) -> Dataset:
    """30 conversations to train on and 8 to validate with."""
    rows = conversations_factory(38)
    split = [c.model_copy(update={"split": "train" if i < 30 else "validation"}) for i, c in enumerate(rows)]
    return Dataset(id="tam-v1", persona="tam", version=1, name="tam", conversations=tuple(split))


@pytest.fixture
def tiny(tiny_model: Path, home: Home) -> BaseModelInfo:
    """The tiny model as a base."""
    return registry.describe(str(tiny_model), home)


def lora(config: FitSettings, data: Dataset | None, machine: Machine = CPU, **options: Any) -> Estimate:
    """An estimate of a LoRA of rank 16."""
    chosen = {"trainable": 4_884_480, "full_weights": False} | options
    return estimate_training(config, BASE, data, machine, **chosen)


# --- the work -------------------------------------------------------------------------------------


def test_constants_are_those_of_the_training() -> None:
    from persona_lab.models import estimate
    from persona_lab.training import context, fit, paths, validation

    assert VALIDATION_BATCH == validation.VALIDATION_BATCH
    assert MOST_VALIDATION == context.MOST_VALIDATION
    assert estimate.SAMPLE_TOKENS == context.SAMPLE_TOKENS
    assert CHECKED_EXAMPLES == paths.CHECKED_EXAMPLES
    assert (estimate.CHEAP_CHECKPOINT, estimate.CHECKPOINT_SHARE) == (fit.CHEAP_CHECKPOINT, fit.CHECKPOINT_SHARE)


def test_counts_are_what_the_training_reads(
    tiny: BaseModelInfo, dataset: Dataset, home: Home, persona_factory: Callable[..., Persona]
) -> None:
    persona = persona_factory()
    counts = token_counts(home, tiny, dataset, persona)
    assert counts is not None
    renderer = ChatRenderer(Path(tiny.path))
    system = Message(role="system", content=system_prompt(persona))
    for conversation in dataset.of("train"):
        rendered = renderer.render([system, *conversation.messages])
        assert counts.conversations[conversation.id] == (len(rendered.ids), sum(rendered.mask))
    assert counts.prefix >= len(renderer.render([system, *conversation.messages]).ids[: rendered.prefix])
    assert token_counts(home, tiny, dataset, persona) == counts  # from the disk
    assert len(list(home.token_counts.glob("*.json"))) == 1
    assert token_counts(home, tiny, dataset, persona_factory(description="Somebody else.")) != counts


def test_batches_are_those_of_the_fit_loop(
    tiny: BaseModelInfo, dataset: Dataset, home: Home, persona_factory: Callable[..., Persona]
) -> None:
    machine = informed(CPU, home, tiny, dataset, persona_factory())
    assert machine.measured is not None
    counts = machine.measured.counts[0]
    work = load_of(FitSettings(batch_size=4, epochs=1.5), tiny, dataset, machine)
    assert work.exact
    assert (work.per_epoch, work.steps, work.evaluations) == (8, 12, 3)
    lengths = [counts.conversations[c.id][0] for c in dataset.of("train")]
    # the last target is not read
    expected = [
        (len(batch), max(lengths[i] for i in batch) - counts.prefix - 1)
        for batch in batches_of_epoch(lengths, 4, seed=0, epoch=0)
    ]
    assert [(batch.rows, batch.width) for batch in work.epochs[0]] == expected
    assert sum(weight for _, weight in work.training()) == pytest.approx(work.steps)


def test_a_shorter_limit_shortens_the_longest(dataset: Dataset) -> None:
    whole = load_of(FitSettings(), BASE, dataset, CPU)
    short = load_of(FitSettings(max_tokens=220), BASE, dataset, CPU)
    assert max(b.width + b.prefix for b, _ in short.training()) == 219  # the last target is not read
    assert short.tokens < whole.tokens
    assert not whole.exact


def test_what_loses_its_beginning_shares_nothing(
    tiny: BaseModelInfo, dataset: Dataset, home: Home, persona_factory: Callable[..., Persona]
) -> None:
    persona = persona_factory()
    machine = informed(CPU, home, tiny, dataset, persona)
    assert machine.measured is not None
    counts, renderer = machine.measured.counts[0], ChatRenderer(Path(tiny.path))
    system = Message(role="system", content=system_prompt(persona))
    longest = max(tokens for tokens, _ in counts.conversations.values())
    for limit in (longest, longest - 10, counts.prefix + 20):
        work = load_of(FitSettings(batch_size=4, max_tokens=limit), tiny, dataset, machine)
        read = [renderer.render([system, *c.messages], limit) for c in dataset.of("train")]
        shared = len(shared_prefix(read))
        assert {batch.prefix for batch in work.epochs[0]} == ({0} if shared == 0 else {counts.prefix})
    assert shared == 0


def test_examples_that_differ_are_read_by_each_row(dataset: Dataset) -> None:
    settings = FitSettings()
    alike = estimate_forward(settings, BASE, dataset, CPU, passes=1, more=400)
    apart = estimate_forward(settings, BASE, dataset, CPU, passes=1, more=400, shared=False)
    assert alike.parts["validate"] * 3 < apart.parts["validate"]
    assert alike.peak_memory_bytes < apart.peak_memory_bytes


# --- time and memory ------------------------------------------------------------------------------


def test_more_work_costs_more(dataset: Dataset) -> None:
    settings = FitSettings()
    usual = lora(settings, dataset)
    assert lora(FitSettings(epochs=4), dataset).seconds > usual.seconds
    assert lora(FitSettings(batch_size=1), dataset).peak_memory_bytes < usual.peak_memory_bytes
    assert lora(FitSettings(max_tokens=220), dataset).peak_memory_bytes < usual.peak_memory_bytes
    full = lora(settings, dataset, trainable=BASE.parameters, full_weights=True)
    top = lora(settings, dataset, trainable=28_000_000, full_weights=True, depth=8 / 30)
    assert top.seconds < usual.seconds < full.seconds
    assert top.peak_memory_bytes < full.peak_memory_bytes
    assert lora(settings, dataset, validations=30).seconds > usual.seconds
    assert lora(settings, dataset, quantized=True).seconds > usual.seconds
    assert usual.steps == 16
    assert sum(usual.parts.values()) == pytest.approx(usual.seconds, abs=0.2)


def test_switches_of_a_strategy_are_counted(dataset: Dataset) -> None:
    class Settings(FitSettings):
        checkpointing: bool = False
        low_memory: bool = False
        optimizer: str = "adamw"

    def full(**values: bool | str) -> Estimate:
        return lora(Settings(**values), dataset, trainable=BASE.parameters, full_weights=True)  # type: ignore[arg-type]

    assert full(checkpointing=True).peak_memory_bytes < full().peak_memory_bytes
    assert full(checkpointing=True).seconds > full().seconds
    assert full(low_memory=True).peak_memory_bytes < full().peak_memory_bytes - 1e9
    assert full(optimizer="adamw_8bit").peak_memory_bytes < full().peak_memory_bytes


def test_stages_add_up_and_load_once(dataset: Dataset) -> None:
    first, second = lora(FitSettings(), dataset), lora(FitSettings(epochs=1), dataset)
    both = combine_estimates(first, second, reason="Two stages.")
    once = first.parts["load"] + first.parts["save"]
    assert both.seconds == pytest.approx(first.seconds + second.seconds - once, abs=0.3)
    assert both.steps == first.steps + second.steps
    assert both.peak_memory_bytes == first.peak_memory_bytes
    assert sum(both.parts.values()) == pytest.approx(both.seconds, abs=0.3)


# --- rates ----------------------------------------------------------------------------------------


def _stage(width: int, rates: dict[str, float], trainable: int, full: bool, validated: bool) -> StageTimes:
    """What a machine with these rates would measure on batches of this width."""
    shape, kind = shape_of(BASE), Kind(trainable, full)
    batch = BatchShape(4, width, 64, 2 * width)
    seconds = rates["step"] + rates["operation"] * step_operations(batch, shape, kind)
    held = weight_bytes(shape, kind, CPU) + state_bytes(kind, 2, "cpu") + rates["fixed"]
    held -= 0 if validated else best_bytes(kind, 2, "cpu")
    peak = int(held + rates["scale"] * activation_bytes(batch, shape, kind, 2))
    return StageTimes(
        rows=4, width=width, prefix=64, supervised=2 * width, step_seconds=[9 * seconds, seconds, seconds],
        step_bytes=peak, peak_bytes=peak, validation_seconds=1.0 if validated else 0.0, validation_rows=8,
        token_seconds=0.05, checkpoint_seconds=0.5, checkpoint_bytes=10**8,
    )  # fmt: skip


def measured(step: float = 0.3, operation: float = 3e-12, fixed: float = 5e8, scale: float = 1.6) -> Rates:
    """Rates worked out of steps of a machine that has exactly these."""
    rates = {"step": step, "operation": operation, "fixed": fixed, "scale": scale}

    def kind(trainable: int, full: bool) -> KindTimes:
        return KindTimes(
            trainable=trainable, load_seconds=3.0, loaded_bytes=1,
            short=_stage(32, rates, trainable, full, False), long=_stage(192, rates, trainable, full, True),
        )  # fmt: skip

    return rates_from(BASE, CPU, kind(4_884_480, False), kind(BASE.parameters, True))


def test_rates_are_recovered_from_steps_and_a_disturbed_step_changes_nothing() -> None:
    rates = measured()
    for kind in (rates.adapter, rates.full):
        assert kind.step_seconds == pytest.approx(0.3, rel=1e-3)
        assert kind.operation_seconds == pytest.approx(3e-12, rel=1e-3)
        assert kind.fixed_bytes == pytest.approx(5e8, rel=1e-2)
        assert kind.activation_scale == pytest.approx(1.6, rel=1e-3)
    assert rates.optimizer_seconds == pytest.approx(0, abs=1e-12)


def test_rates_are_kept_by_machine_and_size_and_carried_over(home: Home) -> None:
    calibration.remember_rates(home, CPU, measured(), BASE)
    mine = calibration.measured_for(home, CPU, BASE)
    assert mine.same_base
    assert mine.rates == calibration.measured_for(home, CPU, BASE).rates
    bigger = BASE.model_copy(update={"parameters": 400_000_000})
    assert not calibration.measured_for(home, CPU, bigger).same_base
    assert calibration.measured_for(home, CPU, bigger).rates is not None
    other = CPU.model_copy(update={"device_name": "another"})
    assert calibration.measured_for(home, other, BASE).rates is None
    home.calibration.write_text(
        home.calibration.read_text().replace(f'"counting": {calibration.COUNTING}', '"counting": 1')
    )
    assert calibration.measured_for(home, CPU, BASE).rates is None  # worked out with another way of counting
    home.calibration.write_text("{ half a file")
    assert calibration.measured_for(home, CPU, BASE).rates is None


def test_a_measured_machine_is_surer(dataset: Dataset) -> None:
    machine = CPU.model_copy(update={"measured": Measured(rates=measured())})
    assert lora(FitSettings(), dataset, machine).uncertainty < lora(FitSettings(), dataset).uncertainty
    assert "measured here" in lora(FitSettings(), dataset, machine).reason
    assert "nothing was measured" in lora(FitSettings(), dataset).reason


# --- corrections ----------------------------------------------------------------------------------


def _after(pairs: list[tuple[str, float]], strategy: str = "lora", rates: bool = True) -> Estimate:
    """An estimate of 100 s and 1 GB, after runs that took these multiples of what was predicted."""
    residuals = tuple(
        Residual(
            strategy=name, created="", seconds=100 * factor, predicted_seconds=100,
            memory_bytes=1e9, predicted_memory_bytes=1e9,
        )
        for name, factor in pairs
    )  # fmt: skip
    known = Measured(rates=measured() if rates else None, residuals=residuals)
    raw = Estimate(
        trainable_parameters=1, peak_memory_bytes=10**9, seconds=100, disk_bytes=1, uncertainty=1.3,
        parts={"train": 100.0},
    )  # fmt: skip
    return corrected(raw, strategy, CPU.model_copy(update={"measured": known}))


def test_estimates_improve_with_each_run() -> None:
    off = [abs(math.log(_after([("lora", 1.6)] * n).seconds / 160)) for n in range(6)]
    assert off == sorted(off, reverse=True)
    assert off[5] < 0.15 * off[0]


def test_the_error_bar_is_the_residuals_spread() -> None:
    steady = _after([("lora", 1.3)] * 12)
    wild = _after([("lora", 0.7), ("lora", 1.9)] * 6)
    assert steady.uncertainty < 1.3 < wild.uncertainty
    assert _after([], rates=False).uncertainty > _after([]).uncertainty


def test_one_wild_run_does_not_spoil_the_next() -> None:
    assert _after([("lora", 1.0)] * 6 + [("lora", 40.0)]).seconds < 150
    assert _after([("lora", 1.0)] * 6 + [("lora", 40.0)] + [("lora", 1.0)] * 4).seconds < 130


def test_strategies_learn_from_each_other_and_more_from_themselves() -> None:
    others = _after([("full", 1.5)] * 5)
    own = _after([("lora", 1.5)] * 5)
    assert 100 < others.seconds < own.seconds <= 150


def test_a_run_beside_busy_programs_teaches_memory_only() -> None:
    busy = Residual(
        strategy="lora", created="", seconds=0, predicted_seconds=100, memory_bytes=2e9, predicted_memory_bytes=1e9
    )
    machine = CPU.model_copy(update={"measured": Measured(residuals=(busy,))})
    raw = Estimate(trainable_parameters=1, peak_memory_bytes=10**9, seconds=100, disk_bytes=1, parts={"train": 100.0})
    found = corrected(raw, "lora", machine)
    assert found.seconds == 100
    assert found.peak_memory_bytes > 1.2e9


def test_own_numbers_of_a_strategy_stay_its_own() -> None:
    """A plugin that guesses wildly is corrected by its own runs, and corrects nobody else."""
    wild = Residual(
        strategy="guess", created="", seconds=1000, predicted_seconds=1, memory_bytes=1e9, predicted_memory_bytes=1,
        modelled=False,
    )  # fmt: skip
    machine = CPU.model_copy(update={"measured": Measured(residuals=(wild,))})
    plain = Estimate(trainable_parameters=0, peak_memory_bytes=1, seconds=1, disk_bytes=1, uncertainty=3.0)
    assert corrected(plain, "guess", machine).seconds > 20
    assert corrected(plain, "other", machine).seconds == 1
    assert corrected(plain, "other", machine).uncertainty == 3.0
    modelled = plain.model_copy(update={"parts": {"train": 1.0}, "seconds": 100})
    assert corrected(modelled, "lora", machine).seconds == 100


def test_company_is_what_others_take() -> None:
    """A busy process of somebody else's on every core is noticed; an idle machine is nobody's company."""
    import subprocess
    import sys
    import time

    from persona_lab.processes import Company

    company = Company()
    spin = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2 * (os.cpu_count() or 1))]
    time.sleep(1.2)
    share = company.share()
    for process in others:
        process.wait()
    assert 0.5 < share <= 1.05
