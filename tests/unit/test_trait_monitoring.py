"""Where texts stand along traits: the reading on a tiny model, the context that keeps it, what the evaluator says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from persona_lab_builtin.evaluators.traits import Traits, TraitsConfig

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput
from persona_lab.evaluation.context import Models, VariantContext
from persona_lab.home import Home
from persona_lab.inference.loading import load_model
from persona_lab.inference.trait_files import KeptTrait, kept_path, write_kept
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.models.weights import fingerprint
from persona_lab.testing import Workshop, check_evaluator
from persona_lab.traits import library
from persona_lab.traits.calibrate import compute
from persona_lab.traits.contrast import QUESTIONS, mean_states, tells_apart
from persona_lab.traits.reading import positions
from persona_lab.types import Message, Metric, Persona, Probe, Trait, TraitCalibration, TraitState, Variant

OWN = Trait(
    id="drawers", title="Drawers", towards_label="drawers", away_label="shelves",
    towards="You speak of drawers.", away="You speak of shelves.",
    towards_lines=("A drawer.", "Two drawers.", "The drawer is open."),
    away_lines=("A shelf.", "Two shelves.", "The shelf is high."),
)  # fmt: skip


def user(text: str) -> Message:
    return Message(role="user", content=text)


def calibration(steers: bool = True) -> TraitCalibration:
    strength = 2.0 if steers else None
    return TraitCalibration(
        layers=(0, 1), towards=strength, away=strength, unsteered_bits_per_byte=1.0, unsteered_repetition=0.0
    )


def have(home: Home, base: Path, *names: str, steers: bool = True) -> None:
    """These shipped traits are there for the base, with random vectors."""
    for number, name in enumerate(names):
        rng = numpy.random.default_rng(number)
        vectors = {layer: rng.normal(size=64).astype(numpy.float32) for layer in (0, 1)}
        kept = KeptTrait(library.trait(home, name), calibration(steers), vectors)
        write_kept(kept_path(home, name, fingerprint(base)), kept)


@pytest.fixture
def model(tiny_model: Path, home: Home) -> Any:
    return load_model(registry.describe(str(tiny_model), home), worker_machine(home.root), full_precision=True)


# --- the reading ----------------------------------------------------------------------------------


def test_the_example_lines_of_both_sides_lie_one_length_apart(model: Any, tiny_model: Path) -> None:
    """Whatever the layers are and whatever share of the vector each has in the file."""
    renderer = ChatRenderer(tiny_model)
    kept = compute(model, renderer, OWN, 0, lambda done, what: None)
    sides = [
        [([user(QUESTIONS[number])], line) for number, line in enumerate(lines)]
        for lines in (OWN.towards_lines, OWN.away_lines)
    ]
    found = positions(model, renderer, [kept], [*sides[0], *sides[1]])
    towards, away = ([place for (place,) in part] for part in (found[:3], found[3:]))
    assert numpy.mean(towards) - numpy.mean(away) == pytest.approx(1.0, abs=1e-3)
    assert kept.calibration.tells_apart is not None
    assert 0 <= kept.calibration.tells_apart <= 1


def test_only_the_last_reply_counts(model: Any, tiny_model: Path) -> None:
    """The reference is a pass over the ids, cut where the prompt ends."""
    renderer = ChatRenderer(tiny_model)
    messages = [user("Hi."), Message(role="assistant", content="A drawer, and what a drawer."), user("Why?")]
    items = [([user("Why is the sea in it?")], "It is calm there, and flat."), (messages, "Two shelves.")]
    rows = [row for batch in mean_states(model, renderer, items) for row in batch]
    for (said, reply), row in zip(items, rows, strict=True):
        ids = renderer.render([*said, Message(role="assistant", content=reply)]).ids
        start = len(renderer.prompt_ids(said))
        end = start + len(renderer.text_ids(reply)) + 1  # with the token that ends the turn
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]
        expected = torch.stack([layer[0, start:end].mean(dim=0) for layer in states])
        assert torch.allclose(row, expected, atol=1e-4)


def test_a_blank_reply_stands_nowhere(model: Any, tiny_model: Path) -> None:
    kept = KeptTrait(OWN, calibration(), {0: numpy.ones(64, dtype=numpy.float32)})
    found = positions(model, ChatRenderer(tiny_model), [kept], [([user("Hi.")], " \n"), ([user("Hi.")], "A shelf.")])
    assert found[0] == [None]
    assert isinstance(found[1][0], float)


# --- the context ----------------------------------------------------------------------------------


def test_the_base_reads_and_nothing_is_read_twice(
    tiny_model: Path, home: Home, persona_factory: Callable[..., Persona], reporter: Any
) -> None:
    have(home, tiny_model, "grumpy", "archaic")
    have(home, tiny_model, "sad", steers=False)
    machine = worker_machine(home.root)
    models = Models(home, machine, reporter)

    def context(**changes: Any) -> VariantContext:
        plain = {"id": "v", "name": "v", "persona": "p", "base": str(tiny_model), "strategy": "x", "kind": "prompt"}
        subject = Variant.model_validate(plain | changes)
        return VariantContext(models, reporter, subject, persona_factory(), None, machine, 0, False)

    ctx = context(system="Be brief.")
    assert {s.trait.id: s.status for s in ctx.computed_traits()} == {
        "grumpy": "ready", "archaic": "ready", "sad": "does not steer"
    }  # fmt: skip
    items = [((user("Why?"),), "Two shelves."), ((user("Why?"),), ""), ((user("Hi, you."),), "A drawer.")]
    found = ctx.along_traits(["grumpy", "archaic"], items)
    assert found[1] == {"grumpy": None, "archaic": None}
    assert len({found[0]["grumpy"], found[0]["archaic"], found[2]["grumpy"]}) == 3
    said = len(reporter.messages)
    # whoever asks, and however they are pulled or prompted: the unsteered base reads the text alone
    other = context(system="Be long.", traits={"grumpy": 60})
    pulled_base = context(kind="base", strategy="base", traits={"grumpy": 60})
    assert other.along_traits(["grumpy", "archaic"], items) == found
    assert pulled_base.along_traits(["grumpy", "archaic"], items[::-1]) == found[::-1]
    assert len(reporter.messages) == said
    have(home, tiny_model, "archaic", "grumpy")  # computed anew: other vectors
    assert ctx.along_traits(["grumpy", "archaic"], items)[0] != found[0]
    with pytest.raises(BadInput, match="was not computed"):
        ctx.along_traits(["sea"], items)


# --- the evaluator --------------------------------------------------------------------------------


class KnownPlaces:
    """A context in which a text stands where its last word says, along every trait; texts of the base say 0.1."""

    def __init__(self, persona: Persona, states: Sequence[TraitState], spoken: Sequence[str]) -> None:
        self.persona, self.dataset, self.seed, self.quick, self.settings = persona, None, 0, False, TraitsConfig()
        self.states, self.spoken = list(states), spoken
        self.asked: list[tuple[str, int]] = []

    def phase(self, title: str, total: int | None = None) -> None: ...

    def computed_traits(self) -> list[TraitState]:
        return self.states

    def generate(self, variant: Variant | None, prompts: Sequence[Any], sampling: Any) -> list[str]:
        self.asked.append((variant.id if variant else "", len(prompts)))
        return ["I say 0.1" if variant is None else self.spoken[i % len(self.spoken)] for i in range(len(prompts))]

    def along_traits(self, traits: Sequence[str], items: Sequence[Any]) -> list[dict[str, float | None]]:
        return [dict.fromkeys(traits, float(text.split()[-1]) if text.strip() else None) for _, text in items]


CARD = (
    "<START>\n{{user}}: Who?\n{{char}}: Me 0.4\n<START>\n{{user}}: Why?\n{{char}}: So 0.6\n"
    "<START>\n{{char}}: Nobody asked 9.0"
)
STATE = TraitState(trait=library.shipped()[0], status="ready", calibration=calibration())
PROBES = [
    Probe(id=f"p{i}", kind="reply", cluster=f"c{i // 2}", messages=(user(f"Question {i}?"),), reply=f"True {value}")
    for i, value in enumerate([0.7, 0.9, 0.8, 0.8, 0.75, 0.85] * 4)
]


def variant(**changes: Any) -> Variant:
    plain = {"id": "v1", "name": "v1", "persona": "tamsin", "base": "starter", "strategy": "lora", "kind": "adapter"}
    return Variant.model_validate(plain | changes)


def scored(context: KnownPlaces, who: Variant | None = None, probes: Sequence[Probe] = PROBES) -> dict[str, Metric]:
    found = Traits().score(who or variant(), probes, context)  # type: ignore[arg-type]
    return {metric.metric: metric for metric in found}


def test_a_variant_stands_between_its_base_and_the_real_lines(persona_factory: Callable[..., Persona]) -> None:
    context = KnownPlaces(persona_factory(mes_example=CARD), [STATE], ["I 0.3", "I 0.4", "I 0.5"])
    metrics = scored(context)
    own, real, card = (metrics[name] for name in ("grumpy", "grumpy.real", "grumpy.card"))
    assert own.value == pytest.approx(0.3)
    assert real.value == own.reference == pytest.approx(0.7)
    assert card.value == pytest.approx(0.4)  # what answers nothing is left out
    assert (own.n, real.n, card.n) == (24, 24, 2)
    assert own.low is not None
    assert own.high is not None
    assert 0 < own.low < 0.3 < own.high < 0.7
    assert "moved towards grumpy" in own.note
    assert "From its real lines it is -0.40" in own.note
    assert f"at +0.70 [{real.low:+.2f}, {real.high:+.2f}], the card's own lines at +0.40" in own.note
    assert all(m.better == "none" and not m.compared and m.title.startswith("Mood") for m in metrics.values())
    assert context.asked == [("", 24), ("v1", 24), ("", 2)]


def test_what_cannot_be_told_is_said_so(persona_factory: Callable[..., Persona]) -> None:
    still = scored(KnownPlaces(persona_factory(mes_example=""), [STATE], ["I 0.0", "I 0.1", "I 0.2"]))
    assert "cannot be told from the base" in still["grumpy"].note
    assert still["grumpy.card"].value is None
    assert "not known" in still["grumpy.card"].note
    assert "what the card wishes is not known" in still["grumpy"].note
    there = scored(KnownPlaces(persona_factory(mes_example=CARD), [STATE], ["I 0.7", "I 0.8", "I 0.9"]))
    assert "cannot be told from its real lines" in there["grumpy"].note
    back = scored(KnownPlaces(persona_factory(mes_example=CARD), [STATE], ["I -0.2", "I -0.3"]))
    assert "moved towards cheerful" in back["grumpy"].note


def test_blank_replies_are_left_out_and_the_base_is_at_0(persona_factory: Callable[..., Persona]) -> None:
    half = scored(KnownPlaces(persona_factory(mes_example=CARD), [STATE], ["I 0.4", " "]))
    assert (half["grumpy"].n, half["grumpy"].value) == (12, pytest.approx(0.3))
    none = scored(KnownPlaces(persona_factory(mes_example=CARD), [STATE], [""]))
    assert none["grumpy"].value is None
    assert "blank" in none["grumpy"].note
    context = KnownPlaces(persona_factory(mes_example=CARD), [STATE], ["I 5.0"])
    base = scored(context, variant(id="base-tamsin", kind="base", strategy="base"))
    assert base["grumpy"].value == 0
    assert "by definition" in base["grumpy"].note
    assert base["grumpy.real"].value == pytest.approx(0.7)
    assert context.asked == [("", 24), ("", 2)]


def test_a_trait_that_does_not_steer_is_marked(persona_factory: Callable[..., Persona]) -> None:
    weak = STATE.model_copy(update={"status": "does not steer"})
    assert "does not steer" in scored(KnownPlaces(persona_factory(mes_example=CARD), [weak], ["I 0.4"]))["grumpy"].note
    assert (
        "does not steer"
        not in scored(KnownPlaces(persona_factory(mes_example=CARD), [STATE], ["I 0.4"]))["grumpy"].note
    )


def test_a_vector_that_tells_nothing_apart_is_not_read(persona_factory: Callable[..., Persona]) -> None:
    def told(auc: float) -> dict[str, Metric]:
        found = STATE.model_copy(update={"calibration": calibration().model_copy(update={"tells_apart": auc})})
        return scored(KnownPlaces(persona_factory(mes_example=CARD), [found], ["I 0.4"]))

    assert [m.value for m in told(0.6).values()] == [None] * 3
    assert all(m.note.startswith("Withheld") and "0.60" in m.note for m in told(0.6).values())
    assert told(0.9)["grumpy"].value == pytest.approx(0.3)
    assert "AUC 0.90" in told(0.9)["grumpy"].note


def test_lines_are_told_apart_by_a_vector_that_they_are_not_in() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 12, 3, 400, generator=generator)
    # of noise alone a vector that was made of the lines themselves would tell all of them apart
    vector = noise[0].mean(dim=0) - noise[1].mean(dim=0)
    assert (noise[0] * vector).sum(dim=(1, 2)).min() > (noise[1] * vector).sum(dim=(1, 2)).max()
    assert tells_apart(noise[0], noise[1], (0, 1, 2)) < 0.75
    moved = noise[0] + 0.5
    assert tells_apart(moved, noise[1], (0, 2)) > 0.95
    assert tells_apart(noise[1], noise[1], (1,)) <= 0.5


def test_nothing_computed_says_what_to_do(persona_factory: Callable[..., Persona]) -> None:
    context = KnownPlaces(persona_factory(mes_example=CARD), [], ["I 0.4"])
    (empty,) = scored(context, variant(base="own", anchor="starter")).values()
    assert empty.value is None
    assert "persona-lab traits compute" in empty.note
    assert "--base starter" in empty.note  # what it is read by, not the foundation it lies on
    assert context.asked == []
    (no_lines,) = scored(KnownPlaces(persona_factory(mes_example=CARD), [STATE], ["I 0.4"]), probes=[]).values()
    assert "Import a dataset" in no_lines.note


@pytest.mark.parametrize("computed", [(), ("grumpy", "archaic")])
def test_it_is_held_to_what_every_evaluator_is(tmp_path: Path, tiny_model: Path, computed: tuple[str, ...]) -> None:
    shop = Workshop(tmp_path, base=tiny_model)
    have(shop.home, tiny_model, *computed)
    metrics = {metric.metric: metric for metric in check_evaluator(shop, "traits", replies=6)}
    if not computed:
        assert list(metrics) == ["positions"]
        return
    assert set(metrics) == {f"{name}{part}" for name in computed for part in ("", ".real", ".card")}
    assert metrics["grumpy.real"].n == 6
    assert metrics["grumpy"].low is not None
    assert not list(shop.home.traits.glob("sad/*"))  # nothing was computed
