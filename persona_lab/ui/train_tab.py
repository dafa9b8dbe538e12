"""The Train tab: choose how, see what it costs here, start, watch, stop, resume, compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from persona_lab.engine import Engine
from persona_lab.errors import BadSetting, PersonaLabError
from persona_lab.types import PlanRow, RunView, slug
from persona_lab.ui.curve import loss_chart
from persona_lab.ui.example_panel import ExamplePanel
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.forms import SIMPLE_FIELDS, Field, component, fields_of, marks_style, settings_from
from persona_lab.ui.history_panel import HistoryPanel
from persona_lab.ui.html import empty, esc
from persona_lab.ui.notices import error_box, guarded
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.plans import Plans
from persona_lab.ui.run_panel import RunPanel
from persona_lab.ui.runs import ACTIVE, plan_box, strategy_choices
from persona_lab.ui.small_charts import measures

STARTER = "starter"
KINDS = ("train", "fetch", "calibrate", "traits")
START, QUEUE = "Start training", "Add to the queue"


def _curve(run: RunView, picture: RunPicture) -> str:
    """The loss curve and what it used; nothing for runs that have none, such as the prompt strategy's."""
    expected = run.kind == "train" and (picture.stages or run.status in ACTIVE)
    return loss_chart(*picture.curves()) + measures(picture) if expected else ""


@dataclass
class Form:
    """The fields of one strategy on the page."""

    group: gr.Column
    fields: list[Field]
    widgets: list[Any]


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Train", id="train") as tab:
        teaser = gr.HTML(elem_id="train-teaser")
        gr.Markdown("### Teach the character\nChoose how; the numbers are estimates for this machine.")
        setup = _Setup(page)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                setup.details()
            with gr.Column(scale=3, min_width=300):
                panel = RunPanel(page, KINDS, "train", _curve, replies=True, history=False)
                past = HistoryPanel(page, KINDS, panel.run)
        setup.attach(tab)
        panel.attach(tab)
        past.attach(tab)
        page.timer.tick(lambda shown: told_anew(now_running(page.engine), shown), teaser, teaser, **QUIET)
        gr.on([tab.select, page.demo.load], lambda: now_running(page.engine), None, teaser, **QUIET)
        begun = setup.start.click(
            setup.begin, setup.start_inputs, [*panel.shown, setup.problem, setup.start, setup.marks], **QUIET
        )
        begun.then(lambda: "", None, past.seen, **QUIET)
        past.seen.change(setup.label, None, setup.start, **QUIET)


def told_anew(text: str, shown: str | None) -> Any:
    """The text where it is another than what is shown; a clock sends nothing that is there already."""
    return gr.skip() if text == (shown or "") else text


def now_running(engine: Engine) -> str:
    """On a phone, what is in progress far below is said above; empty where nothing is."""
    busy = engine.busy()
    run = engine.run(busy) if busy else None
    if run is None or run.kind not in KINDS:
        return ""
    far = f"step {run.step:,} of {run.total:,}" if run.total else (run.phase or "starting")
    return f'<p class="pl-teaser"><a href="#train-status">{esc(run.name)}: {esc(far)} ↓</a></p>'


class _Setup:
    """Everything up to the button: the cards, then (`details`) costs, the button, and the settings."""

    def __init__(self, page: Page) -> None:
        self.page, self.plans = page, Plans(page.engine)
        self.parts = page.engine.plugins.all("strategy")
        self.summaries = {part.id: part.summary for part in self.parts}
        self.needs = {part.id: "a variant" for part in self.parts if getattr(part, "goes_on", False)}
        self.of = gr.State("")
        self.nothing = gr.HTML()
        with gr.Column(visible=False) as self.top:
            self.strategy = gr.Radio([], label="How", elem_id="strategy", elem_classes=["pl-strategies"])

    def details(self) -> None:
        """What belongs to the chosen card; called where it is to stand."""
        page = self.page
        with gr.Column(visible=False) as self.body:
            self.plan = gr.HTML(elem_id="plan")
            self.problem = gr.HTML()
            self.marks = gr.HTML(elem_id="train-marks")
            self.start = gr.Button(START, variant="primary", size="lg", elem_id="start")
            self.forms = {part.id: self._form(part) for part in self.parts}
            self.example = ExamplePanel(page)
            with gr.Accordion("Base model, seed and name", open=False):
                self.base = gr.Dropdown(
                    [STARTER], value=page.engine.default_base, label="Base model", allow_custom_value=True,
                    info="The starter, a model of the Hugging Face hub, a local folder or a GGUF file.",
                )  # fmt: skip
                self.seed = gr.Number(0, label="Seed", precision=0, info="The same seed gives the same result again.")
                self.name = gr.Textbox(label="Name", max_lines=1, info="Leave empty for a name of its own.")
        self.widgets = [widget for form in self.forms.values() for widget in form.widgets]
        self.variants = [
            widget for form in self.forms.values() for field, widget in zip(form.fields, form.widgets, strict=True)
            if field.pick == "variant"
        ]  # fmt: skip
        self.opened = [self.nothing, self.top, self.body, self.strategy, self.base, self.of, *self.variants]
        self.inputs = [page.persona, self.strategy, self.base, *self.widgets]
        self.start_inputs = [*self.inputs, self.seed, self.name]

    def attach(self, tab: gr.Tab) -> None:
        """Fill the tab when it is opened: what is known at once, then what has to be worked out."""
        page = self.page
        opened = gr.on(
            [tab.select, page.persona.change, page.demo.load],
            guarded(len(self.opened))(self.open), [page.persona, self.of, self.strategy, self.base], self.opened,
            trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        costs = guarded(2)(self.fill)
        asked, filled = [page.persona, self.strategy, self.base], [self.strategy, self.plan]
        drawn = [self.plan, self.marks]
        for begun in (opened, self.base.change):
            priced = (begun.then if begun is opened else begun)(
                costs, asked, filled, trigger_mode="always_last", **QUIET
            )
            priced.then(self._replan, self.inputs, drawn, trigger_mode="always_last", **QUIET)
        self.base.change(lambda base: base or STARTER, self.base, self.example.base, **QUIET)
        groups = [form.group for form in self.forms.values()]
        self.strategy.change(self._switch, self.strategy, groups, trigger_mode="always_last", **QUIET)
        gr.on(
            [self.strategy.change, *(widget.change for widget in self.widgets)],
            self._replan, self.inputs, drawn, trigger_mode="always_last", **QUIET,
        )  # fmt: skip

    def _form(self, part: Any) -> Form:
        """The strategy's schema as fields: a few at once, the rest under Advanced."""
        fields = fields_of(part.Config)
        widgets = []
        with gr.Column(visible=False) as group:
            with gr.Row():
                widgets += [component(field, _place(part.id, field)) for field in fields[:SIMPLE_FIELDS]]
            if len(fields) > SIMPLE_FIELDS:
                with gr.Accordion(f"Advanced settings ({len(fields) - SIMPLE_FIELDS} more)", open=False):
                    widgets += [component(field, _place(part.id, field)) for field in fields[SIMPLE_FIELDS:]]
        return Form(group, fields, widgets)

    def open(self, persona: str | None, of: str, strategy: str | None, base: str | None = None) -> list[Any]:
        """Updates for `opened`: the strategies with what is known of them already, or what to do first."""
        still = [gr.skip() for _ in self.variants]
        if not persona:
            hint = "Pick a character in the Home or Personas tab; training starts from there."
            box = empty("Nobody is chosen yet", hint)
            return [box, gr.update(visible=False), gr.update(visible=False), gr.skip(), gr.skip(), "", *still]
        if not self.page.engine.datasets(persona):
            hint = "A character learns from conversations in its voice. Add some in the Data tab, then come back."
            box = empty("It has nothing to learn from yet", hint)
            return [box, gr.update(visible=False), gr.update(visible=False), gr.skip(), gr.skip(), "", *still]
        bases = list(dict.fromkeys([STARTER, *(model.id for model in self.page.engine.models())]))
        cards = gr.skip()
        if of != persona or not strategy:
            known = self.plans.known(persona, base or STARTER)
            rows = known or self.plans.placeholders()
            cards = gr.update(choices=self._cards(persona, rows, bool(known)), value=_first(known) if known else None)
        mine = self.page.engine.variants(persona)
        trained = [(variant.name, variant.id) for variant in mine if variant.kind in ("adapter", "weights")]
        picks = [gr.update(choices=[("None", ""), *trained], value=trained[0][1] if trained else "")] * len(still)
        return [
            "",
            gr.update(visible=True),
            gr.update(visible=True),
            cards,
            gr.update(choices=bases),
            persona,
            *(picks if of != persona else still),
        ]

    def fill(self, persona: str | None, strategy: str | None, base: str) -> tuple[Any, Any]:
        """Updates for the cards (and, if it fails, the plan): worked out while the page is already usable."""
        if not persona:
            return gr.skip(), ""
        try:
            rows = self.plans.rows(persona, base or STARTER)
        except PersonaLabError as error:
            return gr.skip(), error_box(error)
        cards = self._cards(persona, rows, True)
        if strategy in self.forms:  # no value: another may have been chosen while the costs were worked out
            return gr.update(choices=cards), gr.skip()
        return gr.update(choices=cards, value=_first(rows)), gr.skip()

    def _cards(self, persona: str, rows: list[PlanRow], asked: bool) -> list[tuple[str, str]]:
        # where there is a variant, its row says itself what speaks against it
        needs = {} if self.plans.parent(persona) else self.needs
        return strategy_choices(rows, self.summaries, needs, asked)

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

    def _marks(self, strategy: str | None, error: BadSetting | None) -> str:
        """The problems, each beside its field."""
        if error is None or strategy is None or strategy not in self.forms:
            return ""
        fields = {field.name: field for field in self.forms[strategy].fields}
        return marks_style({_place(strategy, fields[name]): text for name, text in error.problems if name in fields})

    def _replan(self, persona: str | None, strategy: str | None, base: str, *values: Any) -> list[Any]:
        if not persona or not strategy:
            return ["", ""]
        try:
            row = self.plans.row(persona, strategy, base or STARTER, self._read(strategy, values))
        except BadSetting as error:
            return [error_box(error), self._marks(strategy, error)]
        except PersonaLabError as error:
            return [error_box(error), self._marks(strategy, None)]
        return [plan_box(row), self._marks(strategy, None)]

    def label(self) -> Any:
        """What the button says: with a run in progress, the next one waits."""
        busy = self.page.engine.busy() or self.page.engine.queue()
        return gr.update(value=QUEUE if busy else START)

    def begin(self, persona: str | None, strategy: str | None, base: str, *rest: Any) -> list[Any]:
        """Start the run; problems stay on the page, beside their fields."""
        *values, seed, name = rest
        if not strategy:
            hint = empty("No way is chosen yet", "Choose one of the cards above; LoRA is a good start.")
            return [gr.skip(), gr.skip(), hint, gr.skip(), ""]
        engine = self.page.engine
        waits = engine.busy()
        try:
            settings = self._read(strategy, tuple(values))
            run = engine.train(persona or "", strategy, base or STARTER, settings, int(seed or 0), (name or "").strip())
        except PersonaLabError as error:
            bad = error if isinstance(error, BadSetting) else None
            return [gr.skip(), gr.skip(), error_box(error), gr.skip(), self._marks(strategy, bad)]
        if waits:  # what is running stays in view; the new one is in the queue below it
            gr.Info("Added to the queue; it starts by itself.")
            return [gr.skip(), gr.skip(), "", self.label(), self._marks(strategy, None)]
        return [run, "", "", self.label(), self._marks(strategy, None)]


def _place(strategy: str, field: Field) -> str:
    """The element id of a field."""
    return f"set-{slug(strategy)}-{field.name}"


def _first(rows: list[PlanRow]) -> str | None:
    """The strategy to propose: the first that fits."""
    first = next((row for row in rows if row.fits), rows[0] if rows else None)
    return first.strategy if first else None
