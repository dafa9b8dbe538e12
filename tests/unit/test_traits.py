"""Traits: library, vectors on disk, what settings add up to, computing on a tiny model, variants that keep a pull."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, BadModel, UnknownName
from persona_lab.home import Home
from persona_lab.inference.decoding import generate
from persona_lab.inference.loading import VariantHost, load_model
from persona_lab.inference.prompting import messages_for
from persona_lab.inference.scoring import loglikelihood
from persona_lab.inference.trait_files import (
    KeptTrait,
    balanced,
    find_kept,
    kept_path,
    parse_traits,
    read_kept,
    settings_of,
    told,
    total_shift,
    write_kept,
)
from persona_lab.models import registry
from persona_lab.models import weights as weights_module
from persona_lab.models.machine import worker_machine
from persona_lab.models.weights import fingerprint
from persona_lab.testing import Watcher, Workshop, made_up_conversation
from persona_lab.traits import library
from persona_lab.traits.calibrate import (
    AIM,
    FINE,
    MORE_BITS,
    MORE_REPETITION,
    STEPS,
    _Strength,
    _strongest,
    candidates,
    compute,
    repetition,
)
from persona_lab.traits.contrast import QUESTIONS, contrast
from persona_lab.traits.library import told as told_state
from persona_lab.traits.run import run
from persona_lab.types import Job, Message, Probe, Sampling, Trait, TraitCalibration, Variant, now

GREEDY = Sampling(temperature=0, max_new_tokens=10, repetition_penalty=1)
ASKED = [Message(role="user", content="Why do you keep the sea in a drawer?")]
OWN = Trait(
    id="drawers",
    title="Drawers",
    towards_label="drawers",
    away_label="shelves",
    towards="You speak of drawers.",
    away="You speak of shelves.",
    towards_lines=("A drawer.", "Two drawers.", "The drawer is open."),
    away_lines=("A shelf.", "Two shelves.", "The shelf is high."),
)


def calibration(**changes: Any) -> TraitCalibration:
    plain: dict[str, Any] = {
        "layers": (0, 1),
        "towards": 2.0,
        "away": 4.0,
        "unsteered_bits_per_byte": 1.0,
        "unsteered_repetition": 0.0,
    }
    return TraitCalibration(**(plain | changes))


def kept(trait: Trait, seed: int = 0, **changes: Any) -> KeptTrait:
    """Something random that changes what a tiny model says."""
    rng = numpy.random.default_rng(seed)
    vectors = {layer: rng.normal(size=64).astype(numpy.float32) for layer in (0, 1)}
    return KeptTrait(trait, calibration(**changes), vectors)


def have(home: Home, model: Path, *traits: str, **changes: Any) -> None:
    """These traits are there for the model."""
    for number, name in enumerate(traits):
        path = kept_path(home, name, fingerprint(model))
        write_kept(path, kept(library.trait(home, name), number, **changes))


def variant(base: Path, **changes: Any) -> Variant:
    plain = {"id": "v", "name": "v", "persona": "p", "base": str(base), "strategy": "base", "kind": "base"}
    return Variant.model_validate(plain | changes)


# --- the library ----------------------------------------------------------------------------------


def test_the_shipped_traits_are_whole() -> None:
    found = library.shipped()
    assert len(found) >= 16
    assert len({trait.id for trait in found}) == len({trait.title for trait in found}) == len(found)
    for trait in found:
        assert len(trait.towards_lines) >= 6
        assert len(trait.away_lines) >= 6
        assert not set(trait.towards_lines) & set(trait.away_lines)


def test_the_benchmark_judges_by_lines_and_questions_that_built_nothing() -> None:
    from persona_lab.traits import calibrate

    file = Path(__file__).resolve().parents[2] / "benchmarks" / "traits_held_out.json"
    held_out = json.loads(file.read_text(encoding="utf-8"))
    assert set(held_out["lines"]) == {trait.id for trait in library.shipped()}
    built = {line for trait in library.shipped() for line in (*trait.towards_lines, *trait.away_lines)}
    assert not built & {line for sides in held_out["lines"].values() for side in sides.values() for line in side}
    assert not {*QUESTIONS, *calibrate.QUESTIONS} & set(held_out["prompts"])
    assert len(set(held_out["prompts"])) == 40


def test_own_traits_are_kept_replaced_and_put_aside(home: Home, tiny_model: Path) -> None:
    with Engine.open(home.root) as engine:
        assert engine.add_trait(OWN).own
        assert [state.trait.id for state in engine.traits()][-1] == "drawers"
        have(home, tiny_model, "drawers")
        assert engine.traits(str(tiny_model))[-1].status == "ready"
        engine.add_trait(OWN.model_copy(update={"title": "Furniture"}))
        assert engine.traits(str(tiny_model))[-1].status == "ready"  # a name changes no vector
        engine.add_trait(OWN.model_copy(update={"towards": "You speak of nothing but drawers."}))
        assert engine.traits(str(tiny_model))[-1].status == "not computed"
        engine.delete_trait("drawers")
        with pytest.raises(UnknownName, match="grumpy"):
            engine.trait("drawers")
        engine.undo_delete()
        assert engine.trait("drawers").towards == "You speak of nothing but drawers."
        with pytest.raises(BadInput, match="shipped"):
            engine.delete_trait("grumpy")
        with pytest.raises(BadInput, match="already"):
            engine.add_trait(OWN.model_copy(update={"id": "grumpy"}))


def test_a_file_that_is_no_trait_is_refused_with_its_problems() -> None:
    assert library.read_file(OWN.model_dump_json()).id == "drawers"
    with pytest.raises(BadInput, match=r"away: Field required.*hobby: Extra"):
        library.read_file(
            '{"id": "x", "title": "X", "towards_label": "a", "away_label": "b", "towards": "t", "hobby": 1}'
        )
    with pytest.raises(BadInput, match="no JSON object"):
        library.read_file("{")


# --- numbers on disk ------------------------------------------------------------------------------


def test_a_kept_trait_comes_back_as_it_was(tmp_path: Path) -> None:
    one = kept(OWN)
    write_kept(tmp_path / "x.safetensors", one)
    back = read_kept(tmp_path / "x.safetensors")
    assert (back.trait, back.calibration) == (one.trait, one.calibration)
    assert all(numpy.array_equal(back.vectors[layer], one.vectors[layer]) for layer in (0, 1))
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BadModel, match="Compute the trait again"):
        read_kept(tmp_path / "x.safetensors")


def test_a_setting_is_a_share_of_the_strongest_pull_of_its_side() -> None:
    one = kept(OWN)
    assert numpy.allclose(one.pulled(50)[0], one.vectors[0] * 1.0)
    assert numpy.allclose(one.pulled(-50)[1], one.vectors[1] * -2.0)
    assert one.pulled(0) == {}
    with pytest.raises(BadInput, match="towards 'shelves'"):
        kept(OWN, away=None).pulled(-10)


def test_settings_are_read_and_checked() -> None:
    assert parse_traits("grumpy=60, archaic=-30;warm=0") == {"grumpy": 60, "archaic": -30, "warm": 0}
    assert settings_of({"grumpy": 60, "warm": 0}) == {"grumpy": 60}
    assert told({"grumpy": 60, "archaic": -30, "warm": 0}) == "archaic -30, grumpy +60"
    for wrong in ("grumpy", "grumpy=much", "=4", "grumpy=101", "grumpy=nan"):
        with pytest.raises(BadInput):
            parse_traits(wrong)


def test_several_pulls_together_are_no_stronger_than_one() -> None:
    assert balanced({"a": 30.0, "b": 40.0}) == {"a": 30.0, "b": 40.0}
    both = balanced({"a": 100.0, "b": -100.0})
    assert both["a"] == -both["b"] == pytest.approx(70.71, abs=0.01)


def test_total_shift_adds_and_prefers_the_variants_own_copies(home: Home, tiny_model: Path, tmp_path: Path) -> None:
    have(home, tiny_model, "grumpy", "archaic")
    weights = [fingerprint(tiny_model)]
    pulled = variant(tiny_model, traits={"grumpy": 30, "archaic": -40})
    total = total_shift(pulled, home, weights)
    parts = [read_kept(kept_path(home, name, weights[0])) for name in ("grumpy", "archaic")]
    assert numpy.allclose(total[0], parts[0].vectors[0] * 0.6 - parts[1].vectors[0] * 1.6, atol=1e-5)
    with pytest.raises(BadInput, match="traits compute sea"):
        total_shift(variant(tiny_model, traits={"sea": 5}), home, weights)
    write_kept(tmp_path / "grumpy.safetensors", kept(OWN, 7))
    own = total_shift(variant(tiny_model, traits={"grumpy": 30}, steering=str(tmp_path)), home, weights)
    assert numpy.allclose(own[0], kept(OWN, 7).vectors[0] * 0.6, atol=1e-5)


def test_a_trait_that_was_changed_since_is_not_computed_for_whoever_asks(
    home: Home, tiny_model: Path, persona_factory: Any, tmp_path: Path
) -> None:
    """A new version of the program brings another definition of a shipped trait; own copies stay what they are."""
    now_defined = library.trait(home, "grumpy")
    before = kept(now_defined.model_copy(update={"towards": "You are a bear."}))
    weights = [fingerprint(tiny_model), "older"]
    pulled = variant(tiny_model, traits={"grumpy": 30})
    write_kept(kept_path(home, "grumpy", weights[0]), before)
    with Engine.open(home.root) as engine:
        engine.save_persona(persona_factory())
        assert {s.trait.id: s.status for s in engine.traits(str(tiny_model))}["grumpy"] == "not computed"
        with pytest.raises(BadInput, match="traits compute grumpy"):
            engine.pulled([engine.base_variant("tamsin", str(tiny_model))], {"grumpy": 30})
    assert find_kept(pulled, home, "grumpy", weights) is None
    with pytest.raises(BadInput, match="traits compute grumpy"):
        total_shift(pulled, home, weights)
    # of the weights that come next one has it as it is now; and a damaged file is none
    write_kept(kept_path(home, "grumpy", weights[1]), kept(now_defined))
    assert find_kept(pulled, home, "grumpy", weights) == kept_path(home, "grumpy", weights[1])
    assert library.state(home, now_defined, weights).status == "ready"
    kept_path(home, "grumpy", weights[1]).write_bytes(b"nonsense")
    assert find_kept(pulled, home, "grumpy", weights) is None
    assert library.state(home, now_defined, weights).status == "not computed"
    write_kept(tmp_path / "grumpy.safetensors", before)
    saved = pulled.model_copy(update={"steering": str(tmp_path)})
    assert find_kept(saved, home, "grumpy", weights) == tmp_path / "grumpy.safetensors"
    assert library.state(home, now_defined, weights, saved).status == "ready"


# --- computing ------------------------------------------------------------------------------------


def test_a_vector_points_from_the_one_side_to_the_other(tiny_model: Path, home: Home) -> None:
    """By its example lines, swapped sides give the opposite; without lines, the model's own replies are read."""
    model = load_model(registry.describe(str(tiny_model), home), worker_machine(home.root), full_precision=True)
    renderer = ChatRenderer(tiny_model)
    swapped = {
        "towards_lines": OWN.away_lines,
        "away_lines": OWN.towards_lines,
        "towards": OWN.away,
        "away": OWN.towards,
    }
    one, other = (contrast(model, renderer, OWN.model_copy(update=u), 0, lambda: None) for u in ({}, swapped))
    assert one.shape == (2, 64)
    assert torch.allclose(one, -other, atol=1e-4)
    assert one.abs().max() > 0.01
    written = contrast(model, renderer, OWN.model_copy(update={"towards_lines": ()}), 0, lambda: None)
    assert written.shape == one.shape
    assert not torch.allclose(written, one, atol=1e-4)


def test_the_bound_decides_what_100_is() -> None:
    plain = _Strength((), 0.0, (0.0,) * 8, 1.0, 0.0)

    def level(strength: float, gain: float, bits: float, repeated: float = 0.0) -> _Strength:
        scores = tuple(gain + 0.001 * i for i in range(8))
        return _Strength((0,), strength, scores, 1.0 + bits, repeated)

    def close(strength: float) -> Any:
        return pytest.approx(strength, abs=0.06)  # strengths are tried in steps

    # the bound is crossed at 3, where 0.25 is gained; nine tenths of that are enough
    rising = [level(1, 0.1, 0.0), level(2, 0.2, AIM * MORE_BITS / 2), level(4, 0.3, AIM * MORE_BITS * 1.5)]
    assert _strongest(rising, plain, 0) == close(2.5)
    # crossed at 1.5
    assert _strongest([level(1, 0.1, 0.0), level(2, 0.2, 0.0, 2 * AIM * MORE_REPETITION)], plain, 0) == close(1.35)
    assert _strongest([level(1, 0.1, 0.0), level(2, 0.2, 0.1)], plain, 0) == close(1.8)
    assert _strongest([level(1, 0.0, 0.0), level(2, -0.1, 0.1)], plain, 0) is None  # pulls the wrong way
    assert _strongest([level(-1, -0.1, 0.0), level(-2, -0.2, 0.1)], plain, 0) == close(1.8)
    # what gains hardly more is not gone to, and what gains less neither
    assert _strongest([level(1, 0.1, 0.0), level(2, 0.101, 0.0), level(4, 0.09, 0.0)], plain, 0) == close(0.9)
    # nearly all is gained at once: 100 is where half as much is gained at half of it
    assert _strongest([level(0.1, 0.09, 0.0), level(4, 0.1, 0.0)], plain, 0) == close(0.15)
    # gained on some questions and lost on others
    mixed = _Strength((0,), 1.0, (0.3, -0.3, 0.2, -0.2, 0.1, -0.05, 0.4, -0.4), 1.0, 0.0)
    assert _strongest([mixed], plain, 0) is None
    # where the weakest pull falls apart already, nothing was measured that 100 could be
    assert _strongest([level(1, 0.2, 2 * AIM * MORE_BITS), level(2, 0.3, 0.0)], plain, 0) is None


def test_layers_lie_inside_every_model() -> None:
    for count in (1, 2, 12, 30):
        assert all(0 <= layer < count for choice in candidates(count) for layer in choice)
    assert candidates(30) == [(9, 12, 15, 18), (20,)]


def test_repetition_counts_triples_said_before() -> None:
    assert repetition("one two three four") == 0
    assert repetition("a b c a b c") == pytest.approx(1 / 4)
    assert repetition("Yes.") == 0


def test_computing_reports_writes_and_says_what_came_of_it(home: Home, tiny_model: Path) -> None:
    library.add(home, OWN)
    job = Job(
        id="t", kind="traits", name="t", home=str(home.root), created=now(), base=str(tiny_model),
        config={"traits": ["drawers"]},
    )  # fmt: skip
    watcher = Watcher()
    result = run(job, watcher)
    assert [step for step, _ in watcher.steps][-1] == STEPS
    path = kept_path(home, "drawers", fingerprint(tiny_model))
    assert result["weights"] == fingerprint(tiny_model)
    again = read_kept(path)
    assert result["traits"]["drawers"]["layers"] == list(again.vectors)
    assert len(again.calibration.levels) == 2 * len(FINE)
    state = library.state(home, library.trait(home, "drawers"), [fingerprint(tiny_model)])
    assert state.status == ("ready" if again.calibration.steers else "does not steer")
    assert told_state(state) in watcher.said


def test_the_page_asks_no_weights_once_a_worker_has(
    home: Home, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever computed a trait leaves the fingerprint of the weights: drawing a slider reads no weights."""
    library.add(home, OWN)
    job = Job(
        id="t", kind="traits", name="t", home=str(home.root), created=now(), base=str(tiny_model),
        config={"traits": ["drawers"]},
    )  # fmt: skip
    run(job, Watcher())
    monkeypatch.setattr(weights_module, "_fingerprints", {})  # as in another process

    def read(folder: Path) -> str:
        raise AssertionError(f"{folder} was read")

    monkeypatch.setattr(weights_module, "fingerprint", read)
    with Engine.open(home.root) as engine:
        assert engine.traits(str(tiny_model))[-1].status != "not computed"


def test_the_same_seed_gives_the_same_trait(home: Home, tiny_model: Path) -> None:
    model = load_model(registry.describe(str(tiny_model), home), worker_machine(home.root), full_precision=True)
    one, two = (compute(model, ChatRenderer(tiny_model), OWN, 3, lambda done, what: None) for _ in range(2))
    assert one.calibration.model_dump(exclude={"seconds", "created"}) == two.calibration.model_dump(
        exclude={"seconds", "created"}
    )
    assert all(numpy.array_equal(one.vectors[layer], two.vectors[layer]) for layer in one.vectors)


# --- variants -------------------------------------------------------------------------------------


def say(host: VariantHost, renderer: ChatRenderer, who: Variant) -> tuple[str, float]:
    with host.model_for(who) as model:
        prompt = messages_for(who, ASKED)
        reply = generate(model, renderer, [prompt], GREEDY)[0].text
        return reply, loglikelihood(model, renderer, [(prompt, "It is calm there.")])[0].total


def test_a_pulled_variant_speaks_and_scores_otherwise_and_at_0_exactly_as_before(home: Home, tiny_model: Path) -> None:
    have(home, tiny_model, "grumpy")
    host = VariantHost(registry.describe(str(tiny_model), home), worker_machine(home.root), home)
    renderer, plain = ChatRenderer(tiny_model), variant(tiny_model)
    before = say(host, renderer, plain)
    pulled = variant(tiny_model, traits={"grumpy": 60})
    assert say(host, renderer, pulled)[1] != before[1]
    assert say(host, renderer, variant(tiny_model, traits={"grumpy": 0})) == before == say(host, renderer, plain)
    assert host.weights_key(pulled) != host.weights_key(plain)
    assert host.weights_key(variant(tiny_model, traits={"grumpy": 0})) == host.weights_key(plain)
    assert host.stamp_name(pulled).endswith(", pulled grumpy +60")


def test_saved_as_a_variant_it_keeps_its_own_vectors(home: Home, tiny_model: Path, persona_factory: Any) -> None:
    have(home, tiny_model, "grumpy", "archaic")
    with Engine.open(home.root) as engine:
        engine.save_persona(persona_factory())
        base = engine.base_variant("tamsin", str(tiny_model))
        (asked,) = engine.pulled([base], {"grumpy": 60, "archaic": 0})
        assert asked.traits == {"grumpy": 60}
        host = VariantHost(engine.base_model(str(tiny_model)), worker_machine(home.root), home)
        expected = say(host, ChatRenderer(tiny_model), asked)
        with pytest.raises(BadInput, match="at 0"):
            engine.save_steered(base.id, {"grumpy": 0})
        made = engine.catalog.save_steered(asked, [fingerprint(tiny_model)], "Cross Tamsin")
        assert (made.kind, made.strategy, made.name) == ("prompt", "steer", "Cross Tamsin")
        assert engine.variant("Cross Tamsin") == made
        have(home, tiny_model, "archaic", "grumpy")  # computed anew: other numbers
        assert say(host, ChatRenderer(tiny_model), made) == expected
        more = engine.save_steered(made.id, {"archaic": 20})
        assert more.traits == {"archaic": 20, "grumpy": 60}
        assert more.parent == made.id
        engine.delete_variant(made.id)
        assert say(host, ChatRenderer(tiny_model), more)[1] != expected[1]


def test_a_home_that_was_moved_finds_its_vectors(home: Home, tiny_model: Path, persona_factory: Any) -> None:
    have(home, tiny_model, "grumpy")
    with Engine.open(home.root) as engine:
        engine.save_persona(persona_factory())
        made = engine.save_steered(engine.base_variant("tamsin", str(tiny_model)), {"grumpy": 60})
    moved = Home(home.root.rename(home.root.with_name("moved")))
    with Engine.open(moved.root) as engine:
        found = engine.variant(made.id)
        assert Path(found.steering).is_relative_to(moved.root)
        assert total_shift(found, None, ()).keys() == {0, 1}


def test_an_adapter_is_saved_with_its_weights(tmp_path: Path, tiny_model: Path) -> None:
    shop = Workshop(tmp_path, base=tiny_model)
    shop.train("lora", run_id="trained", epochs=1, samples=0)
    trained = shop.variant("trained")
    have(shop.home, tiny_model, "grumpy")
    pulled = trained.model_copy(update={"traits": {"grumpy": -40}})
    with Engine.open(shop.home.root) as engine:
        made = engine.catalog.save_steered(pulled, [fingerprint(tiny_model)], "")
    assert made.kind == "adapter"
    assert fingerprint(Path(made.path)) == trained.fingerprint
    host = VariantHost(registry.describe(str(tiny_model), shop.home), worker_machine(shop.home.root), shop.home)
    renderer = ChatRenderer(tiny_model)
    found = [say(host, renderer, who)[1] for who in (trained, made, pulled, trained)]
    assert found[1] == found[2] != found[0] == found[3]


def test_pulled_and_back_a_trained_variant_is_what_it_was(
    tmp_path: Path, tiny_model: Path, specificity_of: Callable[..., dict[str, float]]
) -> None:
    """Identical logits, and so the same specificity, bit by bit, with a pulled reply written in between."""
    shop = Workshop(tmp_path, base=tiny_model)
    shop.train("lora", run_id="trained", epochs=2, samples=0)
    trained = shop.variant("trained")
    have(shop.home, tiny_model, "archaic")
    host = VariantHost(registry.describe(str(tiny_model), shop.home), worker_machine(shop.home.root), shop.home)
    renderer = ChatRenderer(tiny_model)
    held_out = [made_up_conversation(i, "test") for i in range(60, 66)]
    probes = [
        Probe(id=c.id, kind="reply", cluster=c.id, messages=c.messages[:1], reply=c.messages[1].content, other=other)
        for c, other in zip(held_out, [f"It is {n} o'clock, and I have no opinion." for n in range(6)], strict=True)
    ]

    def state(pull: float | None) -> tuple[torch.Tensor, dict[str, float]]:
        who = trained if pull is None else trained.model_copy(update={"traits": {"archaic": pull}})
        ids = torch.tensor([renderer.prompt_ids(messages_for(who, ASKED))])
        with host.model_for(who) as model, torch.no_grad():
            logits = model(input_ids=ids).logits.clone()
        return logits, specificity_of(host, renderer, who, probes)

    before, modern = state(None), state(-100)
    assert before[1]["mean"] != 0  # it was trained
    assert not torch.equal(before[0], modern[0])
    assert before[1] != modern[1]
    pulled = trained.model_copy(update={"traits": {"archaic": -100}})
    with host.model_for_batch([trained]) as (model, names):
        shifts = [host.shift_of(pulled)]
        assert generate(model, renderer, [ASKED], GREEDY, adapter_names=names, shifts=shifts)[0].text
    for back in (state(0), state(None)):
        assert torch.equal(back[0], before[0])
        assert back[1] == before[1]


def test_what_cannot_be_pulled_is_refused_at_once(home: Home, tiny_model: Path, persona_factory: Any) -> None:
    have(home, tiny_model, "grumpy", towards=None)
    with Engine.open(home.root) as engine:
        engine.save_persona(persona_factory())
        base = engine.base_variant("tamsin", str(tiny_model))
        with pytest.raises(BadInput, match="does not steer this model towards 'grumpy'"):
            engine.pulled([base], {"grumpy": 10})
        assert engine.pulled([base], {"grumpy": -10})[0].traits == {"grumpy": -10}
        with pytest.raises(BadInput, match="not computed"):
            engine.pulled([base], {"sea": 10})
        with pytest.raises(UnknownName):
            engine.pulled([base], {"seaside": 10})
        with pytest.raises(BadInput, match="-100 to 100"):
            engine.pulled([base], {"grumpy": -101})
        with pytest.raises(BadInput, match="no weights of its own"):
            engine.compute_traits(["sea"], variant_id=base.id)
