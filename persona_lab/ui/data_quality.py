"""The part of the Data tab that says what may be wrong with a version, and mends it as a new version."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.datasets.quality.report import Finding, QualityReport
from persona_lab.errors import PersonaLabError
from persona_lab.ui.bars import binned, chart
from persona_lab.ui.html import PICK_SCRIPT, chip, empty, esc, plural
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page

ALL = "all"


class QualityPanel:
    """Below the versions: check, fix, take back. `changed` holds the id of a version that a fix or an undo chose."""

    def __init__(self, page: Page, version: gr.Dropdown) -> None:
        self.page = page
        self.changed = gr.State("")
        with gr.Accordion("Is anything wrong with it? Check before training", open=False, elem_id="quality"):
            with gr.Row():
                check = gr.Button("Check this version", elem_id="check-version")
                undo = gr.Button("Go back to the version before", elem_id="undo-fix")
            self.report = gr.HTML(elem_id="quality-report", js_on_load=PICK_SCRIPT)
            self.plots = gr.HTML(elem_id="quality-plots")
        shown = [self.report, self.plots]
        check.click(self._check, version, shown, show_progress="minimal", api_visibility="private", concurrency_limit=2)
        self.report.select(
            guarded(3)(self._fix), version, [*shown, self.changed], show_progress="minimal", api_visibility="private"
        )
        undo.click(self._undo, version, [self.report, self.changed], **QUIET)
        version.change(lambda: ("", ""), None, shown, **QUIET)

    def _check(self, version: str | None) -> tuple[Any, ...]:
        if not version:
            return empty("Nothing to check yet", "Add conversations first."), ""
        try:
            report = self.page.engine.check_dataset(version)
        except PersonaLabError as error:
            return error_box(error), gr.skip()
        return findings(report), plots(report)

    def _fix(self, version: str | None, event: gr.EventData) -> tuple[Any, ...]:
        kind = str(event.id)
        try:
            kinds = [kind]
            if kind == ALL:
                kinds = [f.kind for f in self.page.engine.check_dataset(version or "").findings if f.fix]
            made = self.page.engine.fix_dataset(version or "", kinds)
        except PersonaLabError as error:
            return error_box(error), gr.skip(), gr.skip()
        gr.Info(f"Version {made.version} is in use now. {' '.join(made.warnings)}", title="Mended")
        return gr.skip(), gr.skip(), made.id

    def _undo(self, version: str | None) -> tuple[Any, ...]:
        try:
            dataset = self.page.engine.dataset(version or "")
            known = {summary.id: summary for summary in self.page.engine.datasets(dataset.persona)}
            summary = known[dataset.id]
            earlier = [d for d in known.values() if d.version < summary.version]
            parent = summary.parent or (max(earlier, key=lambda d: d.version).id if earlier else "")
            if not parent:
                return problem_box("There is no version before this one", "", tone="warn"), gr.skip()
            made = self.page.engine.use_dataset(parent)
        except PersonaLabError as error:
            return error_box(error), gr.skip()
        gr.Info(f"Version {made.version} is in use again; the later one is kept.")  # the report goes with the version
        return gr.skip(), made.id


def findings(report: QualityReport) -> str:
    """The report as HTML; its buttons carry the kind to mend."""
    if not report.findings:
        told = f"None of the {len(report.clean)} checks found anything in {plural(report.conversations, 'row')}."
        return problem_box("Nothing found", told, tone="good")
    every = f'<button type="button" class="pl-rowbutton" data-id="{ALL}">Mend everything below</button>'
    body = "".join(_finding(finding, report.conversations) for finding in report.findings)
    clean = f'<p class="pl-soft">Nothing found: {esc(", ".join(report.clean).lower())}.</p>' if report.clean else ""
    note = '<p class="pl-soft">Mending makes a new version and keeps this one.</p>'
    return f'<div class="pl-findings">{every}{note}{body}{clean}</div>'


def _finding(finding: Finding, rows: int) -> str:
    examples = "".join(
        f"<li>{chip(f'row {e.row}')}{chip(e.split or '')} <q>{esc(e.text)}</q></li>" for e in finding.examples
    )
    button = (
        f'<button type="button" class="pl-rowbutton" data-id="{esc(finding.kind)}">Mend</button> '
        f'<span class="pl-soft">{esc(finding.fix)}</span>'
        if finding.fix
        else ""
    )
    return (
        f'<div class="pl-box pl-warn" data-kind="{esc(finding.kind)}" data-count="{finding.count}">'
        f"<strong>{esc(finding.title)}: {finding.count:,} of {plural(rows, 'row')}</strong><p>{esc(finding.why)}</p>"
        f"<ul>{examples}</ul>{button}</div>"
    )


def plots(report: QualityReport) -> str:
    """How long replies are, how many turns conversations have, and how rows were made, as HTML."""
    made = {"as it stood": report.conversations - sum(report.made.values()), **report.made}
    turns = {str(number): count for number, count in report.turns.items()}
    parts = [
        chart(binned(report.reply_words), "Words of a reply", "replies"),
        chart(turns, "Turns of a conversation", "conversations"),
    ]
    told = ", ".join(f"{esc(how)}: {count:,}" for how, count in made.items() if count)
    return f'<div class="pl-plots">{"".join(parts)}</div><p class="pl-soft">Rows by how they were made: {told}.</p>'
