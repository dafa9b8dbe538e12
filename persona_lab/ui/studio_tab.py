"""The Studio tab: many replies at once, rated in a table; the prompt library and the styles they are made from."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.studio.records import MOST_SEEDS, PLAIN
from persona_lab.studio.studio import own_prompts
from persona_lab.ui.html import empty
from persona_lab.ui.notices import error_box, guarded
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.studio_review import BUSY_SECONDS, Review
from persona_lab.ui.studio_shelf import Prompts, Styles
from persona_lab.ui.studio_view import counted, style_words

MOST_SEED = 2**31 - 1
RESULTS = "studio-results"


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Studio", id="studio") as tab:
        gr.Markdown(
            "### Many replies at once\nPrompts × variants × seeds, written together, kept as they come, and rated."
        )
        with gr.Tabs(elem_id="studio-tabs") as inner:
            with gr.Tab("New batch", id="studio-new"):
                new = _New(page)
            with gr.Tab("Results", id=RESULTS) as results:
                review = Review(page)
            with gr.Tab("Prompts", id="studio-prompts"):
                prompts = Prompts(page)
            with gr.Tab("Styles", id="studio-styles"):
                styles = Styles(page)
        new.attach(tab, [prompts.changed.change, styles.changed.change])
        review.attach(tab, results)
        prompts.attach(tab)
        styles.attach(tab)
        new.start.click(new.begin, new.inputs, [review.batch, inner, new.problem, page.timer], **QUIET)


class _New:
    """What to generate."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.of = gr.State("")
        self.nothing = gr.HTML()
        with gr.Row(equal_height=False, visible=False) as self.body:
            with gr.Column(scale=3, min_width=320):
                self.prompts = gr.Dropdown(
                    [], value=[], multiselect=True, label="Prompts", info="From the library; type to search.",
                    elem_id="studio-prompt-choice",
                )  # fmt: skip
                self.tag = gr.Dropdown(
                    [], label="Add every prompt with the tag", elem_id="studio-tag", interactive=True
                )
                self.own = gr.Textbox(
                    label="Prompts of your own", info="One a line; {{char}} becomes the character's name.", lines=3,
                    max_lines=12, elem_id="studio-own",
                )  # fmt: skip
                self.count = gr.HTML(elem_id="studio-count")
                self.problem = gr.HTML()
                self.start = gr.Button("Generate", variant="primary", size="lg", elem_id="studio-start")
            with gr.Column(scale=2, min_width=320):
                self.variants = gr.CheckboxGroup([], label="Variants", elem_id="studio-variants")
                self.others = gr.Dropdown(
                    [], value=[], multiselect=True, visible=False, label="Variants of other characters"
                )
                with gr.Row():
                    self.seeds = gr.Number(
                        2, label="Replies to each", info="With one seed after another.", precision=0, minimum=1,
                        maximum=MOST_SEEDS, min_width=120, elem_id="studio-seeds",
                    )  # fmt: skip
                    self.seed = gr.Number(
                        0, label="First seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120
                    )
                self.style = gr.Dropdown([], label="Style", elem_id="studio-style", interactive=True)
                self.about = gr.HTML()
                self.name = gr.Textbox(label="Name of the batch", max_lines=1, info="Leave empty for one of its own.")
        self.opened = [
            self.nothing, self.body, self.prompts, self.tag, self.variants, self.others, self.style, self.about,
            self.of,
        ]  # fmt: skip
        chosen = [self.prompts, self.own, self.variants, self.others, self.seeds]
        self.inputs = [page.persona, *chosen, self.seed, self.style, self.name]
        gr.on([part.change for part in chosen], self._count, chosen, self.count, trigger_mode="always_last", **QUIET)
        self.style.change(guarded(1)(self._about), self.style, self.about, **QUIET)
        self.tag.input(guarded(2)(self._add), [self.tag, self.prompts], [self.tag, self.prompts], **QUIET)

    def attach(self, tab: gr.Tab, also: list[Any]) -> None:
        """Fill on opening, on another character, and when the library changed."""
        gr.on(
            [tab.select, self.page.persona.change, self.page.demo.load, *also],
            guarded(len(self.opened))(self.open),
            [self.page.persona, self.of, self.prompts, self.variants, self.style],
            self.opened,
            **QUIET,
        )

    def open(
        self, persona: str | None, of: str, prompts: list[str], variants: list[str], style: str | None
    ) -> tuple[Any, ...]:
        """Updates for `opened`; what was chosen and still exists stays."""
        engine = self.page.engine
        if not persona:
            hint = "Pick a character in the Personas tab; then give it many prompts at once here."
            return empty("Nobody is chosen yet", hint), gr.update(visible=False), *[gr.skip()] * 6, ""
        shelf = engine.studio.shelf
        known = {prompt.id: prompt.name for prompt in shelf.prompts()}
        styles = {known_style.id: known_style.name for known_style in shelf.styles()}
        mine = [(f"{v.name} ({v.strategy})", v.id) for v in engine.variants(persona)]
        choices = [*mine, ("Base model, untrained", f"base-{persona}")]
        kept = [v for v in variants or [] if v in {value for _, value in choices}] if of == persona else []
        names = {summary.id: summary.name for summary in engine.personas()}
        others = [
            (f"{names.get(v.persona, v.persona)}: {v.name}", v.id) for v in engine.variants() if v.persona != persona
        ]
        chosen = style if style in styles else PLAIN.id
        return (
            "",
            gr.update(visible=True),
            gr.update(choices=[(n, i) for i, n in known.items()], value=[p for p in prompts or [] if p in known]),
            gr.update(choices=shelf.tags(), value=None),
            gr.update(choices=choices, value=kept or [value for _, value in (*mine[:1], choices[-1])]),
            gr.update(choices=others, visible=bool(others), **({} if of == persona else {"value": []})),
            gr.update(choices=[(n, i) for i, n in styles.items()], value=chosen),
            style_words(shelf.style(chosen)),
            persona,
        )

    @staticmethod
    def _count(prompts: list[str], own: str, variants: list[str], others: list[str], seeds: float | None) -> str:
        lines = [line for line in (own or "").splitlines() if line.strip()]
        chosen = len(variants or []) + len(others or [])
        return counted(len(prompts or []) + len(lines), chosen, max(int(seeds or 1), 1))

    def _about(self, style: str | None) -> str:
        return style_words(self.page.engine.studio.shelf.style(style or PLAIN.id))

    def _add(self, tag: str | None, chosen: list[str]) -> tuple[Any, Any]:
        if not tag:
            return gr.skip(), gr.skip()
        more = [prompt.id for prompt in self.page.engine.studio.shelf.prompts([tag])]
        return None, list(dict.fromkeys([*(chosen or []), *more]))

    def begin(
        self,
        persona: str | None,
        prompts: list[str],
        own: str,
        variants: list[str],
        others: list[str],
        seeds: float | None,
        seed: float | None,
        style: str,
        name: str,
    ) -> tuple[Any, ...]:
        """Make the batch, start it and show it; a problem stays on the page."""
        engine = self.page.engine
        try:
            if not persona:
                raise BadInput("No character is chosen.", "Pick one in the Personas tab first.")
            studio = engine.studio
            asked = [studio.shelf.prompt(prompt) for prompt in prompts or []] + own_prompts((own or "").splitlines())
            found = [engine.variant(variant) for variant in [*(variants or []), *(others or [])]]
            first = int(seed or 0)
            wanted = range(first, first + min(max(int(seeds or 1), 1), MOST_SEEDS))
            names = {summary.id: summary.name for summary in engine.personas()}
            batch = studio.create(asked, found, wanted, studio.shelf.style(style or PLAIN.id), name or "", names)
            studio.start(batch.id)
        except PersonaLabError as error:
            return gr.skip(), gr.skip(), error_box(error), gr.skip()
        choices = [(f"{view.name} ({view.total})", view.id) for view in studio.batches()]
        return gr.update(choices=choices, value=batch.id), gr.Tabs(selected=RESULTS), "", gr.Timer(BUSY_SECONDS)
