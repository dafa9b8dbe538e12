"""The Export tab: take a variant along: in which format, how large, where to, and what came of it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import BaseModel

from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.export.choices import ExportChoice
from persona_lab.types import RunView, slug
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.forms import Field, component, fields_of, settings_from
from persona_lab.ui.html import empty, esc, plural, size, table
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.run_panel import RunPanel

MOST_ZIPPED = 4e9
SHOWN_FILES = 40


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Export", id="export") as tab:
        gr.Markdown("### Take it home\nA folder with the weights, the card, a model card and checksums.")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=340):
                setup = _Setup(page)
            with gr.Column(scale=3, min_width=340):
                panel = RunPanel(page, ("export",), "export", _result, replies=False)
                with gr.Row():
                    zipped = gr.Button("Make a zip to download", size="sm", visible=False, elem_id="export-zip")
                    file = gr.DownloadButton("Download", size="sm", visible=False, elem_id="export-download")
        page.refresh(tab, setup.open, setup.opened)
        panel.attach(tab)
        setup.start.click(setup.begin, setup.inputs, [*panel.shown, setup.problem], **QUIET)
        zipped.click(
            guarded(1)(lambda run: _zip(page, run)), panel.run, file, api_visibility="private", concurrency_limit=1,
            show_progress="minimal",
        )  # fmt: skip
        panel.run.change(lambda: gr.update(visible=False), None, file, **QUIET)
        panel.seen.change(
            guarded(1)(lambda run: gr.update(visible=_folder(page, run) is not None)), panel.run, zipped, **QUIET
        )


@dataclass
class _Form:
    """The settings of one format."""

    group: gr.Column
    fields: list[Field]
    widgets: list[Any]


def _form(config: type[BaseModel]) -> _Form:
    fields = fields_of(config)
    with gr.Column(visible=False) as group:
        widgets = [component(field) for field in fields]
    return _Form(group, fields, widgets)


class _Setup:
    """Which variant, in which format, where to."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.nothing = gr.HTML()
        with gr.Column(visible=False) as self.body:
            self.variant = gr.Dropdown([], label="Variant", elem_id="export-variant", interactive=True)
            self.format = gr.Radio([], label="Format", elem_id="export-format", elem_classes=["pl-strategies"])
            self.about = gr.HTML(elem_id="export-about")
            self.folder = gr.Textbox(
                label="Folder", max_lines=1, info="New or empty; nothing is overwritten.", elem_id="export-folder"
            )
            self.forms = {part.id: _form(part.Config) for part in page.engine.plugins.all("exporter")}
            with gr.Accordion("Licence and check", open=False):
                self.license = gr.Textbox(
                    label="Licence of the base model", max_lines=1, placeholder="apache-2.0",
                    info="Only where it is not known: state it as the model's makers do.",
                )  # fmt: skip
                self.check = gr.Checkbox(
                    True, label="Check the result", info="Load it again, and compare its replies with the variant's."
                )
            self.problem = gr.HTML()
            self.start = gr.Button("Export", variant="primary", size="lg", elem_id="export-start")
        self.widgets = [widget for form in self.forms.values() for widget in form.widgets]
        self.opened = [self.nothing, self.body, self.variant, self.format, self.about, self.folder]
        self.inputs = [self.variant, self.format, self.folder, self.license, self.check, *self.widgets]
        chosen = [self.format, self.about, self.folder]
        self.variant.input(guarded(3)(self._formats), self.variant, chosen, **QUIET)
        self.format.input(guarded(2)(self._about), [self.variant, self.format], chosen[1:], **QUIET)
        groups = [form.group for form in self.forms.values()]
        self.format.change(self._switch, self.format, groups, trigger_mode="always_last", **QUIET)

    def open(self, persona: str | None) -> tuple[Any, ...]:
        """Updates for `opened`: the persona's variants, newest first."""
        still = [gr.skip() for _ in self.opened[2:]]
        if not persona:
            hint = "Pick a character in the Personas tab; its variants can be taken along from here."
            return empty("Nobody is chosen yet", hint), gr.update(visible=False), *still
        found = self.page.engine.variants(persona)
        if not found:
            hint = "Train one in the Train tab. The card alone can be downloaded in the Personas tab."
            return empty("No variants yet", hint), gr.update(visible=False), *still
        choices = [(f"{v.name} ({v.strategy})", v.id) for v in found]
        first = next((v for v in found if v.kind in ("adapter", "weights")), found[0])
        variant = gr.update(choices=choices, value=first.id)
        return "", gr.update(visible=True), variant, *self._formats(first.id)

    def _formats(self, variant: str | None) -> tuple[Any, Any, Any]:
        if not variant:
            return gr.skip(), gr.skip(), gr.skip()
        found = self.page.engine.export_choices(variant)
        first = next((choice.format for choice in found if choice.possible), None)
        about, folder = self._told(variant, next((c for c in found if c.format == first), None))
        return gr.update(choices=[(_card(choice), choice.format) for choice in found], value=first), about, folder

    def _about(self, variant: str, format: str | None) -> tuple[Any, Any]:
        choices = self.page.engine.export_choices(variant)
        return self._told(variant, next((c for c in choices if c.format == format), None))

    def _told(self, variant: str, choice: ExportChoice | None) -> tuple[Any, Any]:
        if choice is None:
            return problem_box("It cannot be exported", "No format can hold this variant.", tone="warn"), ""
        return _problems(choice), str(self._free(f"{slug(variant)}-{choice.format}"))

    def _free(self, wanted: str) -> Path:
        folder, number = self.page.engine.home.exports / wanted, 1
        while folder.exists():
            number += 1
            folder = self.page.engine.home.exports / f"{wanted}-{number}"
        return folder

    def _switch(self, format: str | None) -> Any:
        """Show the settings of the chosen format, where it has any."""
        updates = [gr.update(visible=name == format and bool(form.fields)) for name, form in self.forms.items()]
        return updates if len(updates) != 1 else updates[0]

    def _settings(self, format: str, values: tuple[Any, ...]) -> dict[str, Any]:
        by_widget = dict(zip((id(widget) for widget in self.widgets), values, strict=True))
        form = self.forms[format]
        named = {field.name: by_widget[id(widget)] for field, widget in zip(form.fields, form.widgets, strict=True)}
        return settings_from(form.fields, named)

    def begin(
        self, variant: str | None, format: str | None, folder: str, license: str, check: bool, *values: Any
    ) -> tuple[Any, ...]:
        """Start the run; a problem stays on the page."""
        try:
            if not variant or not format:
                raise BadInput("Nothing is chosen.", "Choose a variant and a format.")
            if not (folder or "").strip():
                raise BadInput("There is no folder to write to.", "Name a new one.")
            out = Path(folder.strip()).expanduser()
            if not out.is_absolute():
                out = self.page.engine.home.exports / out
            settings = self._settings(format, values)
            run = self.page.engine.export(variant, format, out, settings, license or "", check)
        except PersonaLabError as error:
            return gr.skip(), gr.skip(), error_box(error)
        return run, "", ""


def _card(choice: ExportChoice) -> str:
    """A format's card: title, what it is for, size; the style sheet sets line one bold."""
    if choice.possible:
        last = f"about {size(choice.bytes)}" if choice.bytes else "size not known before"
    else:
        last = f"✗ Not for this one: {' '.join(problem.message for problem in choice.problems)}"
    return "\n".join(part for part in (choice.title, choice.summary, last) if part)


def _problems(choice: ExportChoice) -> str:
    kinds = {"error": ("It cannot be exported so", "bad"), "warning": ("Worth knowing", "warn")}
    return "".join(
        problem_box(kinds[problem.severity][0], problem.message, problem.fix, kinds[problem.severity][1])
        for problem in choice.problems
    )


def _result(run: RunView, picture: RunPicture) -> str:
    """What was written, and where; nothing until it is done."""
    if run.status != "done" or not run.result.get("out"):
        return ""
    files = [str(name) for name in run.result.get("files", [])]
    gone = not Path(run.result["out"]).exists()
    lost = problem_box("It is not there any more", "The folder was moved or deleted.", tone="warn") if gone else ""
    noted = "".join(problem_box("Worth knowing", str(text), tone="warn") for text in run.result.get("warnings", []))
    checked = run.result.get("check") or {}
    if checked:
        tone, title = ("good", "It says what the variant says") if checked.get("good") else ("bad", "It differs")
        noted += problem_box(title, str(checked.get("verdict", "")), tone=tone)
    if usage := run.result.get("usage"):
        noted += f'<div class="pl-box"><strong>Use, in that folder</strong><pre>{esc(usage)}</pre></div>'
    more = [[esc(f"… and {len(files) - SHOWN_FILES} more")]] if len(files) > SHOWN_FILES else []
    listed = table(["File"], [*([esc(name)] for name in files[:SHOWN_FILES]), *more], plural(len(files), "file"))
    told = f"{esc(run.result.get('format', ''))} · {esc(size(run.result.get('bytes', 0)))}"
    return (
        f'<div class="pl-box pl-good" data-out="{esc(run.result["out"])}"><strong>Written</strong> '
        f'<span class="pl-soft">{told}</span>'
        f"<p><code>{esc(run.result['out'])}</code></p></div>{lost}{noted}{listed}"
    )


def _zip(page: Page, run_id: str) -> Any:
    """The newest shown export as a zip of this process's own: gradio serves no other file.

    Raises:
        BadInput: there is nothing, or it is too large.
    """
    folder = _folder(page, run_id)
    if folder is None:
        raise BadInput("There is no finished export to download.", "Export a variant first, or pick one under Runs.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if sum(path.stat().st_size for path in files) > MOST_ZIPPED:
        raise BadInput(f"{folder} is too large to zip for a download.", "Copy the folder itself.")
    out = page.fresh_file(f"{folder.name}.zip")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for path in files:
            archive.write(path, Path(folder.name) / path.relative_to(folder))
    return gr.update(value=str(out), label=f"Download {out.name} ({size(out.stat().st_size)})", visible=True)


def _folder(page: Page, run_id: str) -> Path | None:
    """Where a finished export lies; None if it is not one, or is gone."""
    run = page.engine.run(run_id) if run_id else None
    if run is None or run.kind != "export" or run.status != "done":
        return None
    folder = Path(run.result["out"])
    return folder if folder.is_dir() else None
