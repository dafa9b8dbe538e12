"""Whether a run fits into memory, and if not: the cheapest changes that would make it fit. No torch.

Every change is found by estimating again with it. Used before a run is queued, and once more by its worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from persona_lab.errors import PluginFailed, WillNotFit
from persona_lab.models.calibration import corrected
from persona_lab.types import BaseModelInfo, Change, Dataset, Estimate, Machine, Persona, Problem

MEMORY_SHARE = 0.9
"""Of what is free may be used before the machine begins to swap."""
MOST_CHANGES = 3
SHORTEST, SMALLEST_RANK = 128, 4
CHEAPER = "less_memory.json"
"""In a run's folder: what `after_all` found before it trained, as {"strategy", "changes", "told"}."""
Verdict = Literal["fits", "unsure", "too much"]
# least harm first: slower but the same result; smaller steps; less of each conversation; less to learn with
CAREFUL = ("checkpointing", "low_memory")
OTHERS = (
    ("qlora", "the base in 4 bits"),
    ("lora", "trains an adapter in place of the weights"),
    ("prompt", "trains nothing"),
)


def memory_available(machine: Machine) -> int:
    """Bytes a run may use: the accelerator's, else what is free of main memory."""
    return machine.accelerator_bytes if machine.device == "cuda" else machine.memory_free_bytes


def verdict(estimate: Estimate, machine: Machine) -> Verdict:
    """`too much`: even the lower end of the error bar is more than there is."""
    have = memory_available(machine)
    if lowest_peak(estimate) > have:
        return "too much"
    return "unsure" if estimate.peak_memory_bytes > MEMORY_SHARE * have else "fits"


def lowest_peak(estimate: Estimate) -> float:
    """The lower end of the error bar of the peak, in bytes."""
    return estimate.peak_memory_bytes / (estimate.memory_uncertainty or estimate.uncertainty)


def estimate_of(
    plugins: Any, part: Any, config: Any, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
) -> Estimate:
    """A strategy's estimate, corrected by earlier runs.

    Raises:
        PluginFailed
    """
    raw = plugins.guarded("strategy", part.id, part.estimate, config, base, dataset, machine)
    return corrected(raw, part.id, machine)


class Remedies:
    """Looks for changes that would make one strategy's run fit.

    Args:
        machine: with what was measured, as for the estimate that did not fit.
    """

    def __init__(
        self, plugins: Any, persona: Persona, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> None:
        self.plugins, self.persona, self.base = plugins, persona, base
        self.dataset, self.machine = dataset, machine

    def changes(self, part: Any, config: Any) -> tuple[Change, ...]:
        """At most three, least harm first; empty where nothing helps."""
        found: list[Change] = []
        for line in (self._settings(config), self._lengths(config), self._together(config)):
            change = self._first(part, config, line)
            if change is not None:
                found.append(change)
            if len(found) >= MOST_CHANGES - 1:
                break
        for other, why in OTHERS:
            if len(found) >= MOST_CHANGES or (found and other == "prompt"):
                break
            change = self._strategy(part, config, other, why)
            if change is not None:
                found.append(change)
        return tuple(found)

    def _settings(self, config: Any) -> Iterator[tuple[dict[str, Any], str]]:
        for name, value in self._careful(config).items():
            same = "slower, the same result" if name == "checkpointing" else "no fp32 copies: updates rounded at random"
            yield {name: value}, same
        for size in _halves(getattr(config, "batch_size", 1), 1):
            yield {"batch_size": size}, "smaller corrections, a little slower"

    def _careful(self, config: Any) -> dict[str, Any]:
        """What is not switched on yet: `on` in our own fit settings, True where a plugin has a plain switch."""
        fields = type(config).model_fields
        wanted = {name: True if fields[name].annotation is bool else "on" for name in CAREFUL if name in fields}
        return {name: value for name, value in wanted.items() if getattr(config, name) != value}

    def _lengths(self, config: Any) -> Iterator[tuple[dict[str, Any], str]]:
        """Shorter conversations, from what the longest really is."""
        limit = min(getattr(config, "max_tokens", 0), self._longest())
        for tokens in (3 * limit // 4, *_halves(limit, SHORTEST)):
            if tokens >= SHORTEST:
                yield {"max_tokens": tokens}, "the longest conversations lose their oldest turns"

    def _together(self, config: Any) -> Iterator[tuple[dict[str, Any], str]]:
        """Everything that keeps the strategy, the least of it first."""
        fields = type(config).model_fields
        change = self._careful(config)
        change |= {"batch_size": 1} if "batch_size" in fields else {}
        yield change, "slower, smaller corrections"
        limit = min(getattr(config, "max_tokens", 0), self._longest())
        for tokens in _halves(limit, SHORTEST):
            yield change | {"max_tokens": tokens}, "slower, and the longest conversations lose their oldest turns"
        for rank in _halves(getattr(config, "rank", 0), SMALLEST_RANK):
            yield change | {"max_tokens": SHORTEST, "rank": rank}, "as small as it gets"

    def _longest(self) -> int:
        known = self.machine.measured.counts if self.machine.measured else ()
        return max((tokens for counts in known for tokens, _ in counts.conversations.values()), default=1024)

    def _first(self, part: Any, config: Any, line: Iterator[tuple[dict[str, Any], str]]) -> Change | None:
        """The first change of a line that fits."""
        for change, why in line:
            made = self._tried(part, config.model_dump() | change, change, why)
            if made is not None:
                return made
        return None

    def _strategy(self, part: Any, config: Any, other: str, why: str) -> Change | None:
        """Another strategy with the settings that both have, if it is there and fits."""
        known = {p.id: p for p in self.plugins.all("strategy")}
        if other == part.id or other not in known or (other == "qlora" and self.machine.device != "cuda"):
            return None
        fields, mine = known[other].Config.model_fields, type(config).model_fields
        kept = () if other == "prompt" else ("batch_size", "max_tokens", "epochs")
        both = [name for name in kept if name in fields and name in mine]
        shared = {n: getattr(config, n) for n in both if getattr(config, n) != mine[n].default}
        return self._tried(known[other], shared, shared, why)

    def _tried(self, part: Any, values: dict[str, Any], change: dict[str, Any], why: str) -> Change | None:
        try:
            config = part.Config.model_validate(values)
            problems = self.plugins.guarded(
                "strategy", part.id, part.check, config, self.persona, self.dataset, self.machine
            )
            estimate = estimate_of(self.plugins, part, config, self.base, self.dataset, self.machine)
        except (ValidationError, PluginFailed):
            return None  # out of this strategy's bounds, or its plugin's fault, which its own row tells
        if any(problem.severity == "error" for problem in problems) or verdict(estimate, self.machine) != "fits":
            return None
        return Change(
            set=change,
            strategy=part.id,
            peak_memory_bytes=estimate.peak_memory_bytes,
            seconds=round(estimate.seconds, 1),
            why=why,
        )


def _halves(value: int, least: int) -> list[int]:
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


LESS = 0.8
"""Of the memory of what was tried is what a change must need, to be worth trying after memory ran out."""


def after_all(
    plugins: Any,
    part: Any,
    config: Any,
    persona: Persona,
    base: BaseModelInfo,
    dataset: Dataset | None,
    machine: Machine,
) -> tuple[Change, ...]:
    """The cheapest changes for a run that memory was not enough for, whatever was predicted: those that need clearly
    less than it, and no more than there is.

    Raises:
        PluginFailed
    """
    estimate = estimate_of(plugins, part, config, base, dataset, machine)
    room = min(LESS * estimate.peak_memory_bytes / MEMORY_SHARE, memory_available(machine))
    name = "accelerator_bytes" if machine.device == "cuda" else "memory_free_bytes"
    smaller = machine.model_copy(update={name: int(room)})
    return Remedies(plugins, persona, base, dataset, smaller).changes(part, config)


# --- words ----------------------------------------------------------------------------------------


def told(changes: Sequence[Change], strategy: str) -> str:
    """Changes as a sentence for people; empty without any."""
    if not changes:
        return "Nothing we can change would make it fit: use a smaller base model, or close other programs."
    return "What would fit: " + "; ".join(_one(change, strategy) for change in changes) + "."


def _one(change: Change, strategy: str) -> str:
    sets = " ".join(f"--set {key}={json.dumps(value)}" for key, value in change.set.items())
    how = " ".join(filter(None, [f"--strategy {change.strategy}" if change.strategy != strategy else "", sets]))
    return f"{how} (about {change.peak_memory_bytes / 2**30:.1f} GB, {_time(change.seconds)}; {change.why})"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def memory_problem(estimate: Estimate, machine: Machine, changes: Sequence[Change], strategy: str) -> Problem | None:
    """What to say of a run's memory; None where it fits well."""
    judged = verdict(estimate, machine)
    if judged == "fits":
        return None
    need, have = estimate.peak_memory_bytes / 2**30, memory_available(machine) / 2**30
    if judged == "unsure":
        message = f"Needs about {need:.1f} GB of memory, and {have:.1f} GB are free: it may not fit."
        return Problem(message=message, fix=told(changes, strategy), field="batch_size", severity="warning")
    least = lowest_peak(estimate) / 2**30
    message = f"Needs about {need:.1f} GB of memory (at least {least:.1f} GB); {have:.1f} GB are free."
    return Problem(message=message, fix=told(changes, strategy), field="batch_size")


def refuse_misfit(
    plugins: Any,
    part: Any,
    config: Any,
    persona: Persona,
    base: BaseModelInfo,
    dataset: Dataset | None,
    machine: Machine,
) -> Estimate:
    """The estimate of a run that may start.

    Raises:
        WillNotFit: even the lower end of the error bar is more than there is. PluginFailed
    """
    estimate = estimate_of(plugins, part, config, base, dataset, machine)
    if verdict(estimate, machine) == "too much":
        changes = Remedies(plugins, persona, base, dataset, machine).changes(part, config)
        problem = memory_problem(estimate, machine, changes, part.id)
        assert problem is not None
        needs = problem.message[0].lower() + problem.message[1:]
        raise WillNotFit(
            f"{part.title} was not started: it {needs}", f"{problem.fix} To start it all the same: --force."
        )
    return estimate
