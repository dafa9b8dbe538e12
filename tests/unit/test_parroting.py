"""Parroting against replies whose copying, variety and length are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from persona_lab_builtin.evaluators.parroting import Parroting
from persona_lab_builtin.evaluators.voice import VoiceEvaluator

from persona_lab.evaluation.compare import compare_all
from persona_lab.evaluation.probes import reply_probes
from persona_lab.types import Conversation, Dataset, Message, Metric, Persona, Sampling, Variant

VOCABULARY = [a + b for a in "bcdfgklmnprst" for b in ("ale", "ine", "ope", "ack", "urn", "ift", "oom", "est")]


def said(seed: int, count: int, words: int = 12, vocabulary: Sequence[str] = VOCABULARY) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(vocabulary) for _ in range(words)).capitalize() + "." for _ in range(count)]


TRAIN, TEST = said(1, 80), said(2, 50)


def dataset(test: Sequence[str] = TEST) -> Dataset:
    conversations = tuple(
        Conversation(
            id=f"{split}{i}",
            split=split,
            messages=(Message(role="user", content=f"Question {split} {i}?"), Message(role="assistant", content=line)),
        )
        for split, lines in (("train", TRAIN), ("test", test))
        for i, line in enumerate(lines)
    )
    return Dataset(id="d", persona="tamsin", version=1, name="d", conversations=conversations)


def variant(name: str = "v1") -> Variant:
    return Variant(id=name, name=name, persona="tamsin", base="starter", strategy="lora", kind="adapter")


class KnownReplies:
    def __init__(self, persona: Persona, dataset: Dataset | None, replies: Sequence[str]) -> None:
        self.persona, self.dataset, self.seed, self.quick, self.settings = persona, dataset, 0, False, None
        self._replies = replies
        self.asked: list[Any] = []

    def phase(self, title: str, total: int | None = None) -> None: ...

    def generate(self, variant: Variant | None, prompts: Sequence[Any], sampling: Sampling) -> list[str]:
        self.asked.append((list(prompts), sampling))
        return [self._replies[i % len(self._replies)] for i in range(len(prompts))]


def scored(persona: Persona, replies: Sequence[str], data: Dataset | None = None) -> dict[str, Metric]:
    context = KnownReplies(persona, data or dataset(), replies)
    probes = reply_probes(context.dataset) if context.dataset else []
    return {m.metric: m for m in Parroting().score(variant(), probes, context)}  # type: ignore[arg-type]


def test_replies_like_real_lines_deviate_in_nothing(persona_factory: Callable[..., Persona]) -> None:
    metrics = scored(persona_factory(), said(9, 50))
    assert metrics["copying"].value == 0
    assert metrics["length"].value == pytest.approx(1.0)
    assert metrics["distinct_2"].value == pytest.approx(metrics["distinct_2"].reference, abs=0.03)
    assert "Cannot be told" in metrics["distinct_2"].note
    assert all(m.title and m.n == 50 for m in metrics.values())
    assert [metrics[name].better for name in ("copying", "distinct_2", "length")] == ["lower", "none", "none"]


def test_copying_is_what_real_lines_do_not_do(persona_factory: Callable[..., Persona]) -> None:
    quoting = [f"Well, {TRAIN[3].lower()}" if i % 5 == 0 else line for i, line in enumerate(said(9, 50))]
    metric = scored(persona_factory(), quoting)["copying"]
    assert metric.value == pytest.approx(0.2)
    assert metric.low > 0
    quotes = [item for item in metric.items if item.value == 1]
    assert len(quotes) == 10
    assert quotes[0].note == f"training line: {' '.join(TRAIN[3].lower().split()[:8])!r}"
    habit = dataset([TRAIN[0].replace(".", "") + f" again {line}" if i < 5 else line for i, line in enumerate(TEST)])
    assert scored(persona_factory(), quoting, habit)["copying"].value == pytest.approx(0.2 - 0.1)


def test_seven_words_are_no_quotation_and_eight_are(persona_factory: Callable[..., Persona]) -> None:
    words = TRAIN[5].rstrip(".").lower().split()
    assert scored(persona_factory(), [" ".join(words[2:9])])["copying"].value == 0
    assert scored(persona_factory(), [" ".join(words[2:10]).upper() + "!"])["copying"].value == 1


def test_variety_and_length_are_faults_on_both_sides(persona_factory: Callable[..., Persona]) -> None:
    dull = scored(persona_factory(), said(9, 50, words=4, vocabulary=VOCABULARY[:4]))
    assert dull["distinct_2"].high < dull["distinct_2"].reference
    assert "repeats itself" in dull["distinct_2"].note
    assert dull["length"].value == pytest.approx(4 / 12)
    assert "Shorter" in dull["length"].note
    wild = scored(persona_factory(), [" ".join(f"word{i}x{j}" for j in range(30)) for i in range(50)])
    assert wild["distinct_2"].value == 1
    assert wild["length"].value == pytest.approx(2.5)
    assert "Longer" in wild["length"].note
    narrow = dataset(said(2, 50, vocabulary=VOCABULARY[:10]))
    assert "More varied" in scored(persona_factory(), said(9, 50), narrow)["distinct_2"].note


def test_the_amount_of_text_does_not_change_variety(persona_factory: Callable[..., Persona]) -> None:
    long = scored(persona_factory(), said(9, 50, words=48))["distinct_2"]
    short = scored(persona_factory(), said(9, 50))["distinct_2"]
    assert long.value == pytest.approx(short.value, abs=0.03)


def test_it_asks_for_the_replies_that_voice_asks_for(persona_factory: Callable[..., Persona]) -> None:
    data = dataset().model_copy(update={"others": tuple(said(4, 80, vocabulary=[w.upper() + "!" for w in VOCABULARY]))})
    context = KnownReplies(persona_factory(), data, said(9, 50))
    probes = reply_probes(data)
    for evaluator in (VoiceEvaluator(), Parroting()):
        list(evaluator.score(variant(), probes, context))  # type: ignore[arg-type]
    assert len(context.asked) == 2
    assert context.asked[0] == context.asked[1]


def test_it_is_compared_on_copying_alone(persona_factory: Callable[..., Persona]) -> None:
    copier = list(scored(persona_factory(), TRAIN).values())
    honest = list(scored(persona_factory(), said(9, 50)).values())
    found = compare_all([variant("copier"), variant("honest")], {"copier": copier, "honest": honest})
    assert [c.metric for c in found] == ["copying"]
    assert found[0].difference == pytest.approx(1)
    assert found[0].p_holm < 0.001


@pytest.mark.parametrize(
    ("data", "replies", "reason"),
    [
        (dataset(TEST[:9]), ["Words."], "only 9 held-out lines"),
        (dataset(), ["", " "], "no words"),
    ],
)
def test_it_is_withheld_with_the_reason(
    data: Dataset, replies: list[str], reason: str, persona_factory: Callable[..., Persona]
) -> None:
    metrics = scored(persona_factory(), replies, data)
    assert set(metrics) == {"copying", "distinct_2", "length"}
    assert all(m.value is None and reason in m.note for m in metrics.values())
    context = KnownReplies(persona_factory(), None, ["Words."])
    assert all("no dataset" in m.note for m in Parroting().score(variant(), [], context))  # type: ignore[arg-type]
