"""The Train tab: choose how, see what it costs here, start, watch, stop, resume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from persona_lab.errors import BadSetting, PersonaLabError, PluginFailed
from persona_lab.types import PlanRow, RunView
from persona_lab.ui.curve import loss_chart
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.forms import SIMPLE_FIELDS, Field, component, fields_of, marked, settings_from
from persona_lab.ui.html import empty
from persona_lab.ui.notices import error_box
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.run_panel import RunPanel
from persona_lab.ui.runs import ACTIVE, plan_box, strategy_choices

STARTER = "starter"
KINDS = ("train", "fetch")


def _curve(run: RunView, picture: RunPicture) -> str:
    """The loss curve; nothing for runs that have none, such as the prompt strategy's."""
    expected = run.kind == "train" and (picture.stages or run.status in ACTIVE)
    return loss_chart(*picture.curves()) if expected else ""


@dataclass
class Form:
    """The fields of one strategy on the page."""

    group: gr.Column
    fields: list[Field]
    widgets: list[Any]


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Train", id="train") as tab:
        gr.Markdown("### Teach the character\nChoose how; the numbers are estimates for this machine.")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=340):
                setup = _Setup(page)
            with gr.Column(scale=3, min_width=340):
                panel = RunPanel(page, KINDS, "train", _curve, replies=True)
        page.refresh(tab, setup.open, setup.opened)
        panel.attach(tab)
        setup.start.click(setup.begin, setup.start_inputs, [*panel.shown, setup.problem, *setup.widgets], **QUIET)


class _Setup:
    """Everything up to the button."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.parts = page.engine.plugins.all("strategy")
        self.nothing = gr.HTML()
        with gr.Column(visible=False) as self.body:
            self.strategy = gr.Radio([], label="How", elem_id="strategy", elem_classes=["pl-strategies"])
            self.plan = gr.HTML(elem_id="plan")
            self.forms = {part.id: self._form(part) for part in self.parts}
            with gr.Accordion("Base model, seed and name", open=False):
                self.base = gr.Dropdown(
                    [STARTER], value=page.engine.default_base, label="Base model", allow_custom_value=True,
                    info="The starter, a model of the Hugging Face hub, a local folder or a GGUF file.",
                )  # fmt: skip
                self.seed = gr.Number(0, label="Seed", precision=0, info="The same seed gives the same result again.")
                self.name = gr.Textbox(label="Name", max_lines=1, info="Leave empty for a name of its own.")
            self.problem = gr.HTML()
            self.start = gr.Button("Start training", variant="primary", size="lg", elem_id="start")
        self.widgets = [widget for form in self.forms.values() for widget in form.widgets]
        self.opened = [self.nothing, self.body, self.strategy, self.base, self.plan]
        self.inputs = [page.persona, self.strategy, self.base, *self.widgets]
        self.start_inputs = [*self.inputs, self.seed, self.name]
        groups = [form.group for form in self.forms.values()]
        self.strategy.change(self._switch, self.strategy, groups, **QUIET)
        gr.on(
            [self.strategy.change, self.base.change, *(widget.change for widget in self.widgets)],
            self._replan, self.inputs, [self.plan, *self.widgets], trigger_mode="always_last", **QUIET,
        )  # fmt: skip

    def _form(self, part: Any) -> Form:
        """The strategy's schema as fields: a few at once, the rest under Advanced."""
        fields = fields_of(part.Config)
        widgets = []
        with gr.Column(visible=False) as group:
            with gr.Row():
                widgets += [component(field) for field in fields[:SIMPLE_FIELDS]]
            if len(fields) > SIMPLE_FIELDS:
                with gr.Accordion("Advanced settings", open=False):
                    widgets += [component(field) for field in fields[SIMPLE_FIELDS:]]
        return Form(group, fields, widgets)

    def open(self, persona: str | None) -> tuple[Any, ...]:
        """Updates for `opened`: strategies ranked for this machine, or what to do first."""
        if not persona:
            hint = "Pick a character in the Personas tab; training starts from there."
            return empty("Nobody is chosen yet", hint), gr.update(visible=False), gr.skip(), gr.skip(), gr.skip()
        rows = self._rows(persona)
        choices = strategy_choices(rows, {part.id: part.summary for part in self.parts})
        bases = list(dict.fromkeys([STARTER, *(model.id for model in self.page.engine.models())]))
        first = next((row for row in rows if row.fits), rows[0] if rows else None)
        strategy = gr.update(choices=choices, value=first.strategy if first else None)
        return "", gr.update(visible=True), strategy, gr.update(choices=bases), plan_box(first) if first else ""

    def _rows(self, persona: str) -> list[PlanRow]:
        """All strategies, ranked; a plugin that cannot be asked takes only itself out."""
        try:
            return self.page.engine.plan(persona)
        except PluginFailed:
            return sorted((self._row(persona, part) for part in self.parts), key=lambda row: not row.fits)

    def _row(self, persona: str, part: Any) -> PlanRow:
        try:
            return self.page.engine.plan(persona, part.id)[0]
        except PluginFailed as error:
            return PlanRow(
                strategy=part.id, title=part.title, fits=False, rank=len(self.parts), reason=error.message,
                trainable_parameters=0, peak_memory_bytes=0, seconds=0, disk_bytes=0, uncertainty=1,
            )  # fmt: skip

    def _switch(self, strategy: str | None) -> list[Any]:
        return [gr.update(visible=strategy == part_id) for part_id in self.forms]

    def _read(self, strategy: str, values: tuple[Any, ...]) -> dict[str, Any]:
        """The settings of one strategy out of the values of all forms' widgets.

        Raises:
            BadSetting
        """
        by_widget = dict(zip((id(widget) for widget in self.widgets), values, strict=True))
        form = self.forms[strategy]
        named = {field.name: by_widget[id(widget)] for field, widget in zip(form.fields, form.widgets, strict=True)}
        return settings_from(form.fields, named)

    def _marks(self, strategy: str | None, error: BadSetting | None) -> list[Any]:
        """An update for every widget: the problem beside its field, everything else as it was."""
        updates: list[Any] = []
        for part_id, form in self.forms.items():
            mine = dict(error.problems) if error and part_id == strategy else {}
            updates += marked(form.fields, mine)
        return updates

    def _replan(self, persona: str | None, strategy: str | None, base: str, *values: Any) -> list[Any]:
        if not persona or not strategy:
            return ["", *(gr.skip() for _ in self.widgets)]
        try:
            row: PlanRow = self.page.engine.plan(persona, strategy, base, self._read(strategy, values))[0]
        except BadSetting as error:
            return [error_box(error), *self._marks(strategy, error)]
        except PersonaLabError as error:
            return [error_box(error), *self._marks(strategy, None)]
        return [plan_box(row), *self._marks(strategy, None)]

    def begin(self, persona: str | None, strategy: str, base: str, *rest: Any) -> list[Any]:
        """Start the run; problems stay on the page, beside their fields."""
        *values, seed, name = rest
        try:
            settings = self._read(strategy, tuple(values))
            run = self.page.engine.train(persona or "", strategy, base, settings, int(seed or 0), (name or "").strip())
        except PersonaLabError as error:
            bad = error if isinstance(error, BadSetting) else None
            return [gr.skip(), gr.skip(), error_box(error), *self._marks(strategy, bad)]
        return [run, "", "", *self._marks(strategy, None)]
