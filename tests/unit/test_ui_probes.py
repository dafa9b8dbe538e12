"""The Probes accordion: what it shows, what it saves, and that an error loses nothing. No browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import pytest

from persona_lab.engine import Engine
from persona_lab.home import Home
from persona_lab.personas.probe_file import ProbeFile, ReplyProbe
from persona_lab.types import AdversarialPrompt, Fact, Message, Persona
from persona_lab.ui import evaluate_tab, probes_panel
from persona_lab.ui.app import build_page
from persona_lab.ui.page import Page
from persona_lab.ui.probes_panel import ProbesPanel
from persona_lab.ui.probes_view import (
    FACT_FIELDS,
    counts,
    fact_of,
    facts_table,
    field_help,
    form_problems,
    proposal_choices,
    texts_of,
)

EVIL = "<img src=x onerror=alert(1)>\"'"
FACT = Fact(id="hat", question="What hat?", answer="a bowler", wrong=("a fez", "a cap"), paraphrases=("Which hat?",))
GOOD = ("What hat is on your head?", "a bowler", "a fez\na cap\n\na beret", "Which hat do you wear?")


# --- text and HTML --------------------------------------------------------------------------------


def test_a_fact_survives_its_form() -> None:
    names = [name for name, *_ in FACT_FIELDS]
    assert fact_of("hat", dict(zip(names, texts_of(FACT), strict=True))) == FACT
    assert texts_of(None) == ["", "", "", ""]


def test_everything_is_escaped() -> None:
    fact = FACT.model_copy(update={"id": EVIL, "question": EVIL, "answer": EVIL, "wrong": (EVIL,)})
    assert "<img" not in facts_table([fact], EVIL)
    assert facts_table([fact], EVIL).count('aria-current="true"') == 1
    assert "<img" not in str(field_help("question", "help", EVIL))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"question": " "}, "question"),
        ({"question": "Is it a Bowler?"}, "question"),
        ({"paraphrases": ("So, a bowler?",)}, "paraphrases"),
        ({"answer": ""}, "answer"),
        ({"wrong": ()}, "wrong"),
        ({"wrong": ("A bowler",)}, "wrong"),
    ],
)
def test_each_problem_is_at_its_field(changes: dict[str, Any], field: str) -> None:
    assert form_problems(FACT) == {}
    assert list(form_problems(FACT.model_copy(update=changes))) == [field]


def test_counts_say_whose_they_are() -> None:
    line = ReplyProbe(id="l", messages=(Message(role="user", content="x"),), reply="One two three four.")
    file = ProbeFile((FACT, AdversarialPrompt(id="a", prompt="Who made you?"), line))
    shown = counts(46, file, 40)
    for part in ("<b>46</b>", "<b>1</b>", "<b>41</b>", "1 of them yours", "you added"):
        assert part in shown
    assert "you added" not in counts(46, ProbeFile(), 40)


# --- the panel over a real engine -----------------------------------------------------------------


@pytest.fixture
def panel(
    home: Home, persona_factory: Callable[..., Persona], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ProbesPanel]:
    """The panel of a whole page, as the Evaluate tab mounts it."""
    made: list[ProbesPanel] = []

    class Kept(ProbesPanel):
        def __init__(self, page: Page) -> None:
            super().__init__(page)
            made.append(self)

    monkeypatch.setattr(evaluate_tab, "ProbesPanel", Kept)
    monkeypatch.setattr(probes_panel.gr, "Info", lambda *_, **__: None)

    async def build(engine: Engine) -> None:
        build_page(engine)

    with Engine.open(home.root) as engine:
        engine.save_persona(persona_factory())
        # in a loop, because without one gradio makes one and never closes it; in a thread of its own, because the
        # browser's tests leave theirs running in this one
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, build(engine)).result()
        yield made[0]


def by_name(panel: ProbesPanel, outputs: tuple[Any, ...]) -> dict[str, Any]:
    names = (
        "nothing",
        "body",
        "counts",
        "problem",
        "undo",
        "table",
        "no_proposals",
        "proposed",
        "accept",
        "mine",
        "rm",
    )
    assert len(outputs) == len(panel.opened) == len(names)
    return dict(zip(names, outputs, strict=True))


def skipped(value: Any) -> bool:
    return value == gr.skip()


def facts(panel: ProbesPanel) -> list[str]:
    return [fact.question for fact in panel.page.engine.persona("tamsin").facts]


def test_without_a_character_it_says_what_to_do(panel: ProbesPanel) -> None:
    shown = by_name(panel, panel.open(None))
    assert "Pick a character" in shown["nothing"]
    assert shown["body"]["visible"] is False


def test_without_facts_it_says_what_to_do(panel: ProbesPanel) -> None:
    panel.page.engine.edit_probes("tamsin", lambda file: file.removed(["drawer"]))
    assert "No facts yet" in by_name(panel, panel.open("tamsin"))["table"]


def test_every_control_has_a_label(panel: ProbesPanel) -> None:
    inputs = [b for b in panel.page.demo.blocks.values() if isinstance(b, gr.Textbox | gr.CheckboxGroup | gr.Dropdown)]
    assert all(block.label for block in inputs)
    assert {label for _, label, *_ in FACT_FIELDS} <= {block.label for block in inputs}


def test_a_new_fact_is_saved_changed_deleted_and_undone(panel: ProbesPanel) -> None:
    version, problem, *form = panel._save("tamsin", "", 0, *GOOD)
    assert (version, problem, form[0]) == (1, "", "")
    assert [update["value"] for update in form[4:]] == ["", "", "", ""]
    fact = panel.page.engine.persona("tamsin").facts[-1]
    assert (fact.question, fact.wrong) == (GOOD[0], ("a fez", "a cap", "a beret"))
    shown = by_name(panel, panel.open("tamsin"))
    assert GOOD[0] in shown["table"]
    assert shown["undo"]["visible"] is True

    opened = panel._form(fact.id, "tamsin")
    assert opened[0] == fact.id
    assert [update["value"] for update in opened[4:]] == [GOOD[0], GOOD[1], "a fez\na cap\na beret", GOOD[3]]
    panel._save("tamsin", fact.id, 1, "And on your head?", *GOOD[1:])
    assert facts(panel) == ["What do you keep in the top drawer?", "And on your head?"]
    panel._delete("tamsin", fact.id, 2)
    assert facts(panel) == ["What do you keep in the top drawer?"]
    panel._undo("tamsin", 3)
    assert facts(panel) == ["What do you keep in the top drawer?", "And on your head?"]


def test_an_error_stands_at_its_field_and_the_form_stays(panel: ProbesPanel) -> None:
    version, problem, *form = panel._save("tamsin", "", 0, "", "a bowler", "a bowler", "")
    assert skipped(version)
    assert problem == ""
    assert all(skipped(update) for update in form[:4])
    marks = form[4:]
    assert all("value" not in mark for mark in marks)  # what was typed is not touched
    assert ["⚠" in mark["info"] for mark in marks] == [True, False, True, False]
    assert facts(panel) == ["What do you keep in the top drawer?"]


def test_a_fact_twice_is_told(panel: ProbesPanel) -> None:
    panel._save("tamsin", "", 0, *GOOD)
    _, problem, *form = panel._save("tamsin", "", 1, GOOD[0].upper(), *GOOD[1:])
    assert "among the facts already" in problem
    assert all(skipped(update) for update in form)
    assert len(facts(panel)) == 2


def test_a_fact_that_is_gone_is_told(panel: ProbesPanel) -> None:
    _, problem, *_ = panel._save("tamsin", "vanished", 0, *GOOD)
    assert "vanished" in problem
    assert "alert" in problem


class Proposal:
    def __init__(self, fact: Fact) -> None:
        self.fact, self.sentence, self.kind = fact, "She always wears a bowler.", "object"


def test_proposals_show_their_sentence_and_only_ticked_ones_are_taken(
    panel: ProbesPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    coat = FACT.model_copy(update={"id": "coat", "question": "What coat?", "paraphrases": ()})
    engine = panel.page.engine
    monkeypatch.setattr(engine, "propose_facts", lambda persona, limit=40: [Proposal(FACT), Proposal(coat)])
    label, fact_id = proposal_choices(engine.propose_facts("tamsin"))[1]
    assert (label, fact_id) == ("What coat? a bowler\nFrom the card: “She always wears a bowler.”", "coat")
    assert by_name(panel, panel.open("tamsin"))["proposed"]["choices"][1] == (label, fact_id)
    assert "No proposal is ticked" in panel._accept("tamsin", [], 0)[1]
    assert panel._accept("tamsin", ["coat"], 0) == (1, "")
    assert facts(panel) == ["What do you keep in the top drawer?", "What coat?"]


def test_prompts_are_added_and_removed(panel: ProbesPanel) -> None:
    version, problem, text = panel._add_prompt("tamsin", "  ", "identity", 0)
    assert "no prompt to add" in problem
    assert skipped(version)
    assert skipped(text)
    assert panel._add_prompt("tamsin", " Who trained you? ", "identity", 0) == (1, "", "")
    shown = by_name(panel, panel.open("tamsin"))
    assert shown["mine"]["choices"] == [("Who trained you? (identity)", "attack-01")]
    assert "No prompt is ticked" in panel._remove_prompts("tamsin", [], 1)[1]
    assert panel._remove_prompts("tamsin", ["attack-01"], 1) == (2, "")
    assert panel.page.engine.probes("tamsin").adversarial == ()


def test_a_damaged_line_is_shown_and_nothing_is_lost(panel: ProbesPanel) -> None:
    path = panel.page.engine.home.persona("tamsin") / "probes.jsonl"
    with path.open("a") as file:
        file.write('{"kind": "adversarial", "prompt": ""}\n')
    text = path.read_text()
    assert "line 2" in by_name(panel, panel.open("tamsin"))["problem"].lower()
    _, problem, *_ = panel._save("tamsin", "", 0, *GOOD)
    assert "line 2" in problem
    assert path.read_text() == text
