"""Drift against gains that fade by a known amount."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from persona_lab_builtin.evaluators.drift import Drift
from persona_lab_builtin.evaluators.small_talk import EXCHANGES, small_talk

from persona_lab.types import LogLikelihood, Message, Metric, Persona, Probe, Variant


def probes(count: int) -> list[Probe]:
    return [
        Probe(
            id=f"p{i}",
            kind="reply",
            cluster=f"c{i // 2}",
            messages=(Message(role="user", content=f"Question {i}?"),),
            reply=f"It is the clock again, number {i}.",
        )
        for i in range(count)
    ]


def variant(kind: Any = "adapter") -> Variant:
    return Variant(id="v", name="v", persona="tamsin", base="starter", strategy="lora", kind=kind, system="Be T.")


class Fading:
    """The variant's gain is 0.4 nats a byte less 0.01 for every turn of small talk before the probe's own context."""

    quick, seed, dataset = False, 0, None

    def __init__(self, persona: Persona) -> None:
        self.persona = persona

    def phase(self, title: str, total: int | None = None) -> None: ...

    def loglikelihood(self, variant: Variant | None, items: Any) -> list[LogLikelihood]:
        results = []
        for messages, reply in items:
            size = len(reply.encode())
            gain = 0.0 if variant is None else 0.4 - 0.01 * (len(messages) - 1) / 2
            results.append(LogLikelihood(total=(-1.0 + gain) * size, tokens=1, bytes=size))
        return results


def by_name(metrics: Any) -> dict[str, Metric]:
    return {metric.metric: metric for metric in metrics}


def test_a_known_fading_is_measured(persona_factory: Callable[..., Persona]) -> None:
    found = by_name(Drift().score(variant(), probes(40), Fading(persona_factory())))
    assert found["fade"].value == pytest.approx(0.16)
    assert found["slope"].value == pytest.approx(-0.01)
    assert [found[f"g_at_{k}"].value for k in (0, 4, 8, 16)] == pytest.approx([0.4, 0.36, 0.32, 0.24])
    assert found["fade"].n == 24
    assert {name for name, metric in found.items() if metric.compared} == {"fade"}


def test_the_base_does_not_fade_and_nothing_to_ask_is_said(persona_factory: Callable[..., Persona]) -> None:
    context = Fading(persona_factory())
    assert by_name(Drift().score(variant("base"), probes(5), context))["fade"].value == 0
    nothing = by_name(Drift().score(variant(), [], context))
    assert all(metric.value is None and metric.note for metric in nothing.values())
    long = [p.model_copy(update={"messages": (Message(role="user", content="x" * 3000),)}) for p in probes(3)]
    assert by_name(Drift().score(variant(), long, context))["fade"].value is None


def test_small_talk_grows_from_its_own_beginning() -> None:
    assert small_talk(0, 1) == ()
    assert small_talk(16, 1)[:8] == small_talk(4, 1)
    assert small_talk(16, 1) != small_talk(16, 2)
    assert [m.role for m in small_talk(2, 0)] == ["user", "assistant"] * 2
    with pytest.raises(ValueError, match="exchanges"):
        small_talk(len(EXCHANGES) + 1, 0)
