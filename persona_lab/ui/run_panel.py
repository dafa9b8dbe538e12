"""A run on the page, live: state, curve, samples, log; stop, stop and keep, resume; and a history of runs.

It re-attaches by itself: what it shows comes from the run's own event log, read from the start by every new session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from persona_lab.types import RunView
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page, choose
from persona_lab.ui.runs import ACTIVE, change_text, history, log_text, newest_shown, samples, status_line

# Each tick costs the browser a few hundredths of a second of processor time, which a training on the same machine
# can use better.
BUSY_SECONDS = 1.5
IDLE_SECONDS = 5.0


class RunPanel:
    """Shows the runs of some kinds.

    Args:
        kinds: kinds of runs, as RunView.kind.
        name: prefix of the element ids.
        draw: what to show of a run besides its state (a curve, a table), as HTML.
        replies: whether these runs are trainings: they write sample replies, can be ended with their best weights
            kept, and lead on to a chat.
        history: whether to list earlier runs below; a `HistoryPanel` does it otherwise.
    """

    def __init__(
        self,
        page: Page,
        kinds: Sequence[str],
        name: str,
        draw: Callable[[RunView, RunPicture], str],
        replies: bool,
        history: bool = True,
    ) -> None:
        self.page = page
        self.kinds = tuple(kinds)
        self.draw = draw
        self.run = gr.State("")
        self.seen = gr.State("")
        self.status = gr.HTML(elem_id=f"{name}-status")
        with gr.Row(elem_classes=["pl-runbuttons"]):
            self.keep = gr.Button("Stop and keep", size="sm", visible=False, elem_id=f"{name}-keep")
            self.stop = gr.Button("Stop", variant="stop", size="sm", visible=False, elem_id=f"{name}-stop")
            self.resume = gr.Button("Resume", size="sm", visible=False, elem_id=f"{name}-resume")
            self.smaller = gr.Button("Retry", variant="primary", size="sm", visible=False, elem_id=f"{name}-smaller")
            self.talk = gr.Button("Chat with it →", variant="primary", size="sm", visible=False, elem_id=f"{name}-talk")
            self.score = gr.Button("Evaluate it →", size="sm", visible=False, elem_id=f"{name}-score")
        self.drawn = gr.HTML(elem_id=f"{name}-drawn")
        self.trains, self.lists = replies, history
        with gr.Accordion("Sample replies over time", open=True, visible=replies):
            self.samples = gr.HTML()
        with gr.Accordion("Log", open=False):
            self.log = gr.Textbox(label="Log", lines=8, max_lines=16, interactive=False, autoscroll=True)
        with gr.Accordion("Runs", open=replies, visible=history):
            self.history = gr.HTML(elem_id=f"{name}-runs", js_on_load=PICK_SCRIPT)
        self.shown = [self.run, self.seen]
        self._live = [
            self.run, self.seen, self.status, self.keep, self.stop, self.resume, self.smaller, self.talk, self.score,
            self.drawn, self.samples, self.log, self.history, page.timer,
        ]  # fmt: skip

    def attach(self, tab: gr.Tab) -> None:
        """Wire the clock, reloads and the buttons."""
        watched = [self.run, self.seen]
        poll = guarded(len(self._live))(self.poll)
        self.page.timer.tick(poll, watched, self._live, **QUIET)
        fresh = guarded(len(self._live))(lambda run: self.poll(run, ""))
        gr.on(
            [self.page.demo.load, tab.select, self.run.change],
            fresh,
            self.run,
            self._live,
            trigger_mode="always_last",
            **QUIET,
        )
        self.stop.click(self._stop, self.run, self.seen, **QUIET).then(poll, watched, self._live, **QUIET)
        self.keep.click(self._keep, self.run, self.seen, **QUIET).then(poll, watched, self._live, **QUIET)
        for button, where in ((self.talk, "chat"), (self.score, "evaluate")):
            go = guarded(2)(lambda run, where=where: self._go(run, where))
            button.click(go, self.run, [self.page.persona, self.page.tabs], **QUIET)
        wanted = self.page.wanted_run
        wanted.change(guarded(3)(self._wanted), wanted, [*self.shown, wanted], **QUIET)
        self.resume.click(self._resume, self.run, self.seen, **QUIET).then(poll, watched, self._live, **QUIET)
        self.smaller.click(self._smaller, self.run, self.shown, **QUIET)
        self.history.select(self._pick, None, [self.run, self.seen], **QUIET)

    def _go(self, run_id: str, where: str) -> tuple[Any, Any]:
        """To a tab, with the run's own character: the list of runs shows everybody's."""
        engine = self.page.engine
        return choose(engine, engine.run(run_id).persona), gr.Tabs(selected=where)

    def _wanted(self, run_id: str) -> tuple[Any, Any, Any]:
        """Show the run that another tab asked for, if it is of this panel's kinds; the wish is used up."""
        if not run_id or self.page.engine.run(run_id).kind not in self.kinds:
            return gr.skip(), gr.skip(), gr.skip()
        return run_id, "", ""

    def poll(self, run_id: str, seen: str) -> list[Any]:
        """Updates for everything live; nothing at all when nothing happened since `seen`."""
        engine = self.page.engine
        idle = f"none/{engine.run_count()}"
        if not run_id and seen == idle:
            return self._still()  # no run since: reading all of them at each tick would cost
        run_id = run_id or newest_shown(engine.runs(), self.kinds)
        if not run_id:
            return self._nothing(idle)
        run = engine.run(run_id)
        picture = self.page.follower.picture(run_id)
        made = run.variant or run.result.get("version", "")
        now = f"{run_id}/{run.status}/{picture.count}/{made}/{run.phase}/{run.ending}"
        if now == seen:
            return self._still()
        active = run.status in ACTIVE
        return [
            run_id, now, status_line(run, picture), *self._buttons(run, picture),
            self.draw(run, picture), samples(picture.samples), log_text(picture),
            self._history(run_id, seen, run.status), gr.Timer(BUSY_SECONDS if active else IDLE_SECONDS),
        ]  # fmt: skip

    def _nothing(self, idle: str) -> list[Any]:
        hint = "Progress and results appear here, and are still here after a reload."
        nothing = empty("Nothing is running", hint)
        hidden = [gr.update(visible=False) for _ in range(6)]
        return ["", idle, nothing, *hidden, "", "", "", history([], ""), gr.skip()]

    def _history(self, run_id: str, seen: str, status: str) -> Any:
        """Reading every run costs, so only where they are listed, when the shown one changes state."""
        if not self.lists:
            return gr.skip()
        if seen.split("/")[:2] == [run_id, status]:
            return gr.skip()
        return history([run for run in self.page.engine.runs() if run.kind in self.kinds], run_id)

    def _still(self) -> list[Any]:
        return [gr.skip() for _ in self._live]

    def _buttons(self, run: RunView, picture: RunPicture) -> list[Any]:
        """Updates for stop and keep, stop, resume, retry with less memory, chat and evaluate."""
        active, made = run.status in ACTIVE, self.trains and bool(run.variant)
        fitting = self.trains and run.status == "running" and bool(picture.train) and not run.ending
        change = self.page.engine.smaller(run.id) if run.cause == "out_of_memory" else None
        shown = [fitting, active, run.resumable and not active, change is not None, made, made]
        stop = "Remove from the queue" if run.status == "queued" else "Stop"
        updates = [gr.update(visible=one) for one in shown]
        updates[1] = gr.update(visible=active, value=stop)
        if change is not None:
            updates[3] = gr.update(visible=True, value=f"Retry with less memory ({change_text(change, run.strategy)})")
        return updates

    @guarded(1)
    def _keep(self, run_id: str) -> Any:
        self.page.engine.stop_and_keep(run_id)
        gr.Info("Ending after this step; the best weights so far become the variant.")
        return ""

    @guarded(1)
    def _stop(self, run_id: str) -> Any:
        self.page.engine.stop(run_id)
        gr.Info("Stopping; what was learned up to the last checkpoint is kept.")
        return ""

    @guarded(1)
    def _resume(self, run_id: str) -> Any:
        self.page.engine.resume(run_id)
        return ""

    @guarded(2)
    def _smaller(self, run_id: str) -> tuple[Any, Any]:
        return self.page.engine.retry_smaller(run_id), ""

    @guarded(2)
    def _pick(self, event: gr.EventData) -> tuple[Any, Any]:
        self.page.engine.run(event.id)
        return event.id, ""
