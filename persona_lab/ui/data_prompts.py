"""The part of the Data tab where a base model writes the prompts of a document's passages; a run like any other."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.datasets.instructions import askable
from persona_lab.errors import PersonaLabError
from persona_lab.types import RunView
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.html import plural
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.run_panel import RunPanel

STARTER = "starter"


class PromptsPanel:
    """Below the versions: write, watch, stop. `changed` holds the id of the version that a finished run made."""

    def __init__(self, page: Page, version: gr.Dropdown, tab: gr.Tab) -> None:
        self.page = page
        self.changed = gr.State("")
        with gr.Accordion(
            "Passages of a document: have a model write the prompts", open=False, visible=False, elem_id="prompts"
        ) as self.body:
            self.about = gr.HTML()
            with gr.Row():
                self.base = gr.Dropdown(
                    [STARTER], value=page.engine.default_base, label="Base model that writes", allow_custom_value=True
                )
                write = gr.Button("Write prompts", variant="primary", elem_id="write-prompts")
            self.problem = gr.HTML()
            self.panel = RunPanel(page, ("prompts",), "prompts", _result, replies=False, history=False)
        self.panel.attach(tab)
        version.change(guarded(3)(self._open), version, [self.body, self.about, self.base], **QUIET)
        write.click(guarded(3)(self._write), [version, self.base], [*self.panel.shown, self.problem], **QUIET)
        self.panel.seen.change(guarded(1)(self._made), [self.panel.run, self.changed], self.changed, **QUIET)

    def _open(self, version: str | None) -> tuple[Any, ...]:
        """Shown where there is something to write: a version with prompts that we made."""
        rows = askable(self.page.engine.dataset(version).conversations) if version else []
        told = (
            f"{plural(len(rows), 'passage')} of this version {'answers' if len(rows) == 1 else 'answer'} a prompt that "
            "we made. A base model can write them: it reads each passage and asks what it could answer. The passages "
            "stay as they are, each row says who made its prompt, and this version is kept."
        )
        bases = list(dict.fromkeys([STARTER, *(model.id for model in self.page.engine.models())]))
        return gr.update(visible=bool(rows)), f"<p>{told}</p>", gr.update(choices=bases)

    def _write(self, version: str | None, base: str | None) -> tuple[Any, ...]:
        try:
            run = self.page.engine.write_prompts(version or "", base or STARTER)
        except PersonaLabError as error:
            return gr.skip(), gr.skip(), error_box(error)
        return run, "", ""

    def _made(self, run_id: str, changed: str) -> Any:
        """The version a run made, told once: the list of versions is read again then."""
        made = str(self.page.engine.run(run_id).result.get("version", "")) if run_id else ""
        return made if made and made != changed else gr.skip()


def _result(run: RunView, picture: RunPicture) -> str:
    """What was written; nothing until it is done."""
    if run.status != "done":
        return ""
    written, rows = run.result.get("written", 0), run.result.get("rows", 0)
    text = f"{run.result.get('model', '')} wrote {written} of {rows}; the others keep their template's."
    return problem_box("A new version has other prompts", text, tone="good")
