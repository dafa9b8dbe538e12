"""The Data tab: what a character learns from, and exactly which words of it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.ui.conversations import masked, page_count, plain, rows, summary
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page

AUTO = "auto"
BASE = "starter"
ROLES = ("user", "assistant")


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Data", id="data") as tab:
        gr.Markdown(
            "### What does the character learn from?\nConversations in its voice. Held-out ones are never trained on."
        )
        imported = _Import(page)
        browser = _Browser(page)
        page.refresh(tab, browser.open, browser.opened, also=[imported.done.change])
        browser.go.click(lambda: gr.Tabs(selected="train"), None, page.tabs, **QUIET)


class _Import:
    """A file becomes a new version of the persona's dataset."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.done = gr.State("")
        formats = [("Find out", AUTO)] + [(part.title, part.id) for part in page.engine.plugins.all("reader")]
        with gr.Accordion("Add conversations from a file", open=False):
            with gr.Row():
                self.file = gr.File(label="File (JSON, JSONL, CSV, text, ...)", height=140, scale=2)
                with gr.Column(scale=2):
                    self.format = gr.Dropdown(
                        formats, value=AUTO, label="Format", info="Leave it to us unless the result looks wrong."
                    )
                    with gr.Accordion("Which columns are which", open=False):
                        self.columns = [
                            gr.Textbox(label=f"Column with the {who}", max_lines=1, placeholder=hint)
                            for who, hint in (("other person's lines", "question"), ("character's lines", "answer"))
                        ]
            add = gr.Button("Add these conversations", variant="primary")
            self.result = gr.HTML(elem_id="import-result")
        add.click(
            self._add,
            [page.persona, self.file, self.format, *self.columns],
            [self.result, self.done, self.file],
            api_visibility="private",
            show_progress="minimal",
            concurrency_limit=1,
        )

    def _add(self, persona: str | None, path: str | None, format_id: str, *columns: str) -> tuple[Any, ...]:
        try:
            if not persona:
                raise BadInput("No character is chosen.", "Pick one in the Personas tab first.")
            if not path:
                raise BadInput("No file is chosen.", "Drop one on the box above.")
            mapping = {role: name.strip() for role, name in zip(ROLES, columns, strict=True) if name and name.strip()}
            made = self.page.engine.import_dataset(path, persona, format_id, mapping)
        except PersonaLabError as error:
            return error_box(error), gr.skip(), gr.skip()
        count = sum(made.counts.get(part, 0) for part in ("train", "validation", "test"))
        title = f"Version {made.version} is ready: {count} conversations"
        return problem_box(title, made.why, tone="good"), made.id, None


class _Browser:
    """Versions of the dataset, its conversations a page at a time, and one of them as the model sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.at = gr.State((0, 0))
        with gr.Column(visible=False) as self.body:
            self.version = gr.Dropdown([], label="Version", elem_id="dataset-version", interactive=True)
            self.summary = gr.HTML()
            self.table = gr.HTML(elem_id="conversations", js_on_load=PICK_SCRIPT)
            with gr.Row(elem_classes=["pl-pager"]):
                back = gr.Button("← Back", size="sm", min_width=80)
                self.where = gr.HTML()
                on = gr.Button("More →", size="sm", min_width=80)
            gr.Markdown("#### As the model sees it")
            self.mask = gr.HTML(elem_id="mask")
            self.fetch = gr.Button("Fetch the starter model (about 90 MB)", visible=False)
            self.go = gr.Button("Train on these →", variant="primary")
        self.nothing = gr.HTML()
        drawn = [self.summary, self.table, self.where, self.mask, self.fetch, self.at]
        self.opened = [self.body, self.nothing, self.version]
        self.version.change(guarded(6)(lambda v: self._draw(v, 0, 0)), self.version, drawn, **QUIET)
        back.click(guarded(6)(lambda v, at: self._turn(v, at, -1)), [self.version, self.at], drawn, **QUIET)
        on.click(guarded(6)(lambda v, at: self._turn(v, at, 1)), [self.version, self.at], drawn, **QUIET)
        self.table.select(self._pick, [self.version, self.at], drawn, **QUIET)
        self.fetch.click(self._fetch, None, page.tabs, **QUIET)

    def open(self, persona: str | None) -> tuple[Any, ...]:
        """Updates for `opened`: the newest version, or what to do where there is none."""
        if not persona:
            hint = "Pick a character in the Personas tab; its conversations appear here."
            return gr.update(visible=False), empty("Nobody is chosen yet", hint), gr.update(choices=[], value=None)
        found = self.page.engine.datasets(persona)
        if not found:
            hint = "Add a file above: chats, questions and answers, or a script with `Name: text` lines."
            return gr.update(visible=False), empty("No conversations yet", hint), gr.update(choices=[], value=None)
        choices = [(f"Version {d.version}: {d.name}", d.id) for d in found]
        return gr.update(visible=True), "", gr.update(choices=choices, value=found[0].id)

    def _draw(self, version: str | None, page: int, row: int) -> tuple[Any, ...]:
        if not version:
            return "", "", "", "", gr.update(visible=False), (0, 0)
        engine = self.page.engine
        dataset = engine.dataset(version)
        known = next(d for d in engine.datasets(dataset.persona) if d.id == version)
        pages = page_count(len(dataset.conversations))
        page = min(max(page, 0), pages - 1)
        mask, lacking = self._mask(version, row)
        where = f"page {page + 1} of {pages}"
        shown = rows(dataset.conversations, page, row)
        return summary(known), shown, where, mask, gr.update(visible=lacking), (page, row)

    def _mask(self, version: str, row: int) -> tuple[str, bool]:
        try:
            return masked(self.page.engine.preview(version, row, BASE)), False
        except PersonaLabError as error:
            lacking = not self.page.engine.base_model(BASE).ready
            text = "The tokens can be shown once the starter model is on this machine; training fetches it too."
            box = problem_box("Not fetched yet", text, tone="warn") if lacking else error_box(error)
            return box + plain(self.page.engine.dataset(version).conversations[row]), lacking

    def _turn(self, version: str | None, at: tuple[int, int], by: int) -> tuple[Any, ...]:
        return self._draw(version, at[0] + by, at[1])

    @guarded(6)
    def _pick(self, version: str | None, at: tuple[int, int], event: gr.EventData) -> tuple[Any, ...]:
        return self._draw(version, at[0], int(event.id))

    @guarded(1)
    def _fetch(self) -> Any:
        self.page.engine.fetch_model(BASE)
        gr.Info("Fetching; the Train tab shows how far it is.")
        return gr.Tabs(selected="train")
