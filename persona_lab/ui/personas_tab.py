"""The Personas tab: pick, read, make, edit, take home and delete characters."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.personas.prompt import system_prompt
from persona_lab.ui.cards import EDITED, created, details, edited, gallery
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page, choose

CARD_FILES = [".json", ".png", ".charx"]


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Personas", id="personas") as tab:
        gr.Markdown(
            "### Who do you want to talk to?\nPick an example, bring your own character card, or write a new one."
        )
        cards = gr.HTML(elem_id="gallery", js_on_load=PICK_SCRIPT)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                about = gr.HTML(elem_id="persona-details")
                with gr.Accordion("The prompt the model sees", open=False, visible=False) as prompt_box:
                    prompt = gr.Textbox(label="System prompt", lines=8, max_lines=24, interactive=False)
            with gr.Column(scale=2, min_width=320):
                actions = _Actions(page)
                _New(page)
        page.refresh(
            tab, lambda chosen: gallery(page.engine.personas(), chosen), [cards], also=[actions.changed.change]
        )

        def show(chosen: str | None) -> tuple[Any, ...]:
            if not chosen:
                hint = "Pick a character above; what it is like, and what the model is told, appears here."
                return empty("Nobody is chosen yet", hint), gr.update(visible=False), "", *actions.none()
            persona = page.engine.persona(chosen)
            return details(persona), gr.update(visible=True), system_prompt(persona), *actions.fill(chosen)

        page.refresh(tab, show, [about, prompt_box, prompt, *actions.outputs], also=[actions.changed.change])

        @guarded(1)
        def pick(event: gr.EventData) -> Any:
            page.engine.persona(event.id)
            return choose(page.engine, event.id)

        cards.select(pick, None, page.persona, api_visibility="private", show_progress="minimal")


class _Actions:
    """What can be done with the chosen character: go on, edit, export, delete."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.changed = gr.State(0)
        with gr.Column(visible=False) as self.panel:
            go = gr.Button("Train this character →", variant="primary")
            with gr.Row():
                self.png = gr.DownloadButton("Card as PNG", size="sm", min_width=100)
                self.json = gr.DownloadButton("Card as JSON", size="sm", min_width=100)
                delete = gr.Button("Delete", variant="stop", size="sm", min_width=80)
            with gr.Accordion("Edit", open=False):
                self.name = gr.Textbox(label="Name", max_lines=1)
                self.texts = [gr.Textbox(label=label, info=info, lines=n) for _, label, info, n in EDITED]
                save = gr.Button("Save changes")
        undo = gr.Button("Undo the last deletion", size="sm", visible=False)
        go.click(lambda: gr.Tabs(selected="train"), None, page.tabs, **QUIET)
        save.click(
            self._save, [page.persona, self.changed, self.name, *self.texts], [self.changed, page.persona], **QUIET
        )
        delete.click(self._delete, page.persona, [page.persona, undo], **QUIET)
        undo.click(self._undo, None, [page.persona, undo], **QUIET)

    @property
    def outputs(self) -> list[Any]:
        """What `fill` and `none` fill."""
        return [self.panel, self.png, self.json, self.name, *self.texts]

    def none(self) -> list[Any]:
        """Updates for when nobody is chosen."""
        return [gr.update(visible=False), None, None, "", *("" for _ in self.texts)]

    def fill(self, chosen: str) -> list[Any]:
        """Updates for a chosen character; the files to download are made now, as a download cannot wait for them."""
        engine = self.page.engine
        persona = engine.persona(chosen)
        files = [
            str(engine.export_persona(chosen, kind, self.page.fresh_file(f"{chosen}.{kind}")))
            for kind in ("png", "json")
        ]
        return [gr.update(visible=True), *files, persona.name, *(persona.field(key) for key, *_ in EDITED)]

    @guarded(2)
    def _save(self, chosen: str, version: int, name: str, *texts: str) -> tuple[Any, Any]:
        self.page.engine.save_persona(edited(self.page.engine.persona(chosen), name, texts))
        gr.Info("Saved. Variants made before keep the card they were made with.")
        return version + 1, choose(self.page.engine, chosen)

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
        with gr.Accordion("Import a character card", open=False):
            file = gr.File(label="Card (PNG or JSON; V1, V2 or V3)", file_types=CARD_FILES, height=120)
        with gr.Accordion("Write a new character", open=False):
            name = gr.Textbox(label="Name", max_lines=1, placeholder="Captain Iskra")
            texts = [gr.Textbox(label=label, info=info, lines=n) for _, label, info, n in EDITED]
            create = gr.Button("Create character", variant="primary")
        file.upload(self._import, file, [page.persona, file], api_visibility="private", show_progress="minimal")
        create.click(self._create, [name, *texts], page.persona, **QUIET)

    @guarded(2)
    def _import(self, path: str) -> tuple[Any, Any]:
        persona = self.page.engine.import_persona(path)
        gr.Info(f"{persona.name} is here.")
        return choose(self.page.engine, persona.id), None

    @guarded(1)
    def _create(self, name: str, *texts: str) -> Any:
        taken = {person.id for person in self.page.engine.personas()}
        persona = self.page.engine.save_persona(created(name, texts, taken))
        gr.Info(f"{persona.name} is here. Next: give it conversations in the Data tab.")
        return choose(self.page.engine, persona.id)
