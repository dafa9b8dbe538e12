"""What was measured on this machine: rates from a few real steps, and how earlier runs compared with their predictions.

Kept in `<home>/calibration.json`, written by workers only, read by whoever plans. No torch. Rates are kept by machine
and size of the base; residuals correct what the rates do not know (a slower disk, a strategy's own extra work).
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from filelock import FileLock
from pydantic import Field, ValidationError

from persona_lab.home import Home, write_atomic
from persona_lab.models.work import (
    BatchShape,
    Kind,
    Shape,
    activation_bytes,
    best_bytes,
    forward_operations,
    number_bytes,
    shape_of,
    state_bytes,
    step_operations,
    weight_bytes,
)
from persona_lab.types import BaseModelInfo, Estimate, Frozen, Machine, Measured, Rates, Residual, StepRates, now

MOST_MACHINES, MOST_RESIDUALS = 16, 60
LOCK_SECONDS = 10.0
RECENCY = 0.9
"""Weight of a residual against that of the next newer one."""
PRIOR_RUNS = 1.0
"""A correction is shrunk as if so many runs had been predicted exactly."""
WIDEST = math.log(3)
"""A residual beyond this factor counts as this factor: a run beside a heavy program must not spoil later plans."""
SPREAD = {"measured": (0.16, 0.16), "carried": (0.35, 0.22), "none": (0.45, 0.27)}
"""Standard deviation of the log of truth over prediction, for time and memory, before any run was compared: with rates
measured for this base, with those of another base, and with none."""
Z90 = 1.645
COUNTING = 2
"""Goes up with every change of `work`: rates worked out with another one say nothing any more."""


class StageTimes(Frozen):
    """What one fit on batches of one shape took. `width`: tokens behind the shared prefix."""

    rows: int
    width: int
    prefix: int
    supervised: int
    step_seconds: list[float]
    step_bytes: int
    """Peak of memory after the last step, before anything was saved."""
    peak_bytes: int
    validation_seconds: float = 0.0
    validation_rows: int = 0
    token_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    checkpoint_bytes: int = 0

    @property
    def batch(self) -> BatchShape:
        """The shape of its batches."""
        return BatchShape(self.rows, self.width, self.prefix, self.supervised)


class KindTimes(Frozen):
    """What one kind of step took, in a process of its own."""

    trainable: int
    load_seconds: float
    loaded_bytes: int
    short: StageTimes
    long: StageTimes


class _File(Frozen):
    counting: int = 1
    """Of which way of counting bytes and operations the rates are (`COUNTING`)."""
    rates: dict[str, Rates] = Field(default_factory=dict)
    residuals: dict[str, tuple[Residual, ...]] = Field(default_factory=dict)


# --- what is kept ---------------------------------------------------------------------------------


def machine_key(machine: Machine) -> str:
    """Device, cores, number type and torch: what must be the same for a measurement to count."""
    try:
        torch = ".".join(importlib.metadata.version("torch").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    kind = "bf16" if machine.bf16 else "fp32"
    return f"{machine.device}: {machine.device_name} / {machine.cores} cores / {kind} / torch {torch}"


def base_key(machine: Machine, base: BaseModelInfo) -> str:
    """The machine's key with the base's size class: architecture, and parameters to a tenth."""
    size = f"{base.parameters:.1e}" if base.parameters else "unknown size"
    return f"{machine_key(machine)} / {base.architecture or 'unknown'} {size}"


def measured_for(home: Home, machine: Machine, base: BaseModelInfo) -> Measured:
    """What is known for this machine and base; an unreadable file counts as nothing known."""
    kept, key, prefix = _read(home.calibration), base_key(machine, base), machine_key(machine)
    rates, same = kept.rates.get(key), True
    if rates is None:
        others = [value for name, value in kept.rates.items() if name.startswith(f"{prefix} / ")]
        nearest = sorted(others, key=lambda r: abs(math.log(max(r.parameters, 1) / max(base.parameters, 1))))
        rates, same = (nearest[0] if nearest else None), False
    return Measured(rates=rates, same_base=same, residuals=kept.residuals.get(key, ()))


def remember_rates(home: Home, machine: Machine, rates: Rates, base: BaseModelInfo) -> None:
    """Keep rates. Residuals of the same key compare with the old rates and go."""
    key = base_key(machine, base)

    def change(kept: _File) -> _File:
        rest = {name: value for name, value in kept.rates.items() if name != key}
        newest = dict(list(rest.items())[-(MOST_MACHINES - 1) :])
        residuals = {name: value for name, value in kept.residuals.items() if name != key}
        return _File(counting=COUNTING, rates=newest | {key: rates}, residuals=residuals)

    _update(home, change)


def remember_residual(home: Home, machine: Machine, base: BaseModelInfo, residual: Residual) -> None:
    """Keep how a finished run compared with its uncorrected prediction."""
    key = base_key(machine, base)

    def change(kept: _File) -> _File:
        rest = {name: value for name, value in kept.residuals.items() if name != key}
        mine = (*kept.residuals.get(key, ()), residual)[-MOST_RESIDUALS:]
        newest = dict(list(rest.items())[-(MOST_MACHINES - 1) :])
        return _File(counting=COUNTING, rates=kept.rates, residuals=newest | {key: mine})

    _update(home, change)


def _update(home: Home, change: object) -> None:
    home.calibration.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(home.calibration) + ".lock", timeout=LOCK_SECONDS):
        kept = change(_read(home.calibration))  # type: ignore[operator]
        write_atomic(home.calibration, kept.model_dump_json(indent=1))


def _read(path: Path) -> _File:
    try:
        kept = _File.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return _File()  # absent, or of another version: it is measured anew
    return kept if kept.counting == COUNTING else _File()


# --- rates from measured steps --------------------------------------------------------------------


def rates_from(base: BaseModelInfo, machine: Machine, adapter: KindTimes, full: KindTimes | None) -> Rates:
    """Rates from what both kinds of step took; without `full`, all-weights steps are worked out from the adapter's."""
    shape = shape_of(base)
    light = _step_rates(adapter, Kind(adapter.trainable, False), shape, machine)
    heavy = _step_rates(full, Kind(full.trainable, True), shape, machine) if full else light
    extra = max(heavy.step_seconds - light.step_seconds, 0.0) if full else 0.0
    more = max(heavy.trainable - light.trainable, 1)
    validated = [kind.long for kind in (adapter, full) if kind and kind.long.validation_seconds]
    forward = [
        t.validation_seconds / forward_operations(_validation_batch(t), shape) for t in validated
    ]  # a checkpoint of all weights tells more of the disk than an adapter's
    largest = max((k.long for k in (adapter, full) if k), key=lambda t: t.checkpoint_bytes)
    tokens = [t.token_seconds for t in validated if t.token_seconds]
    return Rates(
        created=now(),
        base=base.id,
        parameters=base.parameters,
        layers=shape.layers,
        adapter=light,
        full=heavy,
        forward_operation_seconds=min(forward) if forward else light.operation_seconds,
        token_seconds=median(tokens) if tokens else light.step_seconds / 3,
        written_byte_seconds=largest.checkpoint_seconds / max(largest.checkpoint_bytes, 1),
        optimizer_seconds=extra / more,
    )


def _validation_batch(times: StageTimes) -> BatchShape:
    rows = times.validation_rows
    return BatchShape(rows, times.width, times.prefix, rows * (times.width // 2))


def _step_rates(times: KindTimes, kind: Kind, shape: Shape, machine: Machine) -> StepRates:
    """A line through the short and the long step: its foot is what any step costs, its slope what an operation does."""
    small, large = (step_operations(stage.batch, shape, kind) for stage in (times.short, times.long))
    quick, slow = (_undisturbed(stage.step_seconds) for stage in (times.short, times.long))
    # a disturbed step must not turn the line over: the slope is at least half of what the long step says alone
    slope = min(max((slow - quick) / (large - small), 0.5 * slow / large), slow / large)
    width = number_bytes(machine)
    low, high = (activation_bytes(stage.batch, shape, kind, width) for stage in (times.short, times.long))
    # the short stage has no validations, and so no best weights
    more = times.long.step_bytes - times.short.step_bytes - best_bytes(kind, width, machine.device)
    scale = min(max(more / (high - low), 0.5), 4.0)
    held = weight_bytes(shape, kind, machine) + state_bytes(kind, width, machine.device)
    return StepRates(
        step_seconds=max(slow - slope * large, 0.0),
        operation_seconds=slope,
        fixed_bytes=max(times.long.step_bytes - held - scale * high, 0.0),
        activation_scale=scale,
        trainable=times.trainable,
        load_seconds=times.load_seconds,
    )


def _undisturbed(seconds: Sequence[float]) -> float:
    """The typical time of the quicker half: what else the machine did only ever makes a step slower."""
    ordered = sorted(seconds)
    return median(ordered[: max(1, (len(ordered) + 1) // 2)])


# --- rates where nothing was measured -------------------------------------------------------------

CPU_CORE_OPERATIONS = {True: 160e9, False: 50e9}
"""A second and core in training, by whether bf16 is fast; two server cores, 2026."""
CUDA_OPERATIONS, MPS_OPERATIONS = 20e12, 1.5e12
PROCESS_BYTES = 700_000_000


def prior_rates(machine: Machine, shape: Shape) -> Rates:
    """An honest guess for a machine that nothing was measured on."""
    operation = 1 / _operations_a_second(machine)
    # small models on a GPU wait for the launch of their kernels, not for arithmetic
    launch = shape.layers * (0.003 if machine.device != "cpu" else 0.014)
    process = 0.0 if machine.device == "cuda" else float(PROCESS_BYTES)
    bus = 2e-9 / min(machine.cores, 4) if machine.device == "cpu" else 5e-11
    light = StepRates(
        step_seconds=launch,
        operation_seconds=operation,
        fixed_bytes=process,
        activation_scale=1.7,
        load_seconds=1.5 + shape.parameters * 2e-9,
    )
    return Rates(
        created="",
        base="",
        parameters=shape.parameters,
        layers=shape.layers,
        adapter=light,
        full=light,
        forward_operation_seconds=operation,
        token_seconds=launch / 4 + shape.parameters * (2e-11 if machine.device != "cpu" else 2e-10),
        written_byte_seconds=3e-9,
        optimizer_seconds=bus,
    )


def _operations_a_second(machine: Machine) -> float:
    if machine.device == "cpu":
        # more cores share one memory bus: they help less than in proportion
        lanes = 2 * (machine.cores / 2) ** 0.8 if machine.cores > 2 else machine.cores
        return float(CPU_CORE_OPERATIONS[machine.bf16] * lanes)
    return CUDA_OPERATIONS if machine.device == "cuda" else MPS_OPERATIONS


# --- corrections by earlier runs ------------------------------------------------------------------


def corrected(estimate: Estimate, strategy: str, machine: Machine) -> Estimate:
    """The estimate, corrected by how earlier runs here compared with theirs, with an error bar from their spread.

    Corrections are means of log ratios, newer runs counting more, shrunk towards what all strategies have in common and
    that towards none.
    """
    known = machine.measured or Measured()
    basis = "none" if known.rates is None else ("measured" if known.same_base else "carried")
    time, memory = SPREAD[basis]
    modelled = bool(estimate.parts)
    told = [r for r in known.residuals if r.modelled == modelled and (modelled or r.strategy == strategy)]
    limit = WIDEST if modelled else math.inf
    times = _log_ratios([(r.strategy, r.seconds, r.predicted_seconds) for r in told], limit)
    sizes = _log_ratios([(r.strategy, r.memory_bytes, r.predicted_memory_bytes) for r in told], limit)
    shift, spread = _correction(times, strategy, time)
    grow, width = _correction(sizes, strategy, memory)
    # assumed data widens the bar whatever runs say; a strategy with numbers of its own keeps its bar until runs speak
    bars = (estimate.uncertainty, estimate.memory_uncertainty or estimate.uncertainty)
    wider = [
        max(bar / math.exp(Z90 * sd), 1.0) if modelled else 1.0 for bar, sd in zip(bars, SPREAD[basis], strict=True)
    ]
    least = 1.0 if told or modelled else estimate.uncertainty
    return estimate.model_copy(
        update={
            "seconds": round(estimate.seconds * math.exp(shift), 1),
            "peak_memory_bytes": int(estimate.peak_memory_bytes * math.exp(grow)),
            "parts": {name: round(value * math.exp(shift), 2) for name, value in estimate.parts.items()},
            "uncertainty": round(max(wider[0] * math.exp(Z90 * spread), least), 2),
            "memory_uncertainty": round(max(wider[1] * math.exp(Z90 * width), min(least, 1.5)), 2),
        }
    )


def _log_ratios(pairs: Sequence[tuple[str, float, float]], limit: float) -> list[tuple[str, float]]:
    """log(true / predicted) by strategy, at most `limit` either way; what is unknown is left out."""
    known = [(name, math.log(true / predicted)) for name, true, predicted in pairs if true > 0 and predicted > 0]
    return [(name, min(max(value, -limit), limit)) for name, value in known]


def _correction(logs: Sequence[tuple[str, float]], strategy: str, prior: float) -> tuple[float, float]:
    """(log of the correction, standard deviation of what remains) for one strategy, from (strategy, log ratio)."""
    weighted = [(RECENCY ** (len(logs) - 1 - i), name, value) for i, (name, value) in enumerate(logs)]
    common = sum(w * value for w, _, value in weighted) / (sum(w for w, _, _ in weighted) + PRIOR_RUNS)
    own = [(w, value) for w, name, value in weighted if name == strategy]
    total = sum(w for w, _ in own)
    shift = common + sum(w * (value - common) for w, value in own) / (total + PRIOR_RUNS)
    squares = sum(w * (value - shift) ** 2 for w, value in own)
    # two runs' worth of the prior spread, so that a lucky first run does not make the bar vanish
    return shift, math.sqrt((2 * prior**2 + squares) / (2 + total))
