"""The Data tab: what a character learns from, and exactly which words of it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import PersonaLabError
from persona_lab.types import DatasetSummary
from persona_lab.ui.conversations import masked, page_count, plain, rows, summary
from persona_lab.ui.data_import import ImportPanel
from persona_lab.ui.data_prompts import PromptsPanel
from persona_lab.ui.data_quality import QualityPanel
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page

BASE = "starter"
MAX_TOKENS = 1024


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Data", id="data") as tab:
        gr.Markdown(
            "### What does the character learn from?\nConversations in its voice. Held-out ones are never trained on."
        )
        imported = ImportPanel(page)
        browser = _Browser(page, tab)
        also = [imported.done.change, browser.quality.changed.change, browser.prompts.changed.change]
        page.refresh(tab, browser.open, browser.opened, also=also)
        browser.go.click(lambda: gr.Tabs(selected="train"), None, page.tabs, **QUIET)


class _Browser:
    """Versions of the dataset, its conversations a page at a time, and one of them as the model sees it."""

    def __init__(self, page: Page, tab: gr.Tab) -> None:
        self.page = page
        self.at = gr.State((0, 0))
        with gr.Column(visible=False) as self.body:
            self.version = gr.Dropdown([], label="Version", elem_id="dataset-version", interactive=True)
            self.use = gr.Button("Learn from this version", visible=False, elem_id="use-version")
            self.summary = gr.HTML()
            self.quality = QualityPanel(page, self.version)
            self.prompts = PromptsPanel(page, self.version, tab)
            self.table = gr.HTML(elem_id="conversations", js_on_load=PICK_SCRIPT)
            with gr.Row(elem_classes=["pl-pager"]):
                back = gr.Button("← Back", size="sm", min_width=80)
                self.where = gr.HTML()
                on = gr.Button("More →", size="sm", min_width=80)
            with gr.Row():
                gr.Markdown("#### As the model sees it")
                self.cut = gr.Number(
                    MAX_TOKENS, label="Cut rows at (tokens)", minimum=16, precision=0, scale=0, min_width=180
                )
            self.mask = gr.HTML(elem_id="mask")
            self.fetch = gr.Button("Fetch the starter model (about 90 MB)", visible=False)
            self.go = gr.Button("Train on these →", variant="primary")
        self.nothing = gr.HTML()
        drawn = [self.summary, self.table, self.where, self.mask, self.fetch, self.at, self.use]
        self.opened = [self.body, self.nothing, self.version]
        given = [self.version, self.at, self.cut]
        self.version.change(guarded(7)(lambda v, at, cut: self._draw(v, 0, 0, cut)), given, drawn, **QUIET)
        back.click(guarded(7)(lambda v, at, cut: self._turn(v, at, -1, cut)), given, drawn, **QUIET)
        on.click(guarded(7)(lambda v, at, cut: self._turn(v, at, 1, cut)), given, drawn, **QUIET)
        self.table.select(self._pick, given, drawn, **QUIET)
        self.cut.change(guarded(7)(lambda v, at, cut: self._draw(v, at[0], at[1], cut)), given, drawn, **QUIET)
        self.use.click(guarded(3)(self._use), [page.persona, self.version], self.opened, **QUIET)
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
        choices = [(_named(d, in_use=d is found[0]), d.id) for d in found]
        return gr.update(visible=True), "", gr.update(choices=choices, value=found[0].id)

    def _draw(self, version: str | None, page: int, row: int, cut: float | None = None) -> tuple[Any, ...]:
        if not version:
            return "", "", "", "", gr.update(visible=False), (0, 0), gr.update(visible=False)
        engine = self.page.engine
        dataset = engine.dataset(version)
        found = engine.datasets(dataset.persona)
        known = next(d for d in found if d.id == version)
        pages = page_count(len(dataset.conversations))
        page = min(max(page, 0), pages - 1)
        row = min(row, len(dataset.conversations) - 1)
        mask, lacking = self._mask(version, row, int(cut or MAX_TOKENS))
        where = f"page {page + 1} of {pages}"
        shown = rows(dataset.conversations, page, row)
        use = gr.update(visible=found[0].id != version)
        return summary(known), shown, where, mask, gr.update(visible=lacking), (page, row), use

    def _mask(self, version: str, row: int, cut: int) -> tuple[str, bool]:
        try:
            found = self.page.engine.preview_row(version, row, BASE, max(cut, 16))
            return masked(found.tokens, found.total, found.max_tokens), False
        except PersonaLabError as error:
            lacking = not self.page.engine.base_model(BASE).ready
            text = "The tokens can be shown once the starter model is on this machine; training fetches it too."
            box = problem_box("Not fetched yet", text, tone="warn") if lacking else error_box(error)
            return box + plain(self.page.engine.dataset(version).conversations[row]), lacking

    def _turn(self, version: str | None, at: tuple[int, int], by: int, cut: float | None) -> tuple[Any, ...]:
        return self._draw(version, at[0] + by, at[1], cut)

    @guarded(7)
    def _pick(
        self, version: str | None, at: tuple[int, int], cut: float | None, event: gr.EventData
    ) -> tuple[Any, ...]:
        return self._draw(version, at[0], int(event.id), cut)

    def _use(self, persona: str | None, version: str | None) -> tuple[Any, ...]:
        used = self.page.engine.use_dataset(version or "")
        gr.Info(f"Trainings take version {used.version} from now on.")
        return self.open(persona)

    @guarded(1)
    def _fetch(self) -> Any:
        self.page.engine.fetch_model(BASE)
        gr.Info("Fetching; the Train tab shows how far it is.")
        return gr.Tabs(selected="train")


def _named(dataset: DatasetSummary, in_use: bool) -> str:
    """A version as the list shows it."""
    parent = f", from {dataset.parent.rsplit('-', 1)[-1]}" if dataset.parent else ""
    return f"Version {dataset.version}, {dataset.source}{parent}{' (in use)' if in_use else ''}"
