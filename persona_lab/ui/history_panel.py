"""Below the live run: the queue, the history with filters, and two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from persona_lab.errors import BadInput
from persona_lab.types import RunView
from persona_lab.ui.html import PICK_SCRIPT, empty, when
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.run_lists import ALL, STATES, comparison, filtered, none_left, queue_list
from persona_lab.ui.runs import history


class HistoryPanel:
    """Runs of some kinds: what waits, what was, and what differs.

    Args:
        kinds: kinds of runs, as RunView.kind.
        chosen: the state that holds the id of the run being shown; a click here changes it.
    """

    def __init__(self, page: Page, kinds: Sequence[str], chosen: gr.State) -> None:
        self.page, self.kinds, self.chosen = page, tuple(kinds), chosen
        self.seen = gr.State("")
        self.queue = gr.HTML(elem_id="train-queue", js_on_load=PICK_SCRIPT)
        with gr.Accordion("All runs", open=True, elem_id="train-history"):
            with gr.Row(elem_classes=["pl-filters"]):
                self.persona = gr.Dropdown([("Any character", ALL)], value=ALL, label="Whose runs", min_width=150)
                self.strategy = gr.Dropdown([("Any way", ALL)], value=ALL, label="Trained how", min_width=150)
                states = [("Any state", ALL), *((state.capitalize(), state) for state in STATES)]
                self.state = gr.Dropdown(states, value=ALL, label="In which state", min_width=150)
            self.table = gr.HTML(elem_id="train-runs", js_on_load=PICK_SCRIPT)
        with gr.Accordion("Compare two runs", open=False, elem_id="train-compare"):
            with gr.Row():
                self.a = gr.Dropdown([], label="Run A", min_width=220, interactive=True)
                self.b = gr.Dropdown([], label="Run B", min_width=220, interactive=True)
            self.compared = gr.HTML(
                empty("Choose two runs", "Their settings, outcomes and curves appear side by side.")
            )
        self.filters = [self.persona, self.strategy, self.state]
        self._drawn = [self.seen, self.queue, self.table, self.persona, self.strategy, self.a, self.b]

    def attach(self, tab: gr.Tab) -> None:
        """Wire the clock, reloads, the filters and the buttons."""
        asked = [self.seen, self.chosen, *self.filters, self.a, self.b]
        poll = guarded(len(self._drawn))(self.poll)
        fresh = guarded(len(self._drawn))(lambda _, *rest: self.poll("", *rest))
        self.page.timer.tick(poll, asked, self._drawn, **QUIET)
        triggers = [self.page.demo.load, tab.select, self.chosen.change, *(one.change for one in self.filters)]
        gr.on(triggers, fresh, asked, self._drawn, trigger_mode="always_last", **QUIET)
        self.table.select(self._pick, None, self.chosen, **QUIET)
        self.queue.select(self._reorder, None, self.seen, **QUIET).then(fresh, asked, self._drawn, **QUIET)
        gr.on(
            [self.a.change, self.b.change],
            guarded(1)(self._compare),
            [self.a, self.b],
            self.compared,
            trigger_mode="always_last",
            **QUIET,
        )

    def poll(
        self, seen: str, chosen: str, persona: str, strategy: str, state: str, a: str | None, b: str | None
    ) -> list[Any]:
        """Updates for what is drawn; nothing at all when no run began, ended or moved since `seen`."""
        engine = self.page.engine
        queue = engine.queue()
        now = f"{queue}/{engine.busy()}/{engine.run_count()}"
        if now == seen:
            return [gr.skip() for _ in self._drawn]
        every = engine.runs()
        by_id = {run.id: run for run in every}  # the queue is one: what is not listed below waits in it too
        runs = [run for run in every if run.kind in self.kinds]
        shown = filtered(runs, persona or ALL, strategy or ALL, state or ALL)
        drawn = none_left(runs, shown) or history(shown, chosen)
        waiting = [by_id[run_id] for run_id in queue if run_id in by_id]
        trained = [run for run in runs if run.kind == "train"]
        choices = [(f"{run.name} · {run.status} · {when(run.created)}", run.id) for run in trained]
        people = {person.id: person.name for person in engine.personas()}
        return [
            now, queue_list(waiting), drawn,
            _options("Any character", [(people.get(p, p), p) for p in _distinct(trained, "persona")], persona),
            _options("Any way", [(s, s) for s in _distinct(trained, "strategy")], strategy),
            _kept(choices, a), _kept(choices, b),
        ]  # fmt: skip

    @guarded(1)
    def _pick(self, event: gr.EventData) -> Any:
        self.page.engine.run(event.id)
        return event.id

    @guarded(1)
    def _reorder(self, event: gr.EventData) -> Any:
        action, _, run_id = str(event.id).partition(":")
        if action == "remove":
            self.page.engine.stop(run_id)
            gr.Info("Taken out of the queue. Its Resume button puts it back.")
        else:
            self.page.engine.move_in_queue(run_id, -1 if action == "up" else 1)
        return ""

    def _compare(self, a: str | None, b: str | None) -> str:
        if not a or not b:
            return empty("Choose two runs", "Their settings, outcomes and curves appear side by side.")
        if a == b:
            raise BadInput("A and B are the same run.", "Choose another for one of them.")
        return comparison(self.page.engine.compare_runs(a, b))


def _distinct(runs: Sequence[RunView], field: str) -> list[str]:
    return sorted({getattr(run, field) for run in runs} - {""})


def _options(any_label: str, found: list[tuple[str, str]], value: str | None) -> Any:
    choices = [(any_label, ALL), *found]
    return gr.update(choices=choices, value=value if value in {v for _, v in choices} else ALL)


def _kept(choices: list[tuple[str, str]], value: str | None) -> Any:
    return gr.update(choices=choices, value=value if value in {v for _, v in choices} else None)
