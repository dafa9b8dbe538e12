"""Voice against a context whose replies are known: right, wrong and broken replies, and when it must stay silent."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from persona_lab_builtin.evaluators.voice import VoiceEvaluator

from persona_lab.evaluation.compare import compare_all
from persona_lab.evaluation.probes import reply_probes
from persona_lab.evaluation.replies import written_replies
from persona_lab.types import Conversation, Dataset, Message, Metric, Persona, Sampling, Variant

NOUNS = ("kettle", "ladder", "harbour", "biscuit", "drawer", "compass", "lantern", "gull", "rope", "stair", "map")


def piratical(rng: random.Random) -> str:
    return f"Arr! 'Tis the {rng.choice(NOUNS)}, matey; ye'll ne'er have me {rng.choice(NOUNS)}, arr"


def plain(rng: random.Random) -> str:
    return f"I think that the {rng.choice(NOUNS)} is beside the {rng.choice(NOUNS)} that you wanted"


def said(speaker: Callable[[random.Random], str], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"{speaker(rng)} {i}" for i in range(count)]


def dataset(own: Callable[[random.Random], str] = piratical, test: int = 60) -> Dataset:
    train, held_out = said(own, 80, 1), said(own, test, 2)
    conversations = tuple(
        Conversation(
            id=f"{split}{i}",
            split=split,
            group=f"{split}{i // 3}",
            messages=(
                Message(role="user", content=asked[i]),
                Message(role="assistant", content=line),
            ),
        )
        for split, lines in (("train", train), ("test", held_out))
        for asked in [said(plain, len(lines), 4 + len(lines))]
        for i, line in enumerate(lines)
    )
    return Dataset(
        id="d", persona="tamsin", version=1, name="d", conversations=conversations, others=tuple(said(plain, 200, 3))
    )


def variant(name: str = "v1", kind: Any = "adapter") -> Variant:
    return Variant(id=name, name=name, persona="tamsin", base="starter", strategy="lora", kind=kind, system="Be T.")


class KnownReplies:
    """Replies by variant id, in turn; remembers what it was asked."""

    def __init__(self, persona: Persona, dataset: Dataset | None, replies: dict[str, list[str]]) -> None:
        self.persona, self.dataset, self.seed, self.quick, self.settings = persona, dataset, 0, False, None
        self._replies = replies
        self.asked: list[tuple[str, list[Any], Sampling]] = []

    def phase(self, title: str, total: int | None = None) -> None: ...

    def generate(self, variant: Variant | None, prompts: Sequence[Any], sampling: Sampling) -> list[str]:
        name = variant.id if variant else "base"
        self.asked.append((name, list(prompts), sampling))
        return [self._replies[name][i % len(self._replies[name])] for i in range(len(prompts))]


def scored(context: KnownReplies, who: Variant, quick: bool = False) -> dict[str, Metric]:
    context.quick = quick
    probes = reply_probes(context.dataset) if context.dataset else []
    return {m.metric: m for m in VoiceEvaluator().score(who, probes, context)}  # type: ignore[arg-type]


def test_the_right_voice_is_in_the_middle_of_real_lines_and_a_wrong_one_at_the_bottom(
    persona_factory: Callable[..., Persona],
) -> None:
    context = KnownReplies(persona_factory(), dataset(), {"right": said(piratical, 60, 7), "wrong": said(plain, 60, 8)})
    right, wrong = scored(context, variant("right")), scored(context, variant("wrong"))
    assert right["percentile"].value == pytest.approx(0.5, abs=0.12)
    assert right["percentile"].low < right["percentile"].value < right["percentile"].high
    assert wrong["percentile"].value == 0
    assert (right["percentile"].better, right["percentile"].reference) == ("higher", 0.5)
    assert right["percentile"].title
    assert right["auc"].value == wrong["auc"].value > 0.95
    assert 0.9 < right["auc"].low <= right["auc"].value <= right["auc"].high <= 1
    assert not right["auc"].items
    found = compare_all(
        [variant("right"), variant("wrong")],
        {k: [m["percentile"], m["auc"]] for k, m in zip(("right", "wrong"), (right, wrong), strict=True)},
    )
    assert [c.metric for c in found] == ["percentile"]
    assert found[0].p_holm < 0.05


def test_broken_replies_count_nothing_and_say_why(persona_factory: Callable[..., Persona]) -> None:
    good = said(piratical, 1, 7)[0]
    loop = "arr arr arr arr arr arr arr arr"
    context = KnownReplies(
        persona_factory(), dataset(), {"v1": [good, loop, "As an AI language model, I cannot say arr, matey.", ""]}
    )
    metric = scored(context, variant())["percentile"]
    by_text = {item.text: item for item in metric.items}
    assert by_text[good].value > 0
    assert [by_text[text].value for text in (loop, "")] == [0, 0]
    assert by_text[""].note == "degenerate text: empty"
    assert "45 of 60 replies were broken" in metric.note
    assert metric.value == pytest.approx(by_text[good].value / 4)


def test_a_wrong_name_is_no_matter_of_voice(persona_factory: Callable[..., Persona]) -> None:
    line = f"{said(piratical, 1, 7)[0]}. My name is Kevin"
    context = KnownReplies(persona_factory(), dataset(), {"v1": [line]})
    assert "0 of 60 replies were broken" in scored(context, variant())["percentile"].note


def test_replies_are_written_in_one_call_spread_over_scenes(persona_factory: Callable[..., Persona]) -> None:
    context = KnownReplies(persona_factory(), dataset(), {"v1": said(piratical, 60, 7)})
    full = scored(context, variant())["percentile"]
    quick = scored(context, variant(), quick=True)["percentile"]
    assert [len(prompts) for _, prompts, _ in context.asked] == [60, 16]
    assert (full.n, quick.n) == (60, 16)
    assert len({item.cluster for item in quick.items}) == 16
    assert {i.id for i in quick.items} <= {i.id for i in full.items}
    chosen, replies = written_replies(context, variant(), reply_probes(context.dataset))  # type: ignore[arg-type]
    assert context.asked[-1] == context.asked[-2]  # the same prompts and sampling: kept replies serve both
    assert len(chosen) == len(replies) == 16


@pytest.mark.parametrize(
    ("data", "reason"),
    [(None, "no dataset"), (dataset(plain), "AUC is only"), (dataset(test=9), "only 9 held-out lines")],
)
def test_it_is_withheld_with_the_reason_and_writes_nothing(
    data: Dataset | None, reason: str, persona_factory: Callable[..., Persona]
) -> None:
    context = KnownReplies(persona_factory(), data, {"v1": ["Arr."]})
    metrics = scored(context, variant())
    assert metrics["percentile"].value is None
    assert reason in metrics["percentile"].note
    assert not context.asked
    assert (metrics["auc"].value is None) == (data is None)
