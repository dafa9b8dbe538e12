"""The Personas tab: pick, read, make, edit, pass on and delete characters."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.personas.prompt import system_prompt
from persona_lab.ui.card_editor import CardEditor
from persona_lab.ui.cards import EDITED, created, details, gallery
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page, choose

CARD_FILES = [".json", ".png", ".charx", ".yaml", ".yml", ".zip"]
FORMATS = [
    ("Card as PNG: the picture carries the card", "png"),
    ("Card as JSON", "json"),
    ("Card as CHARX: with all its assets", "charx"),
    ("Bundle: card, conversations, probes, where they are from", "bundle"),
]
_ENDINGS = {"bundle": "persona.zip"}


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Personas", id="personas") as tab:
        gr.Markdown(
            "### Who do you want to talk to?\nPick an example, bring your own character card, or write a new one."
        )
        cards = gr.HTML(elem_id="gallery", js_on_load=PICK_SCRIPT)
        changed, pictured = gr.State(0), gr.State(0)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                about = gr.HTML(elem_id="persona-details")
                with gr.Accordion("The prompt the model sees", open=False, visible=False) as prompt_box:
                    prompt = gr.Textbox(label="System prompt", lines=8, max_lines=24, interactive=False)
            with gr.Column(scale=2, min_width=320):
                actions = _Actions(page)
                _New(page)
        editor = CardEditor(page, changed, pictured)
        again = [changed.change, pictured.change, editor.lore.changed.change]
        page.refresh(tab, lambda chosen: gallery(page.engine.personas(), chosen), [cards], also=again)

        def show(chosen: str | None) -> tuple[Any, ...]:
            if not chosen:
                hint = "Pick a character above; what it is like, and what the model is told, appears here."
                return empty("Nobody is chosen yet", hint), gr.update(visible=False), "", *actions.none()
            persona = page.engine.persona(chosen)
            return details(persona), gr.update(visible=True), system_prompt(persona), *actions.fill(chosen)

        page.refresh(tab, show, [about, prompt_box, prompt, *actions.outputs], also=again)
        editor.attach(tab)

        @guarded(1)
        def pick(event: gr.EventData) -> Any:
            page.engine.persona(event.id)
            return choose(page.engine, event.id)

        cards.select(pick, None, page.persona, api_visibility="private", show_progress="minimal")


class _Actions:
    """What can be done with the chosen character: go on, pass on, delete."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Column(visible=False) as self.panel:
            go = gr.Button("Train this character →", variant="primary")
            with gr.Accordion("Take home or pass on", open=False, elem_id="share"):
                self.format = gr.Radio(FORMATS, value="png", label="As", elem_classes=["pl-strategies"])
                self.named = gr.CheckboxGroup([], label="Name these trained weights in the card", visible=False)
                self.licence = gr.Textbox(
                    label="Licence", info="What others may do with it, such as CC BY 4.0 or “ask me”.",
                    placeholder="Not stated", max_lines=2, visible=False,
                )  # fmt: skip
                make = gr.Button("Make the file", size="sm", elem_id="share-make")
                self.made = gr.DownloadButton("Download", size="sm", visible=False, elem_id="share-download")
                self.told = gr.HTML()
            delete = gr.Button("Delete", variant="stop", size="sm", min_width=80)
        undo = gr.Button("Undo the last deletion", size="sm", visible=False)
        go.click(lambda: gr.Tabs(selected="train"), None, page.tabs, **QUIET)
        self.format.change(
            lambda kind: (gr.update(visible=kind == "bundle"), gr.update(visible=False), ""),
            self.format, [self.licence, self.made, self.told], **QUIET,
        )  # fmt: skip
        make.click(
            self._make, [page.persona, self.format, self.named, self.licence], [self.made, self.told],
            api_visibility="private", show_progress="minimal",
        )  # fmt: skip
        delete.click(self._delete, page.persona, [page.persona, undo], **QUIET)
        undo.click(self._undo, None, [page.persona, undo], **QUIET)

    @property
    def outputs(self) -> list[Any]:
        """What `fill` and `none` fill."""
        return [self.panel, self.named, self.made, self.told]

    def none(self) -> list[Any]:
        """Updates for when nobody is chosen."""
        return [gr.update(visible=False), gr.skip(), gr.update(visible=False), ""]

    def fill(self, chosen: str) -> list[Any]:
        """Updates for a chosen character."""
        trained = [(f"{v.name} ({v.strategy})", v.id) for v in self.page.engine.variants(chosen) if v.path]
        named = gr.update(choices=trained, value=[], visible=bool(trained))
        return [gr.update(visible=True), named, gr.update(visible=False), ""]

    @guarded(2)
    def _make(self, chosen: str, kind: str, named: list[str], licence: str) -> tuple[Any, Any]:
        """The file is made first and downloaded then, as a download cannot wait for it."""
        target = self.page.fresh_file(f"{chosen}.{_ENDINGS.get(kind, kind)}")
        try:
            path = self.page.engine.export_persona(chosen, kind, target, named or (), licence or "")
        except PersonaLabError as error:
            return gr.update(visible=False), error_box(error)
        return gr.update(value=str(path), label=f"Download {path.name}", visible=True), ""

    @guarded(2)
    def _delete(self, chosen: str) -> tuple[Any, Any]:
        self.page.engine.delete_persona(chosen)
        gr.Info("Deleted. You can undo this.")
        return choose(self.page.engine, None), gr.update(visible=True)

    @guarded(2)
    def _undo(self) -> tuple[Any, Any]:
        found = self.page.engine.undo_delete()
        return choose(self.page.engine, found), gr.update(visible=False)


class _New:
    """Ways to get another character: import a card, or write one."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Accordion("Import a character card or a bundle", open=False):
            file = gr.File(
                label="Card (PNG, JSON, CHARX or YAML) or bundle (zip)", file_types=CARD_FILES, height=120,
                elem_id="import-card",
            )  # fmt: skip
            told = gr.HTML(elem_id="import-told")
        with gr.Accordion("Write a new character", open=False):
            name = gr.Textbox(label="Name", max_lines=1, placeholder="Captain Iskra")
            texts = [gr.Textbox(label=label, info=info, lines=n) for _, label, info, n in EDITED]
            create = gr.Button("Create character", variant="primary")
        file.upload(self._import, file, [page.persona, file, told], api_visibility="private", show_progress="minimal")
        create.click(self._create, [name, *texts], page.persona, **QUIET)

    @guarded(3)
    def _import(self, path: str) -> tuple[Any, Any, Any]:
        try:
            found = self.page.engine.import_character(path)
        except PersonaLabError as error:
            return gr.skip(), None, error_box(error)
        gr.Info(f"{found.persona.name} is here.")
        told = problem_box(f"{found.persona.name} came from {found.kind}", " ".join(found.notes), tone="good")
        return choose(self.page.engine, found.persona.id), None, told

    @guarded(1)
    def _create(self, name: str, *texts: str) -> Any:
        taken = {person.id for person in self.page.engine.personas()}
        persona = self.page.engine.save_persona(created(name, texts, taken))
        gr.Info(f"{persona.name} is here. Next: give it conversations in the Data tab.")
        return choose(self.page.engine, persona.id)
