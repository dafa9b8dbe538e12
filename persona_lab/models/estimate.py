"""What a training run will cost: memory, time, disk. Light: no torch, nothing is read from disk.

Structure comes from the work itself (`work`: batches, operations, bytes), rates from this machine (`calibration`: a few
real steps; else a guess with a wider error bar). Both come with the machine, as `Machine.measured`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from persona_lab.models.calibration import SPREAD, Z90, prior_rates
from persona_lab.models.work import (
    BatchShape,
    Kind,
    Load,
    Shape,
    activation_bytes,
    check_bytes,
    forward_bytes,
    forward_operations,
    load_of,
    number_bytes,
    packed_bytes,
    plain_batches,
    shape_of,
    state_bytes,
    step_operations,
    weight_bytes,
)
from persona_lab.types import BaseModelInfo, Dataset, Estimate, FitSettings, Machine, Measured, Rates, StepRates

PREPARING_SECONDS = 0.3
"""Reading the data and rendering it twice; of a few hundred conversations."""
SAVING_SECONDS = 0.5
FETCH_SECONDS = 30.0
SAMPLE_TOKENS = 24
"""Of a sample reply, as in `training.context`."""
MOST_SAMPLINGS, SAMPLE_SHARE = 4, 0.03
"""How often a fit writes sample replies at most, and the share of its time above which only those before and after."""
QUANTIZED_SLOWER = 1.25
"""4-bit weights are unpacked for each product."""
CHEAP_CHECKPOINT, CHECKPOINT_SHARE = 2.0, 0.1
"""When a checkpoint is written, as in `training.fit`."""
GUESSED_DATA, GUESSED_LENGTHS = 1.5, 1.15
"""How much wider the error bar is where the data or the base's size is assumed, and where only lengths are."""


def estimate_training(
    config: FitSettings,
    base: BaseModelInfo,
    dataset: Dataset | None,
    machine: Machine,
    *,
    trainable: int,
    full_weights: bool,
    quantized: bool = False,
    passes: float = 1.0,
    depth: float = 1.0,
    validations: float = 0.0,
) -> Estimate:
    """Memory, time and disk of one stage of the shared fit loop, the base's loading and the artifact's saving.

    Args:
        dataset: None: an ordinary dataset of 240 conversations is assumed.
        machine: its `measured` makes the estimate exact for this machine and data; without it, rates are guessed.
        trainable: parameters that are trained.
        full_weights: weights of the base itself are trained (fp32 master weights), rather than an adapter.
        quantized: the base is held in 4 bits.
        passes: multiplies the training work, for strategies that read the data more often than `config.epochs`.
        depth: share of the layers that a step goes through (0 .. 1): the last 8 of 30 train at 8 / 30, since what the
            frozen ones below give is computed once.
        validations: passes over the validation conversations beside the loop's own, such as a ranking of layers.

    Returns:
        The estimate, with its seconds by part. Stages are added up with `combine_estimates`.
    """
    work, shape = load_of(config, base, dataset, machine), shape_of(base)
    if full_weights and not base.parameters:  # of a base that is not fetched yet: as large as the rest takes it to be
        trainable = round(shape.parameters * min(max(depth, 0.0), 1.0))
    kind = Kind(
        trainable,
        full_weights,
        quantized,
        min(max(depth, 0.0), 1.0),
        checkpointing=_on(config, "checkpointing"),
        low_memory=_on(config, "low_memory"),
        eight_bit="8bit" in str(getattr(config, "optimizer", "")),
    )
    known = machine.measured or Measured()
    rates = known.rates or prior_rates(machine, shape)
    step = _rates_of(kind, rates, shape)
    parts = _seconds(config, work, shape, kind, rates, step, machine, passes, validations)
    parts["load"] += 0.0 if base.ready else FETCH_SECONDS
    memory = _memory(config, work, shape, kind, step, machine)
    unknown = dataset is None or not base.parameters
    guessed = GUESSED_DATA if unknown else (1.0 if work.exact else GUESSED_LENGTHS)
    return Estimate(
        trainable_parameters=trainable,
        peak_memory_bytes=int(memory),
        seconds=round(sum(parts.values()), 1),
        # the artifact, and two checkpoints: masters and both moments in fp32, and the best weights so far
        disk_bytes=int(_artifact_bytes(shape, kind) + 2 * trainable * (12 + number_bytes(machine))),
        uncertainty=_uncertainty(known, guessed, 0),
        memory_uncertainty=_uncertainty(known, guessed**0.5, 1),
        host_memory_bytes=_host_bytes(shape, kind, machine),
        reason=f"{work.examples} conversations of about {_mean_length(work):.0f} tokens{_counted(work)}, "
        f"{config.epochs:g} times, on {_where(machine)}{_basis(known)}.",
        parts={name: round(value, 2) for name, value in parts.items()},
        steps=round(work.steps * passes),
    )


def estimate_forward(
    settings: FitSettings,
    base: BaseModelInfo,
    dataset: Dataset | None,
    machine: Machine,
    *,
    passes: float,
    more: int = 0,
    shared: bool = True,
) -> Estimate:
    """Loading the base and reading the validation conversations, without training anything.

    Args:
        settings: of which `max_tokens` counts.
        passes: how often they are read.
        more: tokens put before each of them, such as in-context examples.
        shared: they are the same for all, and computed once.
    """
    work, shape, kind = load_of(settings, base, dataset, machine), shape_of(base), Kind(0, False)
    known = machine.measured or Measured()
    rates, width = known.rates or prior_rates(machine, shape), number_bytes(machine)
    longer = [_behind(batch, more, shared) for batch in work.validation]
    read = sum(forward_operations(batch, shape) for batch in longer)
    # paths are compared on these conversations only, and before anything more stands in front of them
    checked = work.validation[0] if work.validation and not more else None
    work = replace(work, checked=checked, plain=plain_batches(checked) if checked else [])
    parts = {
        "load": PREPARING_SECONDS + rates.full.load_seconds + (shape.parameters - rates.parameters) * 2e-9,
        "check": _check_seconds(work, shape, rates.forward_operation_seconds),
        "validate": passes * read * rates.forward_operation_seconds,
    }
    parts["load"] += 0.0 if base.ready else FETCH_SECONDS
    used = max(check_bytes(work, shape, width), *(forward_bytes(batch, shape, width) for batch in longer), 0.0)
    guessed = GUESSED_DATA if dataset is None or not base.parameters else (1.0 if work.exact else GUESSED_LENGTHS)
    return Estimate(
        trainable_parameters=0,
        peak_memory_bytes=int(rates.adapter.fixed_bytes + weight_bytes(shape, kind, machine) + used),
        seconds=round(sum(parts.values()), 1),
        disk_bytes=0,
        uncertainty=_uncertainty(known, guessed, 0),
        memory_uncertainty=_uncertainty(known, guessed, 1),
        host_memory_bytes=_host_bytes(shape, kind, machine),
        parts={name: round(value, 2) for name, value in parts.items()},
    )


def _behind(batch: BatchShape, more: int, shared: bool) -> BatchShape:
    """The batch with `more` tokens in front of each row."""
    if shared:
        return replace(batch, prefix=batch.prefix + more)
    return replace(batch, width=batch.width + more, tails=batch.tails and batch.tails + batch.rows * more)


def combine_estimates(*stages: Estimate, reason: str = "", trainable: int | None = None) -> Estimate:
    """Stages that follow each other in one process: times add up (the base is loaded once), memory is the largest.

    Args:
        reason: a sentence for people; empty: the first stage's.
        trainable: what the plan shows as trained; None: the last stage's.
    """
    parts: dict[str, float] = {}
    for stage in stages:
        for name, value in stage.parts.items():
            parts[name] = max(parts.get(name, 0.0), value) if name in ("load", "save") else parts.get(name, 0.0) + value
    loads = [sum(stage.parts.get(name, 0.0) for name in ("load", "save")) for stage in stages]
    once = sum(parts.get(name, 0.0) for name in ("load", "save"))
    return Estimate(
        trainable_parameters=stages[-1].trainable_parameters if trainable is None else trainable,
        peak_memory_bytes=max(stage.peak_memory_bytes for stage in stages),
        seconds=round(sum(stage.seconds for stage in stages) - sum(loads) + once, 1),
        disk_bytes=sum(stage.disk_bytes for stage in stages),
        uncertainty=max(stage.uncertainty for stage in stages),
        memory_uncertainty=max(stage.memory_uncertainty or stage.uncertainty for stage in stages),
        host_memory_bytes=max(stage.host_memory_bytes for stage in stages),
        reason=reason or stages[0].reason,
        parts=parts,
        steps=sum(stage.steps for stage in stages),
    )


def _on(config: Any, name: str) -> bool:
    """Whether a strategy has this switch and it is on; `auto` counts as off, since that is what it starts with."""
    value = getattr(config, name, False)
    return value is True or value in ("on", "always", "yes")


def _rates_of(kind: Kind, rates: Rates, shape: Shape) -> StepRates:
    """Rates for this kind of step on this base: launches go with its layers, the optimizer with what is trained."""
    near = rates.full if kind.full_weights else rates.adapter
    launch = max(near.step_seconds - near.trainable * rates.optimizer_seconds, 0.0) * shape.layers / rates.layers
    return near.model_copy(update={"step_seconds": launch + kind.trainable * rates.optimizer_seconds})


def _uncertainty(known: Measured, guessed: float, which: int) -> float:
    basis = "none" if known.rates is None else ("measured" if known.same_base else "carried")
    return round(math.exp(Z90 * SPREAD[basis][which]) * guessed, 2)


# --- seconds --------------------------------------------------------------------------------------


def _seconds(
    config: FitSettings,
    work: Load,
    shape: Shape,
    kind: Kind,
    rates: Rates,
    step: StepRates,
    machine: Machine,
    passes: float,
    validations: float,
) -> dict[str, float]:
    slower = QUANTIZED_SLOWER if kind.quantized else 1.0
    launch, operation = step.step_seconds * _launched(kind), step.operation_seconds * slower
    training = sum(times * (launch + operation * step_operations(b, shape, kind)) for b, times in work.training())
    forward = rates.forward_operation_seconds * slower
    one = kind.depth * sum(forward * forward_operations(batch, shape) for batch in work.validation)
    # frozen lower layers are run once for each conversation
    training += (1 - kind.depth) * sum(forward * forward_operations(batch, shape) for batch in work.epochs[0])
    checks = work.evaluations + 1 if work.validation else 0
    samples = config.samples if work.validation else 0
    prompt = (
        BatchShape(samples, 30, 0, 0)
        if not work.validation
        else BatchShape(samples, work.validation[0].prefix + 30, 0, 0)
    )
    bigger = max(shape.parameters / rates.parameters, shape.layers / rates.layers)
    sampling = SAMPLE_TOKENS * rates.token_seconds * bigger + forward * forward_operations(prompt, shape)
    written = kind.trainable * (12 + number_bytes(machine)) * rates.written_byte_seconds
    return {
        "load": PREPARING_SECONDS + step.load_seconds + (shape.parameters - rates.parameters) * 2e-9,
        "check": _check_seconds(work, shape, forward),
        "train": training * passes,
        "validate": one * (checks + validations),
        "samples": _samplings(checks, sampling, training * passes) * sampling if samples else 0.0,
        "checkpoints": written * _checkpoints(work.evaluations, written, training * passes)
        + kind.trainable * number_bytes(machine) * rates.written_byte_seconds,
        "save": SAVING_SECONDS + _artifact_bytes(shape, kind) * 2 * rates.written_byte_seconds,
    }


def _samplings(checks: int, seconds: float, training: float) -> int:
    """How often sample replies are written, as `training.sample_budget` decides it."""
    affordable = int(SAMPLE_SHARE * training / max(seconds, 1e-9))
    return min(checks, max(2, min(affordable, MOST_SAMPLINGS)))


def _launched(kind: Kind) -> float:
    """Share of the layers' launches that a step makes."""
    return kind.depth


def _check_seconds(work: Load, shape: Shape, operation: float) -> float:
    """The comparison of the fast path with the plain one, which makes the logits of every token."""
    if work.checked is None:
        return 0.0
    logits = 2.0 * sum(batch.tokens for batch in work.plain) * shape.vocabulary * shape.hidden
    return operation * (sum(forward_operations(batch, shape) for batch in (work.checked, *work.plain)) + logits)


def _checkpoints(evaluations: int, seconds: float, training: float) -> int:
    """How many are written: all that are cheap, else those that stay a small share of the time since the last."""
    if evaluations <= 1:
        return 0
    if seconds <= CHEAP_CHECKPOINT:
        return evaluations - 1
    interval = training / evaluations
    every = max(1.0, seconds / max(CHECKPOINT_SHARE * interval, 1e-9))
    return int((evaluations - 1) / every)


# --- bytes ----------------------------------------------------------------------------------------


def _memory(config: FitSettings, work: Load, shape: Shape, kind: Kind, step: StepRates, machine: Machine) -> float:
    """Bytes at the peak: the process and weights, and what is the most of a training step, the comparison of paths
    before the first one (masters are there, moments are not), a validation, and sample replies."""
    width = number_bytes(machine)
    states = state_bytes(kind, width, machine.device)
    training = states + step.activation_scale * max(activation_bytes(b, shape, kind, width) for b, _ in work.training())
    before = kind.trainable * (4.0 if kind.full_weights and width < 4 else 0.0) + check_bytes(work, shape, width)
    validating = states + max((forward_bytes(b, shape, width) for b in work.validation), default=0.0)
    samples = states + packed_bytes(shape, kind, machine) if config.samples and work.validation else 0.0
    return step.fixed_bytes + weight_bytes(shape, kind, machine) + max(training, before, validating, samples)


def _host_bytes(shape: Shape, kind: Kind, machine: Machine) -> int:
    """Main memory of a run on an accelerator: libraries, weights on their way, and the best weights so far."""
    if machine.device != "cuda":
        return 0
    width = number_bytes(machine)
    return int(3e9 + shape.parameters * width + 2 * kind.trainable * (12 + width))


def _artifact_bytes(shape: Shape, kind: Kind) -> float:
    return shape.parameters * 2.0 if kind.full_weights else kind.trainable * 4.0


# --- words ----------------------------------------------------------------------------------------


def _mean_length(work: Load) -> float:
    return work.tokens / max(work.examples, 1)


def _counted(work: Load) -> str:
    return " (counted, the card among them)" if work.exact else ""


def _basis(known: Measured) -> str:
    if known.rates is None:
        return "; nothing was measured on this machine yet"
    return ", by steps measured here" if known.same_base else ", by steps measured here with another base"


def _where(machine: Machine) -> str:
    return f"{machine.cores} CPU cores" if machine.device == "cpu" else machine.device_name
