"""The lorebook in the card editor: a table of entries, a form for one, world-info files. Saves at once, undoably."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.personas.editing import entries_of, with_book, with_entry, without_entry
from persona_lab.personas.lorebook_entries import (
    DEFAULT_BUDGET,
    DEFAULT_DEPTH,
    DEFAULT_SCAN_DEPTH,
    MAX_BUDGET,
    MAX_DEPTH,
    MAX_SCAN_DEPTH,
    book_of,
)
from persona_lab.types import Persona
from persona_lab.ui.card_view import IN_CHAT, LOGIC, entries_table, entry_fields, entry_values
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import error_box, guarded
from persona_lab.ui.page import QUIET, Page

FILES = [".json", ".png", ".charx", ".zip", ".yaml", ".yml"]
TICKS = [
    ("Switched on", "enabled"),
    ("Always there (training sees it too)", "constant"),
    ("Upper and lower case differ", "case_sensitive"),
    ("Whole words only", "whole_words"),
    ("Keys are regular expressions", "use_regex"),
]
WHOSE = (("nobody (a system message)", "system"), ("the user", "user"), ("the character", "assistant"))
NOTHING = "An entry is put into the prompt when one of its keys is said: people, places, what happened."
TABLE_PIXELS = 360
NEW, EDIT = "#### A new entry", "#### Change this entry"


class LorebookPanel:
    """`changed` counts up when the lorebook was changed on disk."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.changed = gr.State(0)
        self.chosen: gr.State = gr.State(-1)
        self.problem = gr.HTML(elem_id="lorebook-problem")
        self.table = gr.HTML(elem_id="lorebook-entries", js_on_load=PICK_SCRIPT, max_height=TABLE_PIXELS)
        self.title = gr.Markdown(NEW)
        self.fields = self._entry_form()
        with gr.Row():
            self.save = gr.Button("Save entry", variant="primary", size="sm", min_width=100, elem_id="entry-save")
            self.new = gr.Button("New entry", size="sm", min_width=100)
            self.delete = gr.Button("Delete entry", variant="stop", size="sm", min_width=100, visible=False)
        with gr.Accordion("The whole lorebook", open=False):
            with gr.Row():
                self.depth = gr.Number(
                    DEFAULT_SCAN_DEPTH, label="Messages looked at", precision=0, minimum=0, maximum=MAX_SCAN_DEPTH
                )
                self.budget = gr.Number(
                    DEFAULT_BUDGET, label="Tokens at most", precision=0, minimum=0, maximum=MAX_BUDGET
                )
                self.recursive = gr.Checkbox(label="Entries wake each other", info="By what they say.")
            self.keep = gr.Button("Save these", size="sm")
            self.file = gr.File(
                label="Add entries of a world-info file or of another card", file_types=FILES, height=110
            )
        self.form = [self.chosen, self.title, self.delete, self.table, *self.fields]
        self.shown = [self.problem, *self.form, self.depth, self.budget, self.recursive]

    def _entry_form(self) -> list[Any]:
        with gr.Row():
            title = gr.Textbox(label="Title", info="For you.", max_lines=1, elem_id="entry-title")
            position = gr.Radio(
                [("after the description", "after_char"), ("before it", "before_char"), ("in what is said", IN_CHAT)],
                value="after_char", label="Where it stands",
            )  # fmt: skip
        with gr.Row():
            keys = gr.Textbox(label="Keys", info="One a line; any of them wakes it.", lines=2, elem_id="entry-keys")
            secondary = gr.Textbox(label="Only if", info="Further keys, one a line; may be empty.", lines=2)
        content = gr.Textbox(label="What the character knows then", lines=4, elem_id="entry-content")
        with gr.Row():
            logic = gr.Dropdown(list(LOGIC), value=0, label="Of the further keys", min_width=140)
            order = gr.Number(100, label="Order", info="Smaller stands first.", min_width=100)
            priority = gr.Number(0, label="Priority", info="Higher stays if room is short.", min_width=100)
            depth = gr.Number(
                DEFAULT_DEPTH, label="Messages back", info="In what is said; 0: the end.", precision=0, minimum=0,
                maximum=MAX_DEPTH, min_width=120,
            )  # fmt: skip
            role = gr.Dropdown(list(WHOSE), value="system", label="Said there by", min_width=120)
        ticks = gr.CheckboxGroup(TICKS, value=["enabled"], label="How it is used", elem_id="entry-ticks")
        return [title, keys, content, secondary, logic, ticks, order, priority, position, depth, role]

    def attach(self) -> None:
        """Wire what can be done. The editor fills it."""
        person, done = self.page.persona, [self.changed, *self.shown]
        self.table.select(self._pick, person, self.form, **QUIET)
        self.new.click(guarded(len(self.form))(self._none), person, self.form, **QUIET)
        self.save.click(self._save, [person, self.changed, self.chosen, *self.fields], done, **QUIET)
        self.delete.click(self._delete, [person, self.changed, self.chosen], done, **QUIET)
        self.keep.click(self._keep, [person, self.changed, self.depth, self.budget, self.recursive], done, **QUIET)
        self.file.upload(self._file, [self.file, person, self.changed], [*done, self.file], **QUIET)

    # --- filling ---------------------------------------------------------------------------------

    def fill(self, persona: Persona) -> list[Any]:
        """Updates for `shown`."""
        book = book_of(persona.data)
        return ["", *self._form(persona, -1), book.scan_depth, book.token_budget, book.recursive]

    def _form(self, persona: Persona, number: int) -> list[Any]:
        """Updates for `form`: that entry, or an empty form."""
        entries = entries_of(persona)
        row = entries[number] if 0 <= number < len(entries) else None
        drawn = entries_table(persona, number) if entries else empty("No lorebook yet", NOTHING)
        shown = number if row is not None else -1
        return [shown, EDIT if row else NEW, gr.update(visible=row is not None), drawn, *entry_values(row)]

    def _none(self, chosen: str) -> list[Any]:
        return self._form(self.page.engine.persona(chosen), -1)

    @guarded(15)
    def _pick(self, chosen: str, event: gr.EventData) -> list[Any]:
        return self._form(self.page.engine.persona(chosen), int(event.id))

    # --- what can be done ------------------------------------------------------------------------

    @guarded(20)
    def _save(self, chosen: str, version: int, number: int, *values: Any) -> list[Any]:
        def change(persona: Persona) -> Persona:
            entries = entries_of(persona)
            place = number if 0 <= number < len(entries) else None
            row = entries[place] if place is not None else None
            return with_entry(persona, place, entry_fields(values, row))

        return self._change(chosen, version, change, "Saved. It is used from the next message on.")

    @guarded(20)
    def _delete(self, chosen: str, version: int, number: int) -> list[Any]:
        return self._change(chosen, version, lambda persona: without_entry(persona, number), "Deleted.")

    @guarded(20)
    def _keep(self, chosen: str, version: int, depth: float, budget: float, recursive: bool) -> list[Any]:
        fields = {
            "scan_depth": int(depth or 0),
            "token_budget": int(budget or 0),
            "recursive_scanning": bool(recursive),
        }
        return self._change(chosen, version, lambda persona: with_book(persona, fields), "Saved.")

    @guarded(21)
    def _file(self, path: str, chosen: str, version: int) -> list[Any]:
        try:
            found = self.page.engine.import_lorebook(path, chosen)
        except PersonaLabError as error:
            return [gr.skip(), error_box(error), *(gr.skip() for _ in self.shown[1:]), None]
        gr.Info(f"{found.kind[:1].upper()}{found.kind[1:]}: {found.notes[0]}")
        return [version + 1, *self.fill(found.persona), None]

    def _change(self, chosen: str, version: int, change: Any, told: str) -> list[Any]:
        """Change the persona's lorebook; what is wrong is said above the table, and the form stays as it is."""
        try:
            saved = self.page.engine.save_persona(change(self.page.engine.persona(chosen)))
        except PersonaLabError as error:
            return [gr.skip(), error_box(error), *(gr.skip() for _ in self.shown[1:])]
        gr.Info(told)
        return [version + 1, *self.fill(saved)]
