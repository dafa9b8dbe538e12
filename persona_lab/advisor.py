"""Which strategy to take for this persona, data, machine and time: an order, with reasons in words and the evidence.

Evidence is of two kinds: our measured comparison (a small table in the package, made of `docs/measured.json` by
`benchmarks/evidence.py`) and the user's own evaluations of variants of this persona. Reads nothing but that table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from statistics import mean
from typing import Any

from persona_lab.types import Dataset, Estimate, Frozen, Machine

FEW = 12
"""Training conversations below which the prompt comes first; see docs/planning.md for where the number comes from."""
MANY = 2000
PLAIN = "prompt"
PULL = "steer"
"""Learns nothing from the data: a manner on top of whatever speaks."""


class Outcome(Frozen):
    """How specific a strategy's variants were: nats a byte, with a 95% interval, over `n` held-out lines."""

    strategy: str
    persona: str
    value: float
    low: float
    high: float
    n: int
    conversations: int = 0
    seeds: int = 1
    seconds: float | None = None
    """Of a training, median over seeds, on the machine that measured it."""


@dataclass(frozen=True)
class Advice:
    """Where a strategy stands: smaller `order` first. `reason`: one sentence; empty: its summary says enough.

    `late`: it takes longer than there is time.
    """

    order: tuple[int, ...] = (0,)
    reason: str = ""
    evidence: tuple[str, ...] = ()
    late: bool = False


@dataclass(frozen=True)
class Advisor:
    """Judges strategies one by one.

    `minutes`: the most a training may take; None: any. `own`: this user's evaluations of this persona's variants.
    """

    minutes: float | None = None
    own: Sequence[Outcome] = field(default_factory=tuple)

    def advise(self, part: Any, config: Any, estimate: Estimate, dataset: Dataset | None, machine: Machine) -> Advice:
        """Order, reason and evidence for one strategy."""
        # a variant that is gone on from knows more than this dataset
        known = None if getattr(part, "goes_on", False) else dataset
        count = len(known.of("train")) if known is not None else None
        late = self._too_slow(estimate)
        few = count is not None and count < FEW
        pointless = part.id == PULL or (part.id == "qlora" and machine.device != "cuda")
        standing = self._standing(part.id)
        order = (
            int(bool(late)),
            round(estimate.seconds) if late else 0,
            int(few and part.id != PLAIN),
            int(pointless),
            0 if few or pointless else standing,
        )
        said = [*late, *_of_the_data(part.id, count), *_of_the_machine(part.id, machine)]
        return Advice(order, said[0] if said else "", (*said[1:], *self._evidence(part.id)), bool(late))

    def _too_slow(self, estimate: Estimate) -> list[str]:
        if self.minutes is None or estimate.seconds <= 60 * self.minutes:
            return []
        takes = f"Takes about {estimate.seconds / 60:.0f} minutes"
        return [f"{takes}, more than the {self.minutes:g} you have: fewer epochs, or another way."]

    def _standing(self, strategy: str) -> int:
        """0: no strategy is known to be more specific; 1: never measured; 2: some are. The user's own runs count first.

        Two strategies whose intervals overlap cannot be told apart, so either may come first.
        """
        own = _pooled(self.own)
        table = own if len(own) > 1 else _pooled(packaged_evidence())
        if strategy not in table:
            return 1
        best = max(table.values(), key=lambda outcome: outcome.value)
        return 0 if table[strategy].high >= best.low else 2

    def _evidence(self, strategy: str) -> list[str]:
        own = [outcome for outcome in self.own if outcome.strategy == strategy]
        said = [
            f"Your own: specificity {o.value:+.3f} [{o.low:+.3f}, {o.high:+.3f}] nats/byte on {o.n} lines."
            for o in own[:2]
        ]
        said += [
            f"Measured on {o.persona} ({o.conversations} conversations, {_seeds(o.seeds)}): specificity {o.value:+.3f} "
            f"[{o.low:+.3f}, {o.high:+.3f}] nats/byte."
            for o in packaged_evidence()
            if o.strategy == strategy
        ]
        return said


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _pooled(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """One outcome a strategy: means of its values and interval ends."""
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.strategy, []).append(outcome)
    return {
        strategy: found[0].model_copy(
            update={name: mean(getattr(o, name) for o in found) for name in ("value", "low", "high")}
        )
        for strategy, found in grouped.items()
    }


def _of_the_data(strategy: str, count: int | None) -> list[str]:
    if strategy == PULL:
        return ["Learns nothing of the character: it pulls a variant towards a manner, also one trained before."]
    if count is None:
        return []
    if count < FEW:
        if strategy == PLAIN:
            return [f"With {count} conversations there is too little to train on: show them to the model instead."]
        return [f"{count} conversations are too few to train on; `{PLAIN}` shows them to the model at no cost."]
    if count > MANY and strategy == PLAIN:
        return [f"Of your {count} conversations the prompt has room for a few: training uses them all."]
    if count > MANY and strategy == "full":
        return [f"With {count} conversations changing every weight has enough to learn from."]
    return []


def _of_the_machine(strategy: str, machine: Machine) -> list[str]:
    if strategy == "qlora" and machine.device == "cpu":
        return ["Without a graphics card 4-bit weights only make it slower: `lora` does the same sooner."]
    return []


def outcomes_of(reports: Sequence[Mapping[str, Any]], strategies: Mapping[str, str]) -> tuple[Outcome, ...]:
    """The specificity of a user's own variants, from evaluations as `eval --json` gives them, newest first.

    Args:
        strategies: strategy by variant id, of the variants of one persona; others are left out.
    """
    found: dict[str, Outcome] = {}
    for report in reports:
        for entry in report.get("variants", ()):
            variant = entry.get("variant")
            if variant not in strategies or variant in found:
                continue
            for metric in entry.get("metrics", ()):
                if metric.get("metric") == "specificity" and metric.get("value") is not None:
                    found[variant] = Outcome(
                        strategy=strategies[variant],
                        persona="",
                        value=metric["value"],
                        low=metric["low"] if metric["low"] is not None else metric["value"],
                        high=metric["high"] if metric["high"] is not None else metric["value"],
                        n=metric["n"],
                    )
    return tuple(found.values())


@lru_cache(maxsize=1)
def packaged_evidence() -> tuple[Outcome, ...]:
    """Our measured comparison, by persona and strategy."""
    rows = json.loads(files("persona_lab").joinpath("evidence.json").read_text("utf-8"))["outcomes"]
    return tuple(Outcome.model_validate(row) for row in rows)
