"""One conversation as the model will read it, with its loss mask: looked at before the training, not after."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.ui.conversations import masked, plain
from persona_lab.ui.html import plural
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page


class ExamplePanel:
    """Training conversations, one at a time."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.at = gr.State(0)
        with gr.Accordion("What it reads: one conversation, with what it learns coloured", open=False) as self.box:
            with gr.Row(elem_classes=["pl-pager"]):
                back = gr.Button("← Back", size="sm", min_width=80)
                self.where = gr.HTML()
                on = gr.Button("Next →", size="sm", min_width=80)
            self.example = gr.HTML(elem_id="train-example")
        self.drawn = [self.at, self.where, self.example]
        base = self.base = gr.State("starter")
        asked = [page.persona, base, self.at]
        for button, by in ((back, -1), (on, 1)):
            turn = guarded(3)(lambda persona, base, at, by=by: self.show(persona, base, at + by))
            button.click(turn, asked, self.drawn, **QUIET)
        self.box.expand(guarded(3)(self.show), asked, self.drawn, **QUIET)
        # worked out when it is looked at, not for everybody who opens the page
        page.persona.change(lambda: (gr.update(open=False), 0, "", ""), None, [self.box, *self.drawn], **QUIET)

    def show(self, persona: str | None, base: str, at: int) -> list[Any]:
        """Updates for `drawn`: training conversation number `at`, counted round."""
        engine = self.page.engine
        found = engine.datasets(persona) if persona else []
        if not found:
            return [
                0,
                "",
                problem_box("No conversations yet", "There is nothing to read.", "Add some in the Data tab."),
            ]
        dataset = engine.dataset(found[0].id)
        rows = [row for row, conversation in enumerate(dataset.conversations) if conversation.split == "train"]
        if not rows:
            return [0, "", problem_box("Nothing to learn from", "All conversations are held out.", "Add more.")]
        at %= len(rows)
        where = f'<span class="pl-soft">{at + 1} of {plural(len(rows), "conversation")} to learn from</span>'
        try:
            shown = masked(engine.preview(dataset.id, rows[at], base or "starter"))
        except PersonaLabError as error:
            if engine.base_model(base or "starter").ready:
                shown = error_box(error)
            else:
                text = "The words below will be cut into tokens once the base model is here; training fetches it."
                shown = problem_box("Not fetched yet", text, tone="warn") + plain(dataset.conversations[rows[at]])
        return [at, where, shown]
