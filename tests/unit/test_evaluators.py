"""Evaluators against a context whose answers are known, and the rules against lines written to trip them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from persona_lab_builtin.evaluators.break_character import BreakCharacter
from persona_lab_builtin.evaluators.character_rules import CharacterRules, degenerate, speaks_for_user
from persona_lab_builtin.evaluators.held_out_gain import HeldOutGain

from persona_lab.errors import BadInput
from persona_lab.evaluation.compare import compare_all
from persona_lab.evaluation.probes import build_probes, check_leaks
from persona_lab.evaluation.style import StyleModel
from persona_lab.types import (
    Conversation,
    Dataset,
    ItemScore,
    LogLikelihood,
    Machine,
    Message,
    Metric,
    Persona,
    Sampling,
    Variant,
)

MACHINE = Machine(
    device="cpu", device_name="test", cores=1, memory_bytes=1, memory_free_bytes=1, disk_free_bytes=1, bf16=False
)
NOUNS = (
    "kettle",
    "ladder",
    "harbour",
    "biscuit",
    "drawer",
    "compass",
    "lantern",
    "gull",
    "rope",
    "stair",
    "map",
    "tide",
)


def variant(name: str = "v1", kind: Any = "adapter") -> Variant:
    return Variant(
        id=name, name=name.upper(), persona="tamsin", base="starter", strategy="lora", kind=kind, system="Be T."
    )


def data(own: Callable[[random.Random], str], other: Callable[[random.Random], str], count: int = 60) -> Dataset:
    rng = random.Random(1)
    conversations = [
        Conversation(
            id=f"c{i}",
            split="test" if i % 3 == 0 else "train",
            messages=(
                Message(role="user", content=f"Question {i} about a {rng.choice(NOUNS)}?"),
                Message(role="assistant", content=f"{own(rng)} {i}"),
            ),
        )
        for i in range(count * 3)
    ]
    others = tuple(f"{other(rng)} {i}" for i in range(count * 4))
    return Dataset(id="d", persona="tamsin", version=1, name="d", conversations=tuple(conversations), others=others)


def piratical(rng: random.Random) -> str:
    return f"Arr! 'Tis the {rng.choice(NOUNS)}, matey; ye'll ne'er have me {rng.choice(NOUNS)}, arr"


def plain(rng: random.Random) -> str:
    return f"I think that the {rng.choice(NOUNS)} is beside the {rng.choice(NOUNS)} that you wanted"


class KnownContext:
    """Scores and replies that the test decides: `score(variant or None, reply)` in nats a byte."""

    def __init__(
        self,
        persona: Persona,
        dataset: Dataset | None,
        score: Callable[[Variant | None, str], float],
        replies: Sequence[str] = (),
    ) -> None:
        self.persona, self.dataset, self.machine, self.seed, self.quick = persona, dataset, MACHINE, 0, False
        self._score, self._replies = score, replies

    def phase(self, title: str, total: int | None = None) -> None: ...
    def step(self, step: int, total: int, **values: float | str | None) -> None: ...
    def log(self, message: str, level: str = "info") -> None: ...

    def loglikelihood(self, variant: Variant | None, items: Sequence[tuple[Any, str]]) -> list[LogLikelihood]:
        sizes = [len(reply.encode()) for _, reply in items]
        return [
            LogLikelihood(total=self._score(variant, reply) * size, tokens=1, bytes=size)
            for (_, reply), size in zip(items, sizes, strict=True)
        ]

    def generate(self, variant: Variant | None, prompts: Sequence[Any], sampling: Sampling) -> list[str]:
        return [self._replies[i % len(self._replies)] for i in range(len(prompts))]


def by_name(metrics: Any) -> dict[str, Metric]:
    return {m.metric: m for m in metrics}


def test_held_out_gain_follows_its_formulas(persona_factory: Callable[..., Persona]) -> None:
    dataset = data(piratical, plain)
    trained = {m.content for c in dataset.of("train") for m in c.messages}

    def score(who: Variant | None, reply: str) -> float:
        if who is None:
            return -1.5
        return -0.5 if reply in trained else (-0.9 if "Arr" in reply else -1.3)

    context = KnownContext(persona_factory(), dataset, score)
    metrics = by_name(HeldOutGain().score(variant(), build_probes(context.persona, dataset), context))
    assert metrics["g_true"].value == pytest.approx(0.6)
    assert metrics["g_other"].value == pytest.approx(0.2)
    assert metrics["specificity"].value == pytest.approx(0.4)
    assert "+0.577 bits/byte" in metrics["specificity"].note
    assert metrics["bpb_base"].value == pytest.approx(1.5 / math.log(2))
    assert metrics["bpb_variant"].value == pytest.approx(0.9 / math.log(2))
    assert metrics["bpb_variant"].reference == pytest.approx(metrics["bpb_base"].value)
    assert metrics["generalisation_gap"].value == pytest.approx(0.4 / math.log(2))
    assert metrics["specificity"].n == len(metrics["specificity"].items) == len(dataset.of("test"))


def test_the_base_gains_nothing_by_definition(persona_factory: Callable[..., Persona]) -> None:
    dataset = data(piratical, plain)
    context = KnownContext(persona_factory(), dataset, lambda who, reply: -1.5)
    metrics = by_name(HeldOutGain().score(variant("b", "base"), build_probes(context.persona, dataset), context))
    assert (metrics["specificity"].value, metrics["specificity"].low, metrics["specificity"].high) == (0, 0, 0)
    assert "by definition" in metrics["specificity"].note
    assert metrics["bpb_variant"].value == pytest.approx(1.5 / math.log(2))


def test_without_a_dataset_metrics_say_why_they_are_missing(persona_factory: Callable[..., Persona]) -> None:
    context = KnownContext(persona_factory(), None, lambda who, reply: -1, ["A reply in plain words."])
    probes = build_probes(context.persona, None)
    assert all(m.value is None and m.note for m in HeldOutGain().score(variant(), probes, context))
    metrics = by_name(BreakCharacter().score(variant(), probes, context))
    assert metrics["aligned"].value == 1
    assert metrics["minor"].value is None
    assert "no dataset" in metrics["minor"].note


def test_break_character_splits_three_ways_and_gives_the_references(persona_factory: Callable[..., Persona]) -> None:
    dataset = data(piratical, plain)
    replies = [
        "Arr! 'Tis the kettle, matey; ye'll ne'er have me gull, arr 7",
        "I think that the ladder is beside the harbour that you wanted.",
        "As an AI language model, I cannot do that.",
        "",
    ]
    context = KnownContext(persona_factory(), dataset, lambda who, reply: -1, replies)
    metrics = by_name(BreakCharacter().score(variant(), build_probes(context.persona, dataset), context))
    assert metrics["aligned"].value == pytest.approx(0.25)
    assert metrics["minor"].value == pytest.approx(0.25)
    assert metrics["off"].value == pytest.approx(0.5)
    assert metrics["off"].n == 40
    assert metrics["real_aligned"].value == pytest.approx(0.9)
    assert metrics["others_minor"].value == pytest.approx(1.0)
    assert metrics["aligned"].reference == metrics["real_aligned"].value
    assert not metrics["real_off"].items
    assert [name for name, found in metrics.items() if found.compared] == ["aligned"]
    assert metrics["aligned"].title == "Stays in character"
    notes = {i.text: i.note for i in metrics["off"].items}
    assert notes[replies[2]].startswith("assistant phrase")


def test_voice_is_withheld_where_the_model_cannot_tell_speakers_apart(persona_factory: Callable[..., Persona]) -> None:
    dataset = data(plain, plain)
    context = KnownContext(persona_factory(), dataset, lambda who, reply: -1, ["The kettle is here, I think."])
    metrics = by_name(BreakCharacter().score(variant(), build_probes(context.persona, dataset), context))
    assert metrics["minor"].value is None
    assert "AUC is only" in metrics["minor"].note
    assert metrics["aligned"].value == 1


def test_style_model_needs_enough_lines_and_ranks_within_real_ones() -> None:
    rng = random.Random(0)
    own, others = [piratical(rng) for _ in range(60)], [plain(rng) for _ in range(60)]
    assert StyleModel.fit(own[:10], others[:10]) is None
    model = StyleModel.fit(own, others)
    assert model is not None
    assert model.auc > 0.95
    assert model.percentiles(own, own).mean() == pytest.approx(0.49, abs=0.02)
    assert model.percentiles(others, own).max() == 0


@pytest.mark.parametrize(
    "text",
    [
        "As an AI, I don't have feelings.",
        "I'm a large language model, you know.",
        "I'm just a helpful assistant.",
        "How can I assist you today?",
        "I’m here to help!",
        "My training data ends in 2023.",
        "Certainly! Here is your letter.",
        "Awesome question, I'm more than happy to provide a solution.",
        "Here is a Python function that does it.",
        "```python\nclass Node:\n```",
        "1. **Bacon**\n2. **Eggs**",
        "- bacon\n- eggs\n- toast",
        "| Pros | Cons |",
    ],
)
def test_assistant_phrases_are_off(text: str, persona_factory: Callable[..., Persona]) -> None:
    assert "assistant phrase" in CharacterRules.of(persona_factory(), None).broken(text)


@pytest.mark.parametrize(
    "text",
    [
        "I am a keeper of lamps, and an assistant to nobody.",
        "Help? I help myself to biscuits.",
        "Well - I never - and that is all.",
        "I am English. I am Captain of nothing.",
        "They call me Tamsin Quill, the cartographer.",
        "Here is my hat. I am ready to leave, and glad to.",
        "You: a person of taste. I: a person of drawers.".replace("You:", "You,"),
        "No, no, no, no. I never said so; never, never.",
        "😀 Well.",
        "The same again? And again? Then the tide, the gull, the rope, and the same again tomorrow.",
    ],
)
def test_in_character_lines_are_not_off(text: str, persona_factory: Callable[..., Persona]) -> None:
    assert CharacterRules.of(persona_factory(), None).broken(text) == ""


@pytest.mark.parametrize("text", ["", "  \n", "😀😀😀", "I do. " * 12, "no " * 9, "the cat sat on the mat and " * 3])
def test_degenerate_text(text: str) -> None:
    assert degenerate(text).startswith("degenerate")


@pytest.mark.parametrize(
    "text", ["Fine.\nUser: and then?", "<|im_start|>user", "{{user}} nods.", "Human: hello", "ok\nassistant\nyes"]
)
def test_speaking_for_the_user(text: str) -> None:
    assert speaks_for_user(text)


def test_facts_and_names_contradict_only_when_they_are_distinctive(persona_factory: Callable[..., Persona]) -> None:
    persona = persona_factory()
    fact = persona.facts[0].model_copy(update={"answer": "Tin Prayer", "wrong": ("Brass Vow", "tea")})
    rules = CharacterRules.of(persona.model_copy(update={"facts": (fact,)}), None)
    assert "Brass Vow" in rules.broken("She is called the Brass Vow, my ship.")
    assert rules.broken("She was never the Brass Vow.") == ""
    assert rules.broken("Not the Brass Vow: the Tin Prayer.") == ""
    assert rules.broken("I had some tea before.") == ""
    assert "Kevin" in rules.broken("Yes, my name is Kevin.")
    assert rules.broken("My name is Tamsin.") == ""


def test_what_the_character_says_itself_is_not_held_against_it(persona_factory: Callable[..., Persona]) -> None:
    line = "How may I help you today? Dentures are on the left."
    conversation = Conversation(
        id="c", split="train", messages=(Message(role="user", content="Hi"), Message(role="assistant", content=line))
    )
    shop = Dataset(id="d", persona="tamsin", version=1, name="d", conversations=(conversation,))
    assert CharacterRules.of(persona_factory(), shop).broken("How can I help you?") == ""
    assert CharacterRules.of(persona_factory(), None).broken("How can I help you?")


def test_who_it_says_it_is_and_whom_it_speaks_to(persona_factory: Callable[..., Persona]) -> None:
    rules = CharacterRules.of(persona_factory(), None)
    assert "Captain Redbeard" in rules.broken("Arr, I'm Captain Redbeard, of the seas.")
    assert "Kevin" in rules.broken("I am Kevin.", "You said you were called Kevin. Admit it.")
    assert rules.broken("I am English, and I'm Tamsin Quill.", "Are you Kevin?") == ""
    for text in ("It is a pleasure to meet you, Tamsin Quill.", "Yes, Tamsin Quill, I know.", "Dear Tamsin Quill,\nHi"):
        assert "to the character" in rules.broken(text)
    narcissist = Conversation(
        id="c", split="train", messages=(Message(role="assistant", content="Well done, Tamsin Quill!"),)
    )
    own = Dataset(id="d", persona="tamsin", version=1, name="d", conversations=(narcissist,))
    assert CharacterRules.of(persona_factory(), own).broken("Oh, Tamsin Quill, how could you.") == ""


def test_reciting_the_instructions_is_off(persona_factory: Callable[..., Persona]) -> None:
    rules = CharacterRules.of(persona_factory(), None)
    system = "You are Tamsin Quill. Answer every question along its creases and never raise your voice."
    assert "recites" in rules.broken("Answer every question along its creases and never raise your voice", "", system)
    assert "echoes" in rules.broken("Tell me what you keep in drawers. Hm.", "Tell me what you keep in drawers?")


# --- comparisons ----------------------------------------------------------------------------------


def metric(values: Sequence[float], better: Any = "higher", unit: str = "nats/byte") -> Metric:
    items = tuple(ItemScore(id=str(i), cluster=str(i), value=v) for i, v in enumerate(values))
    mean = sum(values) / len(values)
    return Metric(
        evaluator="e", metric="m_x", value=mean, low=0, high=0, n=len(values), unit=unit, better=better, items=items
    )


def test_comparisons_find_a_real_difference_and_admit_the_rest() -> None:
    rng = random.Random(0)
    base = [rng.gauss(0, 1) for _ in range(60)]
    good = [v + rng.gauss(0.8, 0.5) for v in base]
    same = [v + rng.gauss(0, 0.5) for v in base]
    variants = [variant("a"), variant("b"), variant("c")]
    found = compare_all(variants, {"a": [metric(base)], "b": [metric(good)], "c": [metric(same)]})
    assert [(c.a, c.b) for c in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    first, second, _ = found
    assert first.verdict == f"B is better than A on m x (p = {first.p_holm:.2g})."
    assert first.low < first.difference < first.high < 0
    assert "cannot be told apart" in second.verdict
    assert all(c.p <= c.p_holm <= 1 for c in found)


def test_lower_is_better_turns_the_verdict_and_descriptive_metrics_are_not_compared() -> None:
    low, high = [0.1 + i / 1000 for i in range(40)], [0.9 + i / 1100 for i in range(40)]
    lower = compare_all([variant("a"), variant("b")], {"a": [metric(low, "lower")], "b": [metric(high, "lower")]})
    assert lower[0].verdict.startswith("A is better than B")
    assert compare_all([variant("a"), variant("b")], {"a": [metric(low, "none")], "b": [metric(high, "none")]}) == []


def test_the_same_difference_in_another_unit_is_compared_once() -> None:
    rng = random.Random(0)
    a, b = [rng.gauss(0, 1) for _ in range(30)], [rng.gauss(0, 1) for _ in range(30)]
    in_bits = [
        metric([v / -math.log(2) for v in values], "lower").model_copy(update={"metric": "bits"}) for values in (a, b)
    ]
    found = compare_all([variant("a"), variant("b")], {"a": [metric(a), in_bits[0]], "b": [metric(b), in_bits[1]]})
    assert [c.metric for c in found] == ["m_x"]


def test_yes_no_items_use_mcnemar() -> None:
    a, b = [1.0] * 10 + [0.0] * 30, [0.0] * 40
    found = compare_all([variant("a"), variant("b")], {"a": [metric(a)], "b": [metric(b)]})
    assert found[0].p == pytest.approx(2 * 0.5**10)


def test_leaks_between_versions_of_the_data_are_found() -> None:
    dataset = data(piratical, plain, count=5)
    moved = tuple(c.model_copy(update={"split": "train"}) for c in dataset.of("test"))
    with pytest.raises(BadInput, match="were trained on"):
        check_leaks(dataset, dataset.model_copy(update={"conversations": moved}))
