"""The facts evaluator against a context whose likelihoods are known, and answers against replies written to trip it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from persona_lab_builtin.evaluators.answer_matching import answer_kind, contains, given, same, tokens
from persona_lab_builtin.evaluators.facts import NEUTRAL, Facts, FactsConfig

from persona_lab.evaluation.probes import fact_probes
from persona_lab.personas.store import example_folders, load_persona
from persona_lab.types import Fact, LogLikelihood, Machine, Message, Metric, Persona, Sampling, Variant

MACHINE = Machine(
    device="cpu", device_name="test", cores=1, memory_bytes=1, memory_free_bytes=1, disk_free_bytes=1, bf16=False
)
VARIANT = Variant(id="v", name="V", persona="tamsin", base="starter", strategy="lora", kind="adapter", system="Be T.")


class KnownContext:
    """`after(question, answer)` and `before(answer)` are total log-likelihoods; replies follow `reply(question)`."""

    def __init__(
        self,
        persona: Persona,
        after: Callable[[str, str], float],
        before: Callable[[str], float] = lambda answer: 0.0,
        reply: Callable[[str], str] = lambda question: "Hm.",
        quick: bool = False,
        settings: Any = None,
    ) -> None:
        self.persona, self.dataset, self.machine, self.seed, self.quick = persona, None, MACHINE, 0, quick
        self.settings = settings or FactsConfig()
        self._after, self._before, self._reply = after, before, reply
        self.asked: list[str] = []

    def phase(self, title: str, total: int | None = None) -> None: ...
    def step(self, step: int, total: int, **values: float | str | None) -> None: ...
    def log(self, message: str, level: str = "info") -> None: ...
    def divergence(self, variant: Variant, passages: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def updates(self, variant: Variant) -> list[Any]:
        raise NotImplementedError

    def loglikelihood(self, variant: Variant | None, items: Sequence[tuple[Any, str]]) -> list[LogLikelihood]:
        assert variant is not None
        assert all(len(messages) == 1 for messages, _ in items)
        asked = [(messages[0].content, answer) for messages, answer in items]
        totals = [self._before(a) if question == NEUTRAL else self._after(question, a) for question, a in asked]
        return [LogLikelihood(total=t, tokens=1, bytes=len(a)) for t, (_, a) in zip(totals, asked, strict=True)]

    def generate(self, variant: Variant | None, prompts: Sequence[Any], sampling: Sampling) -> list[str]:
        assert sampling.temperature == 0
        self.asked += [messages[-1].content for messages in prompts]
        return [self._reply(messages[-1].content) for messages in prompts]


def fact(number: int, answer: str, wrong: Sequence[str], **more: Any) -> Fact:
    values = {"question": f"Question {number}?", "paraphrases": (f"Put otherwise {number}?", f"Or so {number}?")} | more
    return Fact(id=f"f{number}", answer=answer, wrong=tuple(wrong), **values)


def scored(persona: Persona, facts: Sequence[Fact], after: Any, **more: Any) -> tuple[dict[str, Metric], KnownContext]:
    persona = persona.model_copy(update={"facts": tuple(facts)})
    context = KnownContext(persona, after, **more)
    return {m.metric: m for m in Facts().score(VARIANT, fact_probes(persona), context)}, context


def twenty_four(wrong: int = 3) -> list[Fact]:
    letters = "abcdefghijklmnopqrstuvwx"
    return [fact(n, f"right{c}", [f"wrong{w}{c}" for w in "abcdef"[:wrong]]) for n, c in enumerate(letters)]


# --- likelihoods ----------------------------------------------------------------------------------


def test_margin_and_accuracy_follow_their_formulas(persona_factory: Callable[..., Persona]) -> None:
    before = {"wrongaa": -9.0}

    def after(question: str, answer: str) -> float:
        if answer == "wrongaa":  # less likely than the right one, but the question made it likelier by more
            return -4.0
        return -2.0 if answer.startswith("right") else -3.0

    metrics, _ = scored(persona_factory(), twenty_four(), after, before=lambda a: before.get(a, 0.0))
    margins = {i.id: i.value for i in metrics["margin"].items}
    assert margins["f0:0"] == pytest.approx(-2.0 - (-4.0 + 9.0))
    assert margins["f1:2"] == pytest.approx(1.0)
    assert metrics["margin"].value == pytest.approx((23 * 3 * 1.0 + 3 * -7.0) / 72)
    assert metrics["accuracy"].value == pytest.approx(23 / 24)
    assert metrics["accuracy"].reference == pytest.approx(0.25)
    assert metrics["margin"].n == 72
    assert "wrongaa" in metrics["margin"].items[0].note
    assert "wide" not in metrics["accuracy"].note
    low, high = metrics["accuracy"].low, metrics["accuracy"].high
    assert low is not None
    assert high is not None
    assert low < 23 / 24 <= high


def test_a_likelier_answer_gains_nothing_by_being_likely_anyway(persona_factory: Callable[..., Persona]) -> None:
    metrics, _ = scored(
        persona_factory(),
        twenty_four(),
        after=lambda question, answer: -1.0 if answer.startswith("wronga") else -8.0,
        before=lambda answer: -1.0 if answer.startswith("wronga") else -12.0 if answer.startswith("right") else -8.0,
    )
    assert metrics["accuracy"].value == 1.0
    assert metrics["margin"].value == pytest.approx(4.0)
    assert metrics["accuracy"].low == pytest.approx(0.862, abs=0.002)  # Wilson on 24 facts, not on 72 questions


def test_a_tie_is_not_a_right_answer(persona_factory: Callable[..., Persona]) -> None:
    metrics, _ = scored(persona_factory(), twenty_four(), after=lambda question, answer: -1.0)
    assert (metrics["accuracy"].value, metrics["margin"].value) == (0.0, 0.0)
    assert metrics["accuracy"].high is not None
    assert metrics["accuracy"].high > 0.1


def test_chance_follows_the_number_of_wrong_answers(persona_factory: Callable[..., Persona]) -> None:
    facts = [*twenty_four(3)[:1], *twenty_four(4)[1:2]]
    metrics, _ = scored(persona_factory(), facts, after=lambda question, answer: float(answer.startswith("right")))
    assert metrics["accuracy"].reference == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert "Only 2 facts" in metrics["accuracy"].note


def test_phrasings_of_a_fact_are_one_cluster(persona_factory: Callable[..., Persona]) -> None:
    """Half of the facts right: 3 phrasings each must not make the interval narrower than the facts alone do."""

    def after(question: str, answer: str) -> float:
        number = int(answer[-1] >= "m") if answer.startswith("right") else 0.5
        return float(number)

    thrice, _ = scored(persona_factory(), twenty_four(), after)
    once, _ = scored(persona_factory(), twenty_four(), after, settings=FactsConfig(phrasings=1))
    assert thrice["accuracy"].n == 72
    assert once["accuracy"].n == 24
    for side in ("low", "high"):
        assert getattr(thrice["accuracy"], side) == pytest.approx(getattr(once["accuracy"], side), abs=1e-9)


def test_how_much_is_asked(persona_factory: Callable[..., Persona]) -> None:
    facts = [fact(n, f"a{n}x", [f"b{n}x", f"c{n}x", f"d{n}x"]) for n in range(60)]
    full, context = scored(persona_factory(), facts, lambda q, a: 0.0)
    assert full["margin"].n == 120
    assert len(context.asked) == 40
    quick, context = scored(persona_factory(), facts, lambda q, a: 0.0, quick=True)
    again, _ = scored(persona_factory(), facts, lambda q, a: 0.0, quick=True)
    assert quick["margin"].n == 12
    assert len(context.asked) == 12
    assert [i.id for i in quick["margin"].items] == [i.id for i in again["margin"].items]
    assert "Only 12 facts" in quick["margin"].note
    few, _ = scored(persona_factory(), facts, lambda q, a: 0.0, settings=FactsConfig(facts=5, phrasings=2))
    assert few["margin"].n == 10


# --- which facts can be asked ---------------------------------------------------------------------


def test_without_facts_everything_is_withheld_and_says_what_to_do(persona_factory: Callable[..., Persona]) -> None:
    metrics, _ = scored(persona_factory(), [], lambda q, a: 0.0)
    assert set(metrics) == {"accuracy", "margin", "written"}
    for metric in metrics.values():
        assert (metric.value, metric.low, metric.n) == (None, None, 0)
        assert "persona-lab probes propose tamsin" in metric.note


def test_a_question_that_says_its_answer_is_not_asked(persona_factory: Callable[..., Persona]) -> None:
    told = fact(1, "Bolts", ["Nuts", "Screws", "Pins"], paraphrases=("Is Bolts the one who mends it?",))
    metrics, context = scored(persona_factory(), [told], lambda q, a: 0.0)
    assert metrics["margin"].n == 1
    assert context.asked == ["Question 1?"]
    hint = fact(2, "Bolts", ["Nuts", "Screws", "Pins", "Nails"], question="Nuts or no nuts, who?", paraphrases=())
    metrics, _ = scored(persona_factory(), [hint], lambda q, a: 5.0 if a == "Nuts" else float(a == "Bolts"))
    assert (metrics["margin"].value, metrics["accuracy"].reference) == (1.0, 0.25)
    always = fact(3, "Bolts", ["Nuts", "Screws", "Pins"], question="Who is Bolts?", paraphrases=())
    metrics, _ = scored(persona_factory(), [always], lambda q, a: 0.0)
    assert metrics["margin"].value is None
    assert "None of its 1 facts" in metrics["margin"].note


def test_missing_wrong_answers_come_from_facts_of_the_same_type(persona_factory: Callable[..., Persona]) -> None:
    ages = [
        fact(n, answer, wrong, question=question, paraphrases=())
        for n, (question, answer, wrong) in enumerate(
            [
                ("How old are you?", "fifty-seven", ["sixty"]),
                ("How many geese have you?", "12", []),
                ("How many cups did you win?", "six", []),
                ("How many stairs are there?", "sixty", []),
                ("What is your cat called?", "Clutch", ["Biscuit"]),
                ("What do you fear?", "deep water", ["fire"]),
            ]
        )
    ]
    metrics, _ = scored(persona_factory(), ages, lambda q, a: float(a == "sixty"))
    assert {i.cluster for i in metrics["margin"].items} == {"f0", "f1", "f2", "f3"}
    assert "2 facts are left out" in metrics["margin"].note
    assert "4 had too few wrong answers" in metrics["margin"].note
    values = {i.cluster: i.value for i in metrics["margin"].items}
    assert values["f0"] == -1.0
    assert values["f3"] == 1.0


def test_wrong_answers_that_are_right_or_twice_do_not_count(persona_factory: Callable[..., Persona]) -> None:
    doubled = fact(1, "nine seconds", ["9 seconds", "ten", "Ten", "eleven seconds"], paraphrases=())
    metrics, _ = scored(persona_factory(), [doubled], lambda q, a: 0.0)
    assert metrics["accuracy"].value is None


# --- written replies ------------------------------------------------------------------------------


def test_written_counts_right_replies_without_wrong_ones(persona_factory: Callable[..., Persona]) -> None:
    facts = [
        fact(n, a, w)
        for n, (a, w) in enumerate(
            [("Aberdeen", ["Cardiff", "Norwich", "Plymouth"]), ("61,400 marks", ["5", "6", "7"])]
        )
    ]
    replies = {
        "Question 0?": "Aberdeen, or was it Cardiff?",
        "Question 1?": "Sixty-one thousand four hundred, alas",
    }
    metrics, context = scored(persona_factory(), facts, lambda q, a: 0.0, reply=lambda q: replies[q])
    assert metrics["written"].value == 0.5
    assert metrics["written"].n == len(context.asked) == 2
    assert "says 'Cardiff'" in metrics["written"].items[0].note
    assert metrics["written"].items[0].text == replies["Question 0?"]


@pytest.mark.parametrize(
    ("reply", "right", "wrong", "expected"),
    [
        ("I am fifty-seven, Sir.", "57", ["49"], True),
        ("Two hundred and twelve hulls.", "212", ["148"], True),
        ("Three thousand and five.", "3,005", ["148"], True),
        ("Nine. Always nine.", "Nine seconds", ["Four seconds"], True),
        ("On the 9th of November", "9 November", ["3 March"], True),
        ("November the ninth lives", "9 November", ["3 March"], False),
        ("A cat has 9 lives.", "9 November", ["3 March"], False),
        ("It's the Pickersgill, love.", "The Pickersgill Cup", ["The Bramwell Cup"], True),
        ("Not Cardiff: Aberdeen.", "Aberdeen", ["Cardiff"], True),
        ("She's not in Aberdeen.", "Aberdeen", ["Cardiff"], False),
        ("A bus inspector, he was.", "inspector", ["bus inspector"], False),
        ("A bus inspector, he was.", "bus inspector", ["inspector"], True),
        ("Nineteen, down the lane.", "Plot 19", ["Plot 7"], True),
        ("Mine's seven.", "Plot 19", ["Plot 7"], False),
        ("I'm fond of catalogues.", "cat", ["dog"], False),
        ("My cats, both.", "a cat", ["a dog"], True),
        ("My right knee.", "my left knee", ["my right knee"], False),
        ("The clock above the mackerel.", "the Patient Mackerel", ["the Drowned Bell"], False),
        ("", "Walt", ["Frank"], False),
        ("One of those days.", "One hundred", ["Two"], False),
    ],
)
def test_answers_in_replies(reply: str, right: str, wrong: list[str], expected: bool) -> None:
    assert given(reply, right, wrong)[0] is expected


def test_numbers_and_words_are_compared_alike() -> None:
    assert tokens("The twenty-three Boxes, and 1,500 more") == ["23", "box", "and", "1500", "more"]
    assert tokens("three forty") == ["3", "40"]
    assert same("the Gilded Pestle", "Gilded pestle")
    assert not same("Doris", "Dora")
    assert contains("What does Crake say?", "crake")
    assert not contains("Crakes' yard?", "Crake Yardley")


def test_kinds_of_answers() -> None:
    assert answer_kind("fifty-seven", "How old are you?") == answer_kind("6 times", "How often?") == "number"
    assert answer_kind("1766", "When was it?") == "year"
    assert answer_kind("Aberdeen", "Where does she live?") == "place"
    assert answer_kind("Galen", "What is your tortoise called?") == "name"
    assert answer_kind("plum", "What colour is your coat?") == "colour"
    assert answer_kind("deep water", "What frightens you?") == ""


def test_long_replies_take_no_time() -> None:
    assert given("not " * 100_000 + "Walt", "Walt", ["Frank"])[0] is False


# --- what is shipped ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(example_folders()))
def test_shipped_personas_have_facts_that_can_all_be_asked(name: str) -> None:
    persona = load_persona(example_folders()[name])
    assert len(persona.facts) >= 20
    assert all(len(f.paraphrases) >= 2 and len(f.wrong) >= 3 for f in persona.facts)
    context = KnownContext(persona, lambda q, a: 0.0, reply=lambda q: "", settings=FactsConfig(facts=1000))
    metric = next(iter(Facts().score(VARIANT, fact_probes(persona), context)))
    assert metric.n == 3 * len(persona.facts), metric.note
    questions = [Message(role="user", content=q) for f in persona.facts for q in (f.question, *f.paraphrases)]
    assert len({m.content for m in questions}) == len(questions)
