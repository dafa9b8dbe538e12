"""Reply ranking against likelihoods that are known: ranks, ties, chance, distractors, and when it must stay silent."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from persona_lab_builtin.evaluators.reply_ranking import ReplyRanking, chance, rank_of

from persona_lab.api import Line, distractors, own_lines
from persona_lab.evaluation.probes import normalised, reply_probes
from persona_lab.types import Conversation, Dataset, LogLikelihood, Message, Metric, Persona, Probe, Variant

WORDS = ("kettle", "ladder", "harbour", "biscuit", "drawer", "compass", "lantern", "gull", "rope", "stair", "tide")


def line(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(6, 9)))


def dataset(test: int = 30, others: int = 80) -> Dataset:
    rng = random.Random(3)
    conversations = tuple(
        Conversation(
            id=f"t{i}",
            split="test",
            group=f"scene{i // 3}",
            messages=(
                Message(role="user", content=f"What about {line(rng)}?"),
                Message(role="assistant", content=f"Mine: {line(rng)} {i}"),
            ),
        )
        for i in range(test)
    )
    lines = tuple(f"Theirs: {line(rng)} {i}" for i in range(others))
    return Dataset(id="d", persona="tamsin", version=1, name="d", conversations=conversations, others=lines)


def variant(kind: Any = "adapter") -> Variant:
    return Variant(id="v", name="v", persona="tamsin", base="starter", strategy="lora", kind=kind, system="Be T.")


class Known:
    """A context whose likelihoods come from a rule; counts its calls."""

    def __init__(self, persona: Persona, data: Dataset | None, quick: bool, tuned: Callable[..., float]) -> None:
        self.persona, self.dataset, self.quick, self.seed = persona, data, quick, 0
        self.tuned = tuned
        self.calls = 0

    def phase(self, title: str, total: int | None = None) -> None: ...

    def loglikelihood(self, variant: Variant | None, items: Any) -> list[LogLikelihood]:
        self.calls += 1
        rule = self.tuned if variant is not None else base_rule
        return [
            LogLikelihood(total=rule(m[-1].content, y) * len(y.encode()), tokens=1, bytes=len(y.encode()))
            for m, y in items
        ]


def base_rule(prompt: str, reply: str) -> float:
    """Something arbitrary, but the same every time."""
    return -1.0 - random.Random(reply).random() / 2


def by_name(metrics: Any) -> dict[str, Metric]:
    return {metric.metric: metric for metric in metrics}


def test_ranks_share_ties() -> None:
    assert rank_of(1.0, [0.0, 0.5]) == {"wins": 1.0, "mrr": 1.0, "hits_at_1": 1.0}
    assert rank_of(0.2, [0.0, 0.5, 0.9]) == {"wins": 1 / 3, "mrr": 1 / 3, "hits_at_1": 0.0}
    assert rank_of(0.5, [0.5, 0.1]) == {"wins": 0.75, "mrr": 0.75, "hits_at_1": 0.5}
    assert rank_of(0.0, [0.0] * 19) == pytest.approx(chance(20))
    assert chance(20) == pytest.approx({"wins": 0.5, "mrr": 0.1798870, "hits_at_1": 0.05})


def test_a_variant_that_knows_the_voice_wins_on_voice_and_not_on_relevance(
    persona_factory: Callable[..., Persona],
) -> None:
    def tuned(prompt: str, reply: str) -> float:
        return base_rule(prompt, reply) + (0.3 if reply.startswith("Mine") else 0.1)

    data = dataset()
    context = Known(persona_factory(), data, False, tuned)
    found = by_name(ReplyRanking().score(variant(), reply_probes(data), context))
    assert found["voice_wins_g"].value == 1.0
    assert found["voice_mrr_g"].value == 1.0
    assert found["voice_hits_at_1_g"].value == 1.0
    assert 0.1 < found["voice_mrr"].value < 1.0
    # all its own lines gain the same: nothing tells the true one
    assert found["relevance_mrr_g"].value == pytest.approx(found["relevance_mrr_g"].reference, abs=1e-6)
    assert found["relevance_wins_g"].value == pytest.approx(0.5)
    assert found["voice_mrr_g"].reference == pytest.approx(chance(20)["mrr"])
    assert {name for name, metric in found.items() if metric.compared} == {"voice_wins_g", "relevance_wins_g"}
    assert all(metric.title for metric in found.values())
    assert context.calls == 2  # everything of a model is asked for at once


def test_the_base_is_exactly_at_chance_by_gain(persona_factory: Callable[..., Persona]) -> None:
    data = dataset()
    found = by_name(
        ReplyRanking().score(variant("base"), reply_probes(data), Known(persona_factory(), data, True, base_rule))
    )
    for kind in ("voice", "relevance"):
        assert found[f"{kind}_wins_g"].value == pytest.approx(0.5)
        assert found[f"{kind}_mrr_g"].value == pytest.approx(chance(8)["mrr"])
        assert found[f"{kind}_hits_at_1_g"].value == pytest.approx(1 / 8)
        assert found[f"{kind}_mrr_g"].n == 16


def test_a_relevant_reply_is_told_from_others_of_the_character(persona_factory: Callable[..., Persona]) -> None:
    data = dataset()
    true = {p.messages[-1].content: p.reply for p in reply_probes(data)}

    def tuned(prompt: str, reply: str) -> float:
        return base_rule(prompt, reply) + (0.3 if true[prompt] == reply else 0.1)

    found = by_name(ReplyRanking().score(variant(), reply_probes(data), Known(persona_factory(), data, False, tuned)))
    assert found["relevance_hits_at_1_g"].value == 1.0
    assert "beats 100% of 19" in found["relevance_mrr_g"].items[0].note


def test_too_little_to_rank_is_withheld_with_its_reason(persona_factory: Callable[..., Persona]) -> None:
    few = dataset(test=3, others=2)
    found = by_name(ReplyRanking().score(variant(), reply_probes(few), Known(persona_factory(), few, False, base_rule)))
    assert all(metric.value is None and "Withheld" in metric.note for metric in found.values())
    assert "only 2 of its own replies" in found["relevance_mrr_g"].note
    none = by_name(ReplyRanking().score(variant(), [], Known(persona_factory(), few, False, base_rule)))
    assert "no held-out replies" in none["voice_mrr_g"].note


def test_distractors_are_alike_in_length_and_never_the_answer_or_the_context() -> None:
    data = dataset(test=60)
    probes = reply_probes(data)
    pool = own_lines(probes)
    chosen = distractors(probes, pool, 19, seed=1)
    again = distractors(probes, list(reversed(pool)), 19, seed=1)
    assert [c.wrong for c in chosen] == [c.wrong for c in again]
    assert [c.wrong for c in chosen] != [c.wrong for c in distractors(probes, pool, 19, seed=2)]
    scenes = {probe.reply: probe.cluster for probe in probes}
    for found in chosen:
        size = len(found.probe.reply.encode())
        assert len(set(found.wrong)) == 19
        assert found.probe.reply not in found.wrong
        assert all(scenes[text] != found.probe.cluster for text in found.wrong)
        outside = sum(abs(len(text.encode()) - size) > 0.3 * size for text in found.wrong)
        assert outside == found.outside == 0


def test_a_line_of_the_context_is_no_distractor() -> None:
    asked = Probe(
        id="p",
        kind="reply",
        cluster="c",
        reply="The clock is slow.",
        messages=(Message(role="user", content="The kettle is slow!"),),
    )
    pool = [Line("the KETTLE is slow"), Line("The clock is slow?"), Line("The ladder is slow.")]
    assert distractors([asked], pool, 19)[0].wrong == ("The ladder is slow.",)
    assert normalised("the KETTLE is slow") == normalised("The kettle is slow!")
