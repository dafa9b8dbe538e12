"""Drift against gains that fade by a known amount."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from persona_lab_builtin.evaluators.drift import Drift, DriftConfig
from persona_lab_builtin.evaluators.small_talk import EXCHANGES, small_talk

from persona_lab.types import Frozen, LogLikelihood, Message, Metric, Persona, Probe, Variant


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


def user(text: str) -> Message:
    return Message(role="user", content=text)


def variant(kind: Any = "adapter") -> Variant:
    return Variant(id="v", name="v", persona="tamsin", base="starter", strategy="lora", kind=kind, system="Be T.")


class Fading:
    """The variant's gain is 0.4 nats a byte less 0.01 for every turn of small talk before the probe's own context."""

    quick, seed, dataset = False, 0, None

    def __init__(self, persona: Persona, settings: Frozen | None = None) -> None:
        self.persona, self.settings = persona, settings or DriftConfig()

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
    base = by_name(Drift().score(variant("base"), probes(5), context))["fade"]
    assert (base.value, base.items) == (0, ())  # nothing to compare with: it has no gain that could fade
    nothing = by_name(Drift().score(variant(), [], context))
    assert all(metric.value is None and metric.note for metric in nothing.values())


def test_probes_that_might_not_fit_are_left_out_and_counted(persona_factory: Callable[..., Persona]) -> None:
    some = probes(10)
    long = [p.model_copy(update={"messages": (user("x" * 6000),)}) for p in some[:4]]
    foreign = [p.model_copy(update={"messages": (user("ж" * 1000),)}) for p in some[4:7]]
    mixed = [*long, *foreign, *some[7:]]
    found = by_name(Drift().score(variant(), mixed, Fading(persona_factory())))
    assert found["fade"].n == 3
    assert "7 probes are left out" in found["fade"].note
    roomy = Fading(persona_factory(), DriftConfig(context_tokens=8192))
    assert by_name(Drift().score(variant(), mixed, roomy))["fade"].n == 10
    card = variant().model_copy(update={"system": "Long. " * 1500})
    withheld = by_name(Drift().score(card, some, Fading(persona_factory())))["fade"]
    assert withheld.value is None
    assert "drift.context_tokens" in withheld.note


def test_small_talk_grows_from_its_own_beginning() -> None:
    assert small_talk(0, 1) == ()
    assert small_talk(16, 1)[:8] == small_talk(4, 1)
    assert small_talk(16, 1) != small_talk(16, 2)
    assert [m.role for m in small_talk(2, 0)] == ["user", "assistant"] * 2
    with pytest.raises(ValueError, match="exchanges"):
        small_talk(len(EXCHANGES) + 1, 0)
