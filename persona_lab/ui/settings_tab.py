"""The Settings tab: where data lives and how large it is, what can go, undo, and a few settings of the home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from persona_lab import __version__
from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.preferences import MOST_THREADS
from persona_lab.storage import CLEANED, KINDS, Use
from persona_lab.ui.html import esc, plural, size, table
from persona_lab.ui.notices import error_box, guarded
from persona_lab.ui.page import QUIET, Page, choose

LOOKS = (("As the system", ""), ("Light", "light"), ("Dark", "dark"))
# gradio reads the look from the address, so that a link keeps it
LOOK_SCRIPT = """(look) => {
  const address = new URL(window.location);
  look ? address.searchParams.set('__theme', look) : address.searchParams.delete('__theme');
  window.location.replace(address);
}"""
LOOK_NOW = "() => new URL(window.location).searchParams.get('__theme') || ''"


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Settings", id="settings") as tab:
        gr.Markdown("### Settings and space")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                settings = _Settings(page)
            with gr.Column(scale=3, min_width=340):
                space = _Space(page)
        # not for another character: nothing here is one's, and counting what takes room costs
        for part in (settings, space):
            fill = guarded(len(part.opened))(lambda part=part: part.open(None))
            gr.on([tab.select, page.demo.load], fill, None, part.opened, trigger_mode="always_last", **QUIET)


class _Settings:
    """What is kept in settings.json, and the look."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.base = gr.Dropdown(
            [], label="Base model for new trainings", allow_custom_value=True, elem_id="settings-base",
            info="The starter, a model of the Hugging Face hub, a local folder or a GGUF file.", interactive=True,
        )  # fmt: skip
        self.threads = gr.Number(
            None, label="Processor cores to use", precision=0, minimum=0, maximum=MOST_THREADS,
            elem_id="settings-threads",
            info="For training and chat; 0: all. Fewer leave room for other programs, and everything takes longer.",
        )  # fmt: skip
        save = gr.Button("Save settings", variant="primary", size="sm", elem_id="settings-save")
        self.result = gr.HTML(elem_id="settings-result")
        look = gr.Radio(
            list(LOOKS), value="", label="Appearance", elem_id="settings-look",
            info="In this browser tab. A bookmark of the page keeps it.",
        )  # fmt: skip
        self.about = gr.HTML(elem_id="settings-about")
        self.opened = [self.base, self.threads, self.about]
        save.click(self._save, [self.base, self.threads], self.result, **QUIET)
        look.input(None, look, None, js=LOOK_SCRIPT)
        page.demo.load(None, None, look, js=LOOK_NOW)

    def open(self, persona: str | None) -> list[Any]:
        """Updates for `opened`."""
        engine = self.page.engine
        chosen = engine.preferences
        bases = list(dict.fromkeys(["starter", chosen.default_base, *(model.id for model in engine.models())]))
        machine = engine.machine()
        rows = [
            ["Persona Lab", esc(__version__)],
            ["Data folder", f"<code>{esc(engine.home.root)}</code>"],
            ["Free on that disk", esc(size(machine.disk_free_bytes))],
            ["Machine", esc(f"{machine.device_name or machine.device}, {plural(machine.cores, 'core')}")],
            ["Memory", esc(f"{size(machine.memory_bytes)}, {size(machine.memory_free_bytes)} free")],
        ]
        about = table(["", ""], rows, "Another folder: start with --home DIR, or set PERSONA_LAB_HOME")
        return [gr.update(choices=bases, value=chosen.default_base), chosen.threads or 0, about]

    def _save(self, base: str | None, threads: float | None) -> str:
        try:
            name = (base or "").strip() or "starter"
            self.page.engine.base_model(name)
            self.page.engine.set_preferences(default_base=name, threads=int(threads) if threads else None)
        except PersonaLabError as error:
            return error_box(error)
        return '<div class="pl-box pl-good"><strong>Saved.</strong> The next training or chat begins with it.</div>'


class _Space:
    """What takes room, what can go, and undo."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.table = gr.HTML(elem_id="settings-space")
        with gr.Row(equal_height=True):
            self.undo = gr.Button("Nothing to bring back", size="sm", interactive=False, elem_id="settings-undo")
        with gr.Accordion("Back up", open=False):
            self.weights = gr.Checkbox(
                False, label="With the weights of variants", elem_id="settings-backup-weights",
                info="Much larger; without them a variant can be trained again from its data and seed.",
            )  # fmt: skip
            back_up = gr.Button("Back up now", variant="primary", size="sm", elem_id="settings-backup")
            self.backed_up = gr.HTML(elem_id="settings-backup-result")
        with gr.Accordion("Make room", open=False):
            self.kind = gr.Radio(
                [(KINDS[kind][0], kind) for kind in CLEANED], value="cache", label="What can go",
                info="Characters, runs, variants and models are never deleted here.", elem_id="settings-clean-kind",
            )  # fmt: skip
            self.sure = gr.Checkbox(False, label="Yes, delete it for good", elem_id="settings-sure")
            clean = gr.Button("Delete", variant="stop", size="sm", elem_id="settings-clean")
        self.opened = [self.table, self.undo]
        clean.click(guarded(3)(self._clean), [self.kind, self.sure], [*self.opened, self.sure], **QUIET)
        back_up.click(self._back_up, self.weights, self.backed_up, **QUIET)
        self.undo.click(guarded(3)(self._undo), page.persona, [*self.opened, page.persona], **QUIET)

    def open(self, persona: str | None) -> list[Any]:
        """Updates for `opened`."""
        last = self.page.engine.deleted_last()
        label = f"Bring back {last}" if last else "Nothing to bring back"
        return [space_table(self.page.engine.storage()), gr.update(value=label, interactive=bool(last))]

    def _back_up(self, weights: bool) -> str:
        try:
            made = self.page.engine.back_up_here(weights)
        except PersonaLabError as error:
            return error_box(error)
        held = f"{plural(made.personas, 'character')}, {plural(made.variants, 'variant')}, {plural(made.runs, 'run')}"
        return (
            f'<div class="pl-box pl-good"><strong>Backed up.</strong> {esc(held)}, {esc(size(made.bytes))}, in '
            f"<code>{esc(made.file)}</code>. Copy it to another disk. To put it back, close the page and run "
            f"<code>persona-lab restore FILE</code>: what it replaces is kept.</div>"
        )

    def _clean(self, kind: str, sure: bool) -> list[Any]:
        if not sure:
            raise BadInput("Nothing was deleted.", "Tick the box first: this cannot be undone.")
        freed = self.page.engine.clean(kind)
        gr.Info(f"{size(freed)} freed.")
        return [*self.open(None), False]

    def _undo(self, persona: str | None) -> list[Any]:
        found = self.page.engine.undo_delete()
        gr.Info(f"{found} is back.")
        return [*self.open(None), choose(self.page.engine, persona)]


def space_table(found: Sequence[Use]) -> str:
    """Every kind with a bar for its share."""
    whole = sum(use.bytes for use in found) or 1
    body = [
        [
            f"<b>{esc(use.title)}</b><br><span class='pl-soft'>{esc(use.about)}</span>",
            f'<div class="pl-bar"><i style="width:{100 * use.bytes / whole:.1f}%"></i></div>',
            f'<span class="pl-value">{esc(size(use.bytes))}</span>',
            esc(plural(use.files, "file")),
        ]
        for use in found
        if use.files
    ]
    return table(["What", "Share", "Size", "Files"], body, f"{size(whole)} in all")
