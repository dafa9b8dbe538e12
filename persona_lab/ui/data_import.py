"""The part of the Data tab where a file becomes conversations: what it is, who is who in it, progress, stop."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from persona_lab.datasets.reading import Look
from persona_lab.errors import BadInput, Cancelled, PersonaLabError
from persona_lab.ui.html import chip, esc
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page

AUTO = "auto"
MOST_CANDIDATES = 4
SHOWN_EVERY = 0.3


class ImportPanel:
    """A file becomes a new version of the persona's dataset."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.done = gr.State("")
        self.stopping: set[str] = set()
        """Sessions whose import is to stop: one window's Stop is not another's."""
        formats = [("Find out", AUTO)] + [(part.title, part.id) for part in page.engine.plugins.all("reader")]
        with gr.Accordion("Add conversations from a file", open=False):
            with gr.Row():
                self.file = gr.File(label="File (chats, tables, scripts, books, ...)", height=140, scale=2)
                with gr.Column(scale=2):
                    self.format = gr.Dropdown(
                        formats, value=AUTO, label="Format", info="Leave it to us unless the result looks wrong."
                    )
                    self.assistant = gr.Dropdown(
                        [],
                        label="Which is the character?",
                        visible=False,
                        allow_custom_value=True,
                        elem_id="map-assistant",
                    )
                    self.user = gr.Dropdown(
                        [], label="Which is the other side?", visible=False, allow_custom_value=True, elem_id="map-user"
                    )
            self.look = gr.HTML(elem_id="import-look")
            with gr.Row():
                add = gr.Button("Add these conversations", variant="primary", scale=3)
                stop = gr.Button("Stop", variant="stop", scale=1, min_width=80)
                card = gr.Button("Use the card's dialogues and lorebook", scale=2)
            self.result = gr.HTML(elem_id="import-result")
        seen = [self.look, self.assistant, self.user]
        for changed in (self.file.change, self.format.change):
            changed(guarded(3)(self._look), [page.persona, self.file, self.format], seen, **QUIET)
        add.click(
            self._add,
            [page.persona, self.file, self.format, self.assistant, self.user],
            [self.result, self.done, self.file],
            api_visibility="private",
            show_progress="full",
            show_progress_on=self.result,
            concurrency_limit=1,
        )
        stop.click(self._stop, None, None, queue=False, api_visibility="private")
        card.click(self._from_card, page.persona, [self.result, self.done], **QUIET)

    def _look(self, persona: str | None, path: str | None, format_id: str) -> tuple[Any, ...]:
        hidden = gr.update(visible=False, value=None, choices=[])
        if not path:
            return "", hidden, hidden
        try:
            look = self.page.engine.look_at(path, persona, format_id)
        except PersonaLabError as error:
            return error_box(error), hidden, hidden
        return (
            seen(look),
            _choice(look, "assistant", look.assistant),
            _choice(look, "user", "*" if "*" in look.roles.get("user", ()) else ""),
        )

    def _stop(self, request: gr.Request) -> None:
        self.stopping.add(request.session_hash or "")

    def _add(
        self,
        request: gr.Request,
        persona: str | None,
        path: str | None,
        format_id: str,
        assistant: str | None,
        user: str | None,
        progress: gr.Progress = gr.Progress(),
    ) -> tuple[Any, ...]:
        who = request.session_hash or ""
        shown = [0.0]

        def watch(doing: str, share: float) -> None:
            if who in self.stopping:
                raise Cancelled("The import was stopped, and nothing was changed.", "")
            if time.monotonic() - shown[0] > SHOWN_EVERY:
                shown[0] = time.monotonic()
                progress(share, desc=doing.capitalize())

        try:
            if not persona:
                raise BadInput("No character is chosen.", "Pick one in the Personas tab first.")
            if not path:
                raise BadInput("No file is chosen.", "Drop one on the box above.")
            chosen = {"assistant": (assistant or "").strip(), "user": (user or "").strip()}
            mapping = {role: name for role, name in chosen.items() if name}
            made = self.page.engine.import_dataset(path, persona, format_id, mapping, watch)
        except PersonaLabError as error:
            return error_box(error), gr.skip(), gr.skip()
        finally:
            self.stopping.discard(who)
        return _made(made), made.id, None

    def _from_card(self, persona: str | None) -> tuple[Any, ...]:
        try:
            if not persona:
                raise BadInput("No character is chosen.", "Pick one in the Personas tab first.")
            made = self.page.engine.dataset_from_card(persona)
        except PersonaLabError as error:
            return error_box(error), gr.skip()
        return _made(made), made.id


def _made(summary: Any) -> str:
    count = sum(summary.counts.get(part, 0) for part in ("train", "validation", "test"))
    return problem_box(f"Version {summary.version} is ready: {count} conversations", summary.why, tone="good")


def _choice(look: Look, role: str, value: str) -> Any:
    names = [("Everybody", name) if name == "*" else (name, name) for name in look.roles.get(role, ())]
    return gr.update(choices=names, value=value or None, visible=bool(names))


def seen(look: Look) -> str:
    """What a file seems to be, and what else it may be, as HTML."""
    others = [c for c in look.candidates if c.id != look.format][:MOST_CANDIDATES]
    items = "".join(f"<li>{chip(f'{c.score:.0%}')} {esc(c.title)}: {esc(c.why)}</li>" for c in others)
    more = f"<details><summary>What else it may be</summary><ul>{items}</ul></details>" if items else ""
    if not look.format:
        fix = "Choose a format above, or say which column is whose."
        return problem_box("No reader knows this file", look.why, fix, tone="warn") + more
    ask = ""
    if look.roles.get("assistant") and not look.assistant:
        ask = '<p class="pl-fix">Say above which of them is the character.</p>'
    title = "This is:" if look.sure else "Not sure, but this may be:"
    tone = "good" if look.sure and not ask else "warn"
    return f'<div class="pl-box pl-{tone}"><strong>{title} {esc(look.why)}</strong>{ask}{more}</div>'
