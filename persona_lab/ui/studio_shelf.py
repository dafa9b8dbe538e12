"""The studio's prompt library and styles: look, edit, add, delete."""

from __future__ import annotations

from typing import Any

import gradio as gr
from pydantic import ValidationError

from persona_lab.errors import BadInput
from persona_lab.studio.records import PLAIN, Style
from persona_lab.types import Sampling
from persona_lab.ui.html import PICK_SCRIPT
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.studio_view import prompts_table

NEW = "new"


class Prompts:
    """The prompt library."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.shelf = page.engine.studio.shelf
        self.changed = gr.State(0)
        self.chosen = gr.State("")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self.tags = gr.Dropdown([], value=[], multiselect=True, label="With the tags", interactive=True)
                self.table = gr.HTML(elem_id="studio-library", js_on_load=PICK_SCRIPT)
            with gr.Column(scale=2, min_width=300):
                self.name = gr.Textbox(label="Name", max_lines=1, elem_id="prompt-name")
                self.text = gr.Textbox(
                    label="Text", lines=4, max_lines=14, info="{{char}} becomes the character's name.",
                    elem_id="prompt-text",
                )  # fmt: skip
                self.labels = gr.Textbox(label="Tags", max_lines=1, info="Separated by commas.")
                with gr.Row():
                    save = gr.Button("Save", variant="primary", size="sm", min_width=80, elem_id="prompt-save")
                    new = gr.Button("New prompt", size="sm", min_width=80)
                    self.delete = gr.Button("Delete", variant="stop", size="sm", min_width=80, interactive=False)
                restore = gr.Button("Bring back the prompts and styles that come with Persona Lab", size="sm")
        self.form = [self.name, self.text, self.labels, self.chosen, self.delete]
        written = [self.changed, self.chosen, self.delete]
        fields = [self.changed, self.chosen, self.name, self.text, self.labels]
        save.click(guarded(3)(self._save), fields, written, **QUIET)
        new.click(lambda: ["", "", "", "", gr.update(interactive=False)], None, self.form, **QUIET)
        self.delete.click(guarded(6)(self._delete), [self.changed, self.chosen], [self.changed, *self.form], **QUIET)
        restore.click(guarded(1)(self._restore), self.changed, self.changed, **QUIET)
        self.table.select(self._pick, None, self.form, **QUIET)

    def attach(self, tab: gr.Tab) -> None:
        """Draw on opening and after changes."""
        gr.on(
            [tab.select, self.page.demo.load, self.changed.change, self.tags.input, self.chosen.change],
            guarded(2)(self._draw),
            [self.tags, self.chosen],
            [self.table, self.tags],
            **QUIET,
        )

    def _draw(self, tags: list[str], chosen: str) -> tuple[Any, Any]:
        known = self.shelf.tags()
        kept = [tag for tag in tags or [] if tag in known]
        return prompts_table(self.shelf.prompts(kept), chosen), gr.update(choices=known, value=kept)

    @guarded(5)
    def _pick(self, event: gr.EventData) -> list[Any]:
        prompt = self.shelf.prompt(event.id)
        return [prompt.name, prompt.text, ", ".join(prompt.tags), prompt.id, gr.update(interactive=True)]

    def _save(self, changed: int, chosen: str, name: str, text: str, tags: str) -> tuple[Any, ...]:
        made = self.shelf.save_prompt(name or "", text or "", (tags or "").split(","), chosen)
        gr.Info("Saved.")
        return changed + 1, made.id, gr.update(interactive=True)

    def _delete(self, changed: int, chosen: str) -> list[Any]:
        self.shelf.remove("prompts", chosen)
        gr.Info("Deleted. Batches made with it keep it.")
        return [changed + 1, "", "", "", "", gr.update(interactive=False)]

    def _restore(self, changed: int) -> int:
        count = self.shelf.restore()
        gr.Info(f"{count} brought back." if count else "All of them are there.")
        return changed + 1


class Styles:
    """Notes and sampling under a name."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.shelf = page.engine.studio.shelf
        self.changed = gr.State(0)
        info = {name: field.description or "" for name, field in Sampling.model_fields.items()}
        plain = PLAIN.sampling
        self.style = gr.Dropdown(
            [("A new style", NEW)], value=NEW, label="Style to edit", elem_id="style-choice", interactive=True
        )
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                self.name = gr.Textbox(label="Name", max_lines=1, elem_id="style-name")
                self.notes = gr.Textbox(
                    label="Notes", lines=5, info="They follow the character's own prompt. Leave empty for none.",
                    elem_id="style-notes",
                )  # fmt: skip
            with gr.Column(min_width=300):
                self.drawn = [
                    gr.Slider(
                        8, 1024, plain.max_new_tokens, step=4, label="Longest reply", info=info["max_new_tokens"]
                    ),
                    gr.Slider(0, 2, plain.temperature, step=0.05, label="Temperature", info=info["temperature"]),
                    gr.Slider(0.05, 1, plain.top_p, step=0.05, label="Top-p", info=info["top_p"]),
                    gr.Slider(
                        1, 2, plain.repetition_penalty, step=0.05, label="Repetition penalty",
                        info=info["repetition_penalty"],
                    ),
                ]  # fmt: skip
        with gr.Row():
            save = gr.Button("Save style", variant="primary", size="sm", min_width=100, elem_id="style-save")
            self.delete = gr.Button("Delete style", variant="stop", size="sm", min_width=100, interactive=False)
        form = [self.name, self.notes, *self.drawn, self.delete]
        self.style.input(guarded(len(form))(self._show), self.style, form, **QUIET)
        fields = [self.changed, self.style, self.name, self.notes, *self.drawn]
        save.click(guarded(3)(self._save), fields, [self.changed, self.style, self.delete], **QUIET)
        self.delete.click(
            guarded(2)(self._delete), [self.changed, self.style], [self.changed, self.style], **QUIET
        ).then(guarded(len(form))(self._show), self.style, form, **QUIET)

    def attach(self, tab: gr.Tab) -> None:
        """Fill on opening."""
        gr.on([tab.select, self.page.demo.load], guarded(1)(self._open), self.style, self.style, **QUIET)

    def _open(self, chosen: str | None) -> Any:
        styles = self.shelf.styles()[1:]
        known = {style.id for style in styles}
        choices = [("A new style", NEW), *((style.name, style.id) for style in styles)]
        return gr.update(choices=choices, value=chosen if chosen in known else NEW)

    def _show(self, chosen: str | None) -> list[Any]:
        if not chosen or chosen == NEW:
            s = PLAIN.sampling
            return [
                "",
                "",
                s.max_new_tokens,
                s.temperature,
                s.top_p,
                s.repetition_penalty,
                gr.update(interactive=False),
            ]
        style = self.shelf.style(chosen)
        s = style.sampling
        drawn = [s.max_new_tokens, s.temperature, s.top_p, s.repetition_penalty]
        return [style.name, style.notes, *drawn, gr.update(interactive=True)]

    def _save(
        self,
        changed: int,
        chosen: str,
        name: str,
        notes: str,
        longest: int,
        temperature: float,
        top_p: float,
        penalty: float,
    ) -> tuple[Any, ...]:
        try:
            sampling = Sampling(
                max_new_tokens=int(longest), temperature=temperature, top_p=top_p, repetition_penalty=penalty
            )
            style = Style(id=chosen or NEW, name=name or "", notes=notes or "", sampling=sampling)
        except ValidationError as error:
            first = error.errors()[0]
            raise BadInput(
                f"This style cannot be kept: {first['loc'][0]}: {first['msg'].lower()}.", "Mend that and save again."
            ) from error
        made = self.shelf.save_style(style)
        gr.Info("Saved.")
        return changed + 1, self._open(made.id), gr.update(interactive=True)

    def _delete(self, changed: int, chosen: str) -> tuple[Any, Any]:
        self.shelf.remove("styles", chosen)
        gr.Info("Deleted. Batches made with it keep it.")
        return changed + 1, self._open(None)
