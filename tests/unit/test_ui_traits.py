"""Sliders beside the panes: what a window holds of them, what they are drawn as, what is asked of the chat worker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy
import pytest

from persona_lab.engine import Engine
from persona_lab.home import Home
from persona_lab.inference.trait_files import KeptTrait, kept_path, write_kept
from persona_lab.models.cache import MARKER
from persona_lab.models.weights import fingerprint
from persona_lab.testing import make_tiny_model
from persona_lab.traits import library
from persona_lab.types import Sampling, TraitCalibration, TraitState
from persona_lab.ui.chat_traits import _slider, choices, keep_possible, title, told
from persona_lab.ui.sessions import Session


def calibration(**changes: Any) -> TraitCalibration:
    plain: dict[str, Any] = {"layers": (0,), "towards": 2.0, "away": 2.0}
    return TraitCalibration(**(plain | changes), unsteered_bits_per_byte=1.0, unsteered_repetition=0.0)


@pytest.fixture
def engine(home: Home) -> Any:
    """A home whose starter is a tiny random model, on which `grumpy` pulls both ways and `sea` one."""
    starter = make_tiny_model(home.model("starter"), "llama")
    marker = {"id": "starter", "name": "Tiny", "architecture": "LlamaForCausalLM", "parameters": 1000}
    (starter / MARKER).write_text(json.dumps(marker))
    for name, found in (
        ("grumpy", calibration()),
        ("sea", calibration(away=None)),
        ("sad", calibration(towards=None, away=None)),
    ):
        vectors = {0: numpy.ones(64, dtype=numpy.float32)}
        write_kept(kept_path(home, name, fingerprint(starter)), KeptTrait(library.trait(home, name), found, vectors))
    with Engine.open(home.root) as opened:
        opened.persona("magpie")
        yield opened


@pytest.fixture
def session(engine: Engine) -> Session:
    made = Session(persona="magpie", owner="browser:me", variants=["base-magpie"] * 6, count=3)
    made.begin("Hello.")
    made.traits[0] = {"grumpy": 60.0, "sea": 0.0}
    made.traits[1] = {"sea": -20.0}
    for talk in made.shown:
        talk.ask("Who are you?")
    return made


def test_each_pane_asks_with_its_own_pull_and_fails_by_itself(engine: Engine, session: Session) -> None:
    asked = session.requests(engine, Sampling())
    assert [(request.pane, request.variant.traits) for request in asked] == [("0", {"grumpy": 60}), ("2", {})]
    assert "does not steer this model towards 'dry land'" in session.talks[1].turns[-1].error
    assert not session.talks[1].waiting


def test_sliders_come_back_with_a_saved_conversation(engine: Engine, session: Session) -> None:
    session.save(engine, {})
    again = Session(owner="browser:me")
    again.bring_back(engine.chats.get(session.chat, "browser:me"))
    assert again.traits == session.traits
    old = json.loads(engine.chats.get(session.chat, "browser:me").model_dump_json())
    for pane in old["panes"]:
        del pane["traits"]  # as saved by an earlier version
    again.bring_back(type(engine.chats.get(session.chat, "browser:me")).model_validate(old))
    assert again.traits == [{}] * 6


def test_a_blind_comparison_is_one_of_variants(session: Session) -> None:
    session.variants = ["a", "b", "c", "a", "a", "a"]
    session.hide()
    assert not any(session.traits)


def test_a_slider_shows_what_works_here(engine: Engine) -> None:
    states = {state.trait.id: state for state in engine.traits()}
    assert [states[name].status for name in ("grumpy", "sea", "sad", "warm")] == [
        "ready", "ready", "does not steer", "not computed"
    ]  # fmt: skip
    both, one, none, later = (_slider(states[name], 40.0) for name in ("grumpy", "sea", "sad", "warm"))
    assert (both["minimum"], both["maximum"], both["value"], both["interactive"]) == (-100, 100, 40, True)
    assert (one["minimum"], one["maximum"]) == (0, 100)
    assert _slider(states["sea"], -40.0)["value"] == 0
    assert not none["interactive"]
    assert not later["interactive"]
    listed = choices(list(states.values()))
    assert listed[0][1] in ("grumpy", "sea")
    assert listed[-1] == ("Sorrow: hopeful … sad (does not steer this model)", "sad")


def test_no_pull_stands_behind_a_slider_that_shows_none(engine: Engine) -> None:
    states = {state.trait.id: state for state in engine.traits()}
    settings = {"sea": -40.0, "sad": 20.0, "grumpy": -10.0, "warm": 30.0}
    keep_possible(settings, [states[name] for name in settings])
    assert settings == {"sea": 0.0, "sad": 0.0, "grumpy": -10.0, "warm": 30.0}


def test_the_panel_says_what_is_pulled_and_what_is_not_possible(engine: Engine) -> None:
    states = {state.trait.id: state for state in engine.traits()}
    assert title({"grumpy": 0.0}) == "Traits"
    assert title({"grumpy": 5.0, "sea": 0.0}) == "Traits (1 pulled)"
    base = engine.base_variant("magpie")
    said = told(base, [states["sea"], states["sad"], states["warm"]])
    assert "towards the sea only" in said
    assert "does not steer" in said
    assert "not computed" in said
    kept = engine.save_steered(base, {"grumpy": -30}, "<b>Glad</b>")
    assert "keeps a pull of its own: grumpy -30" in told(kept, [])
    assert "<b>" not in told(kept, [])


def test_asking_what_traits_do_loads_no_torch(engine: Engine) -> None:
    code = (
        "import sys\nfrom persona_lab.engine import Engine\n"
        f"with Engine.open({str(engine.home.root)!r}, readonly=True) as engine:\n"
        "    assert len(engine.traits()) >= 16\n"
        "    engine.pulled([engine.base_variant('magpie')], {'grumpy': 10})\n"
        "print(*{'torch', 'transformers', 'sklearn', 'scipy'} & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_a_state_without_a_calibration_is_drawn(engine: Engine) -> None:
    state = TraitState(trait=library.shipped()[0], status="not computed")
    assert _slider(state, 0.0)["label"] == "Mood: cheerful ← → grumpy"
