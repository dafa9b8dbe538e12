"""The Evaluate tab: score variants on held-out probes, compare them, keep the report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.types import RunView
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.html import empty, when
from persona_lab.ui.notices import error_box, guarded
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.probes_panel import ProbesPanel
from persona_lab.ui.run_panel import RunPanel
from persona_lab.ui.scores import report_frame, results


def build(page: Page) -> None:
    """Create the tab."""

    def draw(run: RunView, picture: RunPicture) -> str:
        names = {variant.id: variant.name for variant in page.engine.variants()}
        names |= {f"base-{person.id}": "Base model" for person in page.engine.personas()}
        return results(run, names)

    with gr.Tab("Evaluate", id="evaluate") as tab:
        gr.Markdown(
            "### How well did it work?\nScored on conversations that no variant has seen, against the base model."
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                setup = _Setup(page)
            with gr.Column(scale=3, min_width=340):
                panel = RunPanel(page, ("evaluate",), "evaluate", draw, replies=False)
        probes = ProbesPanel(page)
        reports = _Reports(page)
        page.refresh(tab, setup.open, setup.opened)
        page.refresh(tab, reports.open, reports.opened, also=[panel.seen.change])
        probes.attach(tab)
        panel.attach(tab)
        setup.start.click(setup.begin, setup.inputs, [*panel.shown, setup.problem], **QUIET)


class _Setup:
    """What to score, and by what."""

    def __init__(self, page: Page) -> None:
        self.page = page
        parts = page.engine.plugins.all("evaluator")
        choices = [(f"{part.title}\n{part.summary}", part.id) for part in parts]
        self.nothing = gr.HTML()
        with gr.Column(visible=False) as self.body:
            self.variants = gr.CheckboxGroup([], label="Variants to score", elem_id="evaluate-variants")
            self.evaluators = gr.CheckboxGroup(
                choices,
                value=[part.id for part in parts],
                label="Measures",
                elem_id="evaluate-measures",
                elem_classes=["pl-strategies"],
            )
            self.quick = gr.Checkbox(True, label="Quick", info="Fewer probes: faster, with wider intervals.")
            self.controls = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                visible=False,
                label="Wrong character, as a control",
                info="A variant of somebody else, scored on these lines. A measure that lets it win measures genre.",
                elem_id="evaluate-controls",
            )
            self.problem = gr.HTML()
            self.start = gr.Button("Evaluate", variant="primary", size="lg", elem_id="evaluate-start")
        self.opened = [self.nothing, self.body, self.variants, self.controls]
        self.inputs = [page.persona, self.variants, self.controls, self.evaluators, self.quick]

    def open(self, persona: str | None) -> tuple[Any, ...]:
        """Updates for `opened`: the persona's variants, newest first, and the base model."""
        if not persona:
            hint = "Pick a character in the Personas tab; its variants appear here."
            return empty("Nobody is chosen yet", hint), gr.update(visible=False), gr.skip(), gr.skip()
        found = self.page.engine.variants(persona)
        base = self.page.engine.base_variant(persona)
        choices = [(f"{v.name} ({v.strategy})", v.id) for v in found] + [("Base model, untrained", base.id)]
        chosen = [v.id for v in found[:2]] + [base.id]
        hint = (
            "" if found else empty("No variants yet", "Train one in the Train tab; the base model can be scored now.")
        )
        others = self._others(persona)
        controls = gr.update(choices=others, value=[], visible=bool(others))
        return hint, gr.update(visible=True), gr.update(choices=choices, value=chosen), controls

    def _others(self, persona: str) -> list[tuple[str, str]]:
        """Trained variants of other personas: label and id."""
        names = {summary.id: summary.name for summary in self.page.engine.personas()}
        return [
            (f"{names.get(v.persona, v.persona)}: {v.name} ({v.strategy})", v.id)
            for v in self.page.engine.variants()
            if v.persona != persona and v.kind in ("adapter", "weights")
        ]

    def begin(
        self, persona: str, variants: list[str], controls: list[str] | None, evaluators: list[str], quick: bool
    ) -> tuple[Any, ...]:
        """Start the run; a problem stays on the page."""
        try:
            if not evaluators:
                raise BadInput("No measure is chosen.", "Tick at least one.")
            chosen = [*variants, *(controls or [])]
            run = self.page.engine.evaluate(chosen, evaluators, quick=quick, report=True, persona_id=persona)
        except PersonaLabError as error:
            return gr.skip(), gr.skip(), error_box(error)
        return run, "", ""


class _Reports:
    """Earlier reports, to read here or to take along."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Accordion("Reports", open=False, visible=False) as self.body:
            with gr.Row(equal_height=True):
                self.chosen = gr.Dropdown([], label="Report", scale=3, interactive=True)
                self.file = gr.DownloadButton("Download as HTML", scale=1)
            self.frame = gr.HTML()
        self.opened = [self.body, self.chosen]
        self.chosen.change(guarded(2)(self._show), [page.persona, self.chosen], [self.file, self.frame], **QUIET)

    def open(self, persona: str | None) -> tuple[Any, ...]:
        """Updates for `opened`."""
        found = [r for r in self.page.engine.reports(persona) if r.html] if persona else []
        choices = [(f"{when(report.created)}: {report.name}", report.id) for report in found]
        return gr.update(visible=bool(found)), gr.update(choices=choices, value=found[0].id if found else None)

    def _show(self, persona: str, report_id: str | None) -> tuple[Any, ...]:
        """The file is found by its id in the library and copied: gradio serves only from this process's own folder."""
        report = next((r for r in self.page.engine.reports(persona) if r.id == report_id), None)
        if report is None:
            return None, ""
        copy = self.page.fresh_file(f"{report.id}.html")
        shutil.copyfile(report.html, copy)
        return str(copy), report_frame(Path(report.html).read_text(encoding="utf-8"))
