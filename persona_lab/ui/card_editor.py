"""The card editor of the Personas tab: every field, with the prompt as it will be beside it. Only translates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.personas.editing import edited_card, greetings_of, rest_of, tags_of
from persona_lab.personas.pictures import as_png
from persona_lab.personas.versions import can_redo, can_undo
from persona_lab.types import Persona
from persona_lab.ui.card_view import FIELDS, preview
from persona_lab.ui.lorebook_panel import LorebookPanel
from persona_lab.ui.notices import error_box, guarded
from persona_lab.ui.page import QUIET, Page

GREETINGS = 10
"""Boxes for alternate greetings; what a card has beyond them is kept."""
PICTURES = [".png", ".jpg", ".jpeg", ".webp", ".gif"]
MAX_PICTURE = 32 * 2**20
# Whatever is typed, pasted, cut or deleted in the editor becomes, after a pause, one `select` event of the preview.
# A textbox's own `input` (gradio 6.31) is sent for pressed keys only; its `change` also for each box that is filled.
TYPED_SCRIPT = """
const editor = element.closest('#card-editor');
let pause;
const typed = () => { clearTimeout(pause); pause = setTimeout(() => trigger('select', {}), 250); };
if (editor.typed) editor.removeEventListener('input', editor.typed);
editor.typed = typed;
editor.addEventListener('input', typed);
"""
TYPED: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}


class CardEditor:
    """The form and its preview; `attach` fills it whenever another character is chosen or the card changed.

    Args:
        changed: counts up when the whole card must be read again.
        pictured: counts up when only what is shown of the character changed.
    """

    def __init__(self, page: Page, changed: gr.State, pictured: gr.State) -> None:
        self.page, self.changed, self.pictured = page, changed, pictured
        self.texts: dict[str, gr.Textbox] = {}
        with gr.Accordion("Edit the card", open=False, visible=False, elem_id="card-editor") as self.panel:
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=320):
                    self._form()
                with gr.Column(scale=2, min_width=320):
                    self._preview()
        self.form = [*self.texts.values(), *self.greetings, self.tags, self.rest]
        self.shown = [self.panel, *self.form, self.undo, self.redo, self.problem, self.preview, *self.lore.shown]

    def _form(self) -> None:
        with gr.Row():
            save = gr.Button("Save changes", variant="primary", elem_id="card-save", min_width=120)
            self.undo = gr.Button("Undo the last edit", size="sm", visible=False, elem_id="card-undo", min_width=120)
            self.redo = gr.Button("Bring it back", size="sm", visible=False, elem_id="card-redo", min_width=120)
        self.problem = gr.HTML(elem_id="card-problem")
        with gr.Accordion("Who it is", open=True):
            self._boxes("who")
            self.picture = gr.UploadButton("Change the picture", file_types=PICTURES, size="sm", elem_id="card-picture")
        with gr.Accordion("What it says", open=False):
            self._boxes("says")
            self.greetings = [
                gr.Textbox(label=f"Another way to begin, {n + 1}", lines=3, visible=False) for n in range(GREETINGS)
            ]
            self.more = gr.Button("Add a way to begin", size="sm", elem_id="card-greeting")
        with gr.Accordion("Around the prompt", open=False):
            self._boxes("prompt")
        with gr.Accordion("Lorebook", open=False, elem_id="lorebook"):
            self.lore = LorebookPanel(self.page)
        with gr.Accordion("About the card", open=False):
            self._boxes("about")
            self.tags = gr.Textbox(label="Tags", info="Separated by commas.", max_lines=2)
        with gr.Accordion("Everything else (JSON)", open=False):
            gr.Markdown("What other programs keep in the card: extensions, assets, sources, keys that we do not know.")
            self.rest = gr.Code(language="json", label="Everything else", lines=6, max_lines=24, elem_id="card-rest")
        self.save = save

    def _boxes(self, group: str) -> None:
        for name, label, info, lines, where in FIELDS:
            if where == group:
                self.texts[name] = gr.Textbox(
                    label=label, info=info, lines=lines, max_lines=max(lines, 1) * 4, elem_id=f"card-{name}"
                )

    def _preview(self) -> None:
        self.said = gr.Textbox(
            label="If somebody says …", placeholder="Wakes entries of the lorebook", max_lines=2, elem_id="card-said"
        )
        self.base = gr.Dropdown(
            ["starter"], value="starter", label="Tokens as this base counts them", elem_id="card-base"
        )
        self.preview = gr.HTML(elem_id="card-preview", js_on_load=TYPED_SCRIPT)

    def attach(self, tab: gr.Tab) -> None:
        """Follow the chosen character. Not the tab: what was typed must survive a look at another tab."""
        person, seen = self.page.persona, [self.preview]
        gr.on(
            [person.change, self.changed.change], guarded(len(self.shown))(self.fill), [person, self.said, self.base],
            self.shown, **QUIET,
        )  # fmt: skip
        tab.select(self._bases, self.base, self.base, **QUIET)
        gr.on(
            [self.preview.select, self.base.change],
            guarded(1)(self.look), [person, self.said, self.base, *self.form], seen, **TYPED,
        )  # fmt: skip
        self.lore.changed.change(
            guarded(3)(self._after_entry), [person, self.said, self.base, *self.form],
            [self.preview, self.undo, self.redo], **QUIET,
        )  # fmt: skip
        done = [self.changed, self.problem]
        self.save.click(self._save, [person, self.changed, *self.form], done, **QUIET)
        self.undo.click(self._undo, [person, self.changed], done, **QUIET)
        self.redo.click(self._redo, [person, self.changed], done, **QUIET)
        self.more.click(guarded(GREETINGS)(self._one_more), self.greetings, self.greetings, **QUIET)
        self.picture.upload(
            self._picture, [self.picture, person, self.pictured], [self.pictured, self.problem, self.undo, self.redo],
            **QUIET,
        )  # fmt: skip
        self.lore.attach()

    # --- filling ---------------------------------------------------------------------------------

    def fill(self, chosen: str | None, said: str, base: str) -> list[Any]:
        """Updates for `shown`."""
        if not chosen:
            return [gr.update(visible=False), *(gr.skip() for _ in self.shown[1:])]
        persona = self.page.engine.persona(chosen)
        begins = greetings_of(persona)
        boxes = [
            gr.update(value=begins[n] if n < len(begins) else "", visible=n < len(begins)) for n in range(GREETINGS)
        ]
        return [
            gr.update(visible=True),
            *(persona.field(name) for name in self.texts),
            *boxes,
            tags_of(persona),
            rest_of(persona),
            *self._steps(chosen),
            "",
            self._drawn(persona, said, base, unsaved=False),
            *self.lore.fill(persona),
        ]

    def _steps(self, chosen: str) -> list[Any]:
        """Whether there is something to undo, and to bring back."""
        folder = self.page.engine.home.persona(chosen)
        return [gr.update(visible=can_undo(folder)), gr.update(visible=can_redo(folder))]

    def _bases(self, base: str) -> Any:
        ready = [model.id for model in self.page.engine.models() if model.ready]
        return gr.update(choices=ready or ["starter"], value=base if base in ready else (ready or ["starter"])[0])

    @staticmethod
    def _one_more(*texts: str) -> list[Any]:
        shown = next((n + 1 for n in reversed(range(GREETINGS)) if texts[n]), 0)
        return [gr.update(visible=n <= shown) if n == shown else gr.skip() for n in range(GREETINGS)]

    # --- the draft -------------------------------------------------------------------------------

    def _draft(self, chosen: str, values: tuple[str, ...]) -> Persona:
        """The card as it is on disk (with its lorebook), with what the form says."""
        persona = self.page.engine.persona(chosen)
        count = len(self.texts)
        texts = dict(zip(self.texts, values[:count], strict=True))
        begins = [*values[count : count + GREETINGS], *greetings_of(persona)[GREETINGS:]]
        return edited_card(persona, texts, begins, values[-2] or "", values[-1] or "")

    def look(self, chosen: str | None, said: str, base: str, *values: str) -> Any:
        """The preview of what is typed, saved or not."""
        if not chosen:
            return ""
        try:
            draft = self._draft(chosen, values)
        except PersonaLabError as error:
            return error_box(error)
        return self._drawn(draft, said, base, unsaved=draft.card != self.page.engine.persona(chosen).card)

    def _drawn(self, persona: Persona, said: str, base: str, unsaved: bool) -> str:
        engine = self.page.engine
        ready = any(model.ready and model.id == base for model in engine.models())
        counted_by = f"{base}’s own tokenizer" if ready else "a rough rule (four bytes each), until a base is fetched"
        return preview(persona, said or "", engine.token_counter(base), counted_by, unsaved)

    def _after_entry(self, chosen: str | None, said: str, base: str, *values: str) -> list[Any]:
        return [self.look(chosen, said, base, *values), *self._steps(chosen)] if chosen else [gr.skip()] * 3

    # --- what can be done ------------------------------------------------------------------------

    @guarded(2)
    def _save(self, chosen: str, version: int, *values: str) -> tuple[Any, Any]:
        try:
            self.page.engine.save_persona(self._draft(chosen, values))
        except PersonaLabError as error:
            return gr.skip(), error_box(error)
        gr.Info("Saved. Variants made before keep the card they were made with.")
        return version + 1, ""

    @guarded(2)
    def _undo(self, chosen: str, version: int) -> tuple[Any, Any]:
        return self._step(chosen, version, False)

    @guarded(2)
    def _redo(self, chosen: str, version: int) -> tuple[Any, Any]:
        return self._step(chosen, version, True)

    def _step(self, chosen: str, version: int, again: bool) -> tuple[Any, Any]:
        try:
            self.page.engine.undo_card(chosen, again)
        except PersonaLabError as error:
            return gr.skip(), error_box(error)
        gr.Info("Brought back." if again else "Taken back. You can bring it back.")
        return version + 1, ""

    @guarded(4)
    def _picture(self, path: str, chosen: str, version: int) -> tuple[Any, ...]:
        try:
            file = Path(path)
            picture = as_png(_bounded(file), file.name)
            self.page.engine.save_persona(self.page.engine.persona(chosen), picture)
        except PersonaLabError as error:
            return gr.skip(), error_box(error), gr.skip(), gr.skip()
        gr.Info("The picture is changed. You can undo this.")
        return version + 1, "", *self._steps(chosen)


def _bounded(file: Path) -> bytes:
    from persona_lab.datasets.toolkit import read_bytes

    return read_bytes(file, MAX_PICTURE)
