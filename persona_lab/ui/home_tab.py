"""The Home tab: what to do next, characters to begin with, recent runs, and variants with their numbers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import gradio as gr

from persona_lab.types import PersonaSummary, RunView
from persona_lab.ui.home_view import Standing, beginnings, path, recent, variants
from persona_lab.ui.html import PICK_SCRIPT
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page, choose
from persona_lab.ui.runs import ACTIVE

TABS_OF_RUNS = {"evaluate": "evaluate", "export": "export", "prompts": "data"}
"""Where a run of a kind is shown; others in Train."""
KEPT = 8
"""States whose runs are kept: one for each character that somebody looks at."""


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Home", id="home") as tab:
        home = _Home(page)
        page.refresh(tab, lambda persona: home.fill(persona, ""), home.drawn)
        home.attach()


class _Home:
    """Everything on it is drawn from what the engine knows; every button is a word and an id."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.seen = gr.State("")
        self._known: OrderedDict[str, tuple[Standing, list[RunView]]] = OrderedDict()
        pieces = []
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("### What next")
                pieces.append(gr.HTML(path(Standing()), elem_id="home-path", js_on_load=PICK_SCRIPT))
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("### Begin with one of these")
                people = beginnings(page.engine.personas(), None)  # there before the first answer
                pieces.append(gr.HTML(people, elem_id="home-people", js_on_load=PICK_SCRIPT))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("### Recent runs")
                pieces.append(gr.HTML(elem_id="home-runs", js_on_load=PICK_SCRIPT))
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("### Variants")
                pieces.append(gr.HTML(elem_id="home-variants", js_on_load=PICK_SCRIPT))
        self.pieces = pieces
        self.drawn = [self.seen, *pieces]

    def attach(self) -> None:
        """Wire the clock and every button."""
        fill = guarded(len(self.drawn))(self.fill)
        self.page.timer.tick(fill, [self.page.persona, self.seen], self.drawn, **QUIET)
        outputs = [self.page.persona, self.page.tabs, self.page.wanted_run]
        for piece in self.pieces:
            piece.select(self._act, None, outputs, **QUIET)

    def fill(self, persona: str | None, seen: str) -> list[Any]:
        """Updates for `drawn`; nothing where nothing happened since `seen`, and little while a run only goes on."""
        engine = self.page.engine
        busy = engine.busy()
        current = engine.run(busy) if busy else None
        state = f"{persona}/{engine.run_count()}/{engine.queue()}/{busy}"
        now = f"{state}|{current.status}/{current.step}" if current else f"{state}|"
        if now == seen:
            return [gr.skip() for _ in self.drawn]
        known = self._known.get(state)
        if known is None or state != seen.rpartition("|")[0]:
            # reading every run and report costs, so only when one began, ended or moved
            people, runs = engine.personas(), engine.runs()
            chosen = next((person for person in people if person.id == persona), None)
            facts = engine.variant_facts(persona)
            at = self._standing(chosen, runs, facts)
            self._known[state] = (at, runs)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return [now, path(at), beginnings(people, persona), recent(runs), variants(facts)]
        at, runs = known
        if current is not None:
            runs = [current if run.id == current.id else run for run in runs]
            if at.active is not None and at.active.id == current.id:
                at = replace(at, active=current)
        return [now, path(at), gr.skip(), recent(runs), gr.skip()]

    def _standing(self, chosen: PersonaSummary | None, runs: list[RunView], facts: list[Any]) -> Standing:
        if chosen is None:
            return Standing()
        mine = [run for run in runs if run.persona == chosen.id and run.kind == "train" and run.status in ACTIVE]
        return Standing(
            persona=chosen,
            conversations=chosen.conversations,
            variants=facts,
            active=mine[-1] if mine else None,
            scored=any(one.report for one in facts),
        )

    @guarded(3)
    def _act(self, event: gr.EventData) -> tuple[Any, Any, Any]:
        """Updates for the chosen persona, the open tab and the run to show."""
        word, _, what = str(event.id).partition(":")
        engine = self.page.engine
        if word == "go":
            return gr.skip(), gr.Tabs(selected=what), gr.skip()
        if word == "run":
            run = engine.run(what)
            tab = TABS_OF_RUNS.get(run.kind, "train")
            persona = choose(engine, run.persona) if run.persona else gr.skip()
            return persona, gr.Tabs(selected=tab), what
        engine.persona(what)  # a shipped example comes into the library at its first use
        tab = {"train": "train", "persona": "personas", "chat": "chat", "score": "evaluate"}[word]
        return choose(engine, what), gr.Tabs(selected=tab), gr.skip()
