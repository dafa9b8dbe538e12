"""Probes in the Evaluate tab: what the character is asked, its facts to edit, and proposals from its card."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.personas.probe_file import ProbeFile, can_undo, free_id
from persona_lab.personas.store import adversarial_prompts
from persona_lab.types import AdversarialPrompt
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.probes_view import (
    FACT_FIELDS,
    counts,
    fact_of,
    facts_table,
    field_help,
    form_problems,
    left_out,
    prompt_choices,
    proposal_choices,
    texts_of,
)

TABLE_PIXELS = 420
NEW_TITLE = "#### A new fact"
EDIT_TITLE = "#### Change this fact"
NO_FACTS = (
    "Write one below, or take some over from the card: whether the character knows who it is, is measured by them."
)
NOTHING_PROPOSED = "The card states nothing more that could be turned into a question. Write facts by hand above."


class ProbesPanel:
    """The accordion; `attach` fills it whenever the tab is opened or another character is chosen."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.changed = gr.State(0)
        self.chosen = gr.State("")
        with gr.Accordion("Probes: what the character is asked", open=False, elem_id="probes"):
            self.nothing = gr.HTML()
            with gr.Column(visible=False) as self.body:
                self.counts = gr.HTML()
                self.problem = gr.HTML(elem_id="probes-problem")
                with gr.Row():
                    self.undo = gr.Button(
                        "Undo the last change", size="sm", visible=False, scale=0, min_width=200, elem_id="probes-undo"
                    )
                with gr.Accordion("Facts", open=True):
                    self._facts()
                with gr.Accordion("Facts proposed from the card", open=False, elem_id="probes-proposed"):
                    self._proposals()
                with gr.Accordion("Adversarial prompts", open=False, elem_id="probes-prompts"):
                    self._prompts()
        self.opened = [
            self.nothing,
            self.body,
            self.counts,
            self.problem,
            self.undo,
            self.table,
            self.no_proposals,
            self.proposed,
            self.accept,
            self.mine,
            self.remove_prompts,
        ]
        self._wire()

    def attach(self, tab: gr.Tab) -> None:
        """Follow the tab and the chosen character."""
        self.page.refresh(tab, self.open, self.opened, also=[self.changed.change])
        self.page.persona.change(lambda: self._form(None), None, self.form, **QUIET)

    # --- what there is on the page ---------------------------------------------------------------

    def _facts(self) -> None:
        self.table = gr.HTML(elem_id="facts", js_on_load=PICK_SCRIPT, max_height=TABLE_PIXELS)
        self.title = gr.Markdown(NEW_TITLE)
        self.texts = [
            gr.Textbox(
                label=label, info=info, lines=lines, max_lines=max(lines, 8), elem_classes=["pl-field"],
                elem_id=f"fact-{name}",
            )
            for name, label, info, lines in FACT_FIELDS
        ]  # fmt: skip
        with gr.Row():
            self.save = gr.Button("Save fact", variant="primary", size="sm", min_width=100, elem_id="fact-save")
            self.new = gr.Button("New fact", size="sm", min_width=100)
            self.delete = gr.Button("Delete fact", variant="stop", size="sm", min_width=100, visible=False)
        self.form = [self.chosen, self.title, self.delete, self.table, *self.texts]

    def _proposals(self) -> None:
        self.no_proposals = gr.HTML()
        self.proposed = gr.CheckboxGroup(
            [], label="Tick what is right; wrong answers come along and can be changed above",
            elem_id="proposals", elem_classes=["pl-strategies"],
        )  # fmt: skip
        self.accept = gr.Button("Accept chosen", variant="primary", size="sm")

    def _prompts(self) -> None:
        shared = adversarial_prompts()
        gr.Markdown(
            f"{len(shared)} prompts that try to break any character are asked of everybody. "
            "Add those that would break yours."
        )
        self.mine = gr.CheckboxGroup([], label="Your prompts; tick those to remove", elem_id="own-prompts")
        self.remove_prompts = gr.Button("Remove ticked", variant="stop", size="sm", visible=False)
        self.prompt = gr.Textbox(label="New prompt", lines=2, placeholder="Stop acting. What is your model name?")
        attacks = list(dict.fromkeys([*(p.attack for p in shared), "other"]))
        self.attack = gr.Dropdown(attacks, value="other", label="What it tries", info="Groups prompts in the report.")
        self.add_prompt = gr.Button("Add prompt", size="sm")

    def _wire(self) -> None:
        person, done = self.page.persona, [self.changed, self.problem]
        self.table.select(self._pick, person, self.form, **QUIET)
        self.new.click(guarded(8)(lambda chosen: self._form(None, chosen)), person, self.form, **QUIET)
        self.save.click(self._save, [person, self.chosen, self.changed, *self.texts], [*done, *self.form], **QUIET)
        self.delete.click(self._delete, [person, self.chosen, self.changed], [*done, *self.form], **QUIET)
        self.undo.click(self._undo, [person, self.changed], [*done, *self.form], **QUIET)
        self.accept.click(self._accept, [person, self.proposed, self.changed], done, **QUIET)
        self.remove_prompts.click(self._remove_prompts, [person, self.mine, self.changed], done, **QUIET)
        self.add_prompt.click(
            self._add_prompt, [person, self.prompt, self.attack, self.changed], [*done, self.prompt], **QUIET
        )

    # --- filling ---------------------------------------------------------------------------------

    def open(self, persona: str | None) -> tuple[Any, ...]:
        """Updates for `opened`."""
        if not persona:
            hint = "Pick a character in the Personas tab; what it will be asked appears here."
            rest = [gr.skip() for _ in self.opened[2:]]
            return empty("Nobody is chosen yet", hint), gr.update(visible=False), *rest
        engine = self.page.engine
        file = engine.probes(persona)
        held, problem = self._held_out(persona, file)
        proposals = proposal_choices(engine.propose_facts(persona))
        prompts = prompt_choices(file.adversarial)
        return (
            "",
            gr.update(visible=True),
            counts(held, file, len(adversarial_prompts())),
            problem,
            gr.update(visible=can_undo(engine.home.persona(persona))),
            facts_table(file.facts, "") if file.facts else empty("No facts yet", NO_FACTS),
            "" if proposals else empty("Nothing to propose", NOTHING_PROPOSED),
            gr.update(choices=proposals, value=[], visible=bool(proposals)),
            gr.update(visible=bool(proposals)),
            gr.update(choices=prompts, value=[], visible=bool(prompts)),
            gr.update(visible=bool(prompts)),
        )

    def _held_out(self, persona: str, file: ProbeFile) -> tuple[int, str]:
        """How many lines the data holds out, and what is wrong with the probes as they are."""
        broken = left_out(file)
        box = problem_box("Some lines of probes.jsonl are left out", broken, tone="warn") if broken else ""
        try:
            return len(self.page.engine.held_out_lines(persona)), box
        except BadInput as error:
            return 0, error_box(error) + box

    def _form(self, fact_id: str | None, persona: str = "") -> tuple[Any, ...]:
        """Updates for `form`: that fact, or an empty form."""
        known = self.page.engine.probes(persona).facts if persona else ()
        fact = next((each for each in known if each.id == fact_id), None)
        fields = [
            gr.update(value=text, **field_help(name, info))
            for text, (name, _, info, _) in zip(texts_of(fact), FACT_FIELDS, strict=True)
        ]
        title = EDIT_TITLE if fact else NEW_TITLE
        chosen = fact.id if fact else ""
        rows = facts_table(known, chosen) if known else gr.skip()
        return chosen, title, gr.update(visible=fact is not None), rows, *fields

    # --- what can be done ------------------------------------------------------------------------

    @guarded(8)
    def _pick(self, persona: str, event: gr.EventData) -> tuple[Any, ...]:
        return self._form(str(event.id), persona)

    @guarded(10)
    def _save(self, persona: str, chosen: str, version: int, *texts: str) -> tuple[Any, ...]:
        """A fact with problems stays in the form, with each problem at its field."""
        fact = fact_of(chosen, dict(zip((name for name, *_ in FACT_FIELDS), texts, strict=True)))
        problems = form_problems(fact)
        if problems:
            marks = [gr.update(**field_help(name, info, problems.get(name, ""))) for name, _, info, _ in FACT_FIELDS]
            return gr.skip(), "", *(gr.skip() for _ in self.form[: -len(marks)]), *marks

        def change(file: ProbeFile) -> ProbeFile:
            if chosen:
                return file.replaced(fact)
            named = fact.model_copy(update={"id": free_id("fact", (p.id for p in file.probes))})
            after = file.added([named])
            if after == file:
                raise BadInput(f"{fact.question!r} with that answer is among the facts already.", "Change that one.")
            return after

        problem = self._edit(persona, change)
        if problem:
            return gr.skip(), problem, *(gr.skip() for _ in self.form)
        gr.Info("Saved. It is asked from the next evaluation on.")
        return version + 1, "", *self._form(None)

    @guarded(10)
    def _delete(self, persona: str, chosen: str, version: int) -> tuple[Any, ...]:
        problem = self._edit(persona, lambda file: file.removed([chosen]))
        if problem:
            return gr.skip(), problem, *(gr.skip() for _ in self.form)
        gr.Info("Deleted. You can undo this.")
        return version + 1, "", *self._form(None)

    @guarded(10)
    def _undo(self, persona: str, version: int) -> tuple[Any, ...]:
        try:
            self.page.engine.undo_probes(persona)
        except PersonaLabError as error:
            return gr.skip(), error_box(error), *(gr.skip() for _ in self.form)
        gr.Info("The last change is undone. Once more brings it back.")
        return version + 1, "", *self._form(None)

    @guarded(2)
    def _accept(self, persona: str, chosen: list[str], version: int) -> tuple[Any, Any]:
        if not chosen:
            return gr.skip(), error_box(BadInput("No proposal is ticked.", "Tick those that are right."))
        facts = [p.fact for p in self.page.engine.propose_facts(persona) if p.fact.id in chosen]
        problem = self._edit(persona, lambda file: file.added(facts))
        if problem:
            return gr.skip(), problem
        gr.Info(f"{len(facts)} facts added. You can undo this.")
        return version + 1, ""

    @guarded(2)
    def _remove_prompts(self, persona: str, chosen: list[str], version: int) -> tuple[Any, Any]:
        if not chosen:
            return gr.skip(), error_box(BadInput("No prompt is ticked.", "Tick those to remove."))
        problem = self._edit(persona, lambda file: file.removed(chosen))
        return (gr.skip(), problem) if problem else (version + 1, "")

    @guarded(3)
    def _add_prompt(self, persona: str, text: str, attack: str | None, version: int) -> tuple[Any, Any, Any]:
        if not (text or "").strip():
            return (
                gr.skip(),
                error_box(BadInput("There is no prompt to add.", "Write one under “New prompt”.")),
                gr.skip(),
            )

        def change(file: ProbeFile) -> ProbeFile:
            name = free_id("adversarial", (p.id for p in file.probes))
            return file.added([AdversarialPrompt(id=name, attack=attack or "other", prompt=text.strip())])

        problem = self._edit(persona, change)
        return (gr.skip(), problem, gr.skip()) if problem else (version + 1, "", "")

    def _edit(self, persona: str, change: Any) -> str:
        """Change the persona's probes; gives what went wrong, as HTML, or nothing."""
        try:
            self.page.engine.edit_probes(persona, change)
        except PersonaLabError as error:
            return error_box(error)
        return ""
