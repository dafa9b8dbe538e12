"""Probes as the page edits and shows them: plain functions between probes and text or HTML. No gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.datasets.held_out import normalised
from persona_lab.personas.probe_file import ProbeFile, fact_problems
from persona_lab.types import AdversarialPrompt, Fact
from persona_lab.ui.html import esc, plural, table

# (field of a Fact, label, help, lines)
FACT_FIELDS: tuple[tuple[str, str, str, int], ...] = (
    ("question", "Question", "What you would ask the character about itself.", 1),
    ("answer", "Right answer", "A few words, as short as they come.", 1),
    ("wrong", "Wrong answers", "One a line, three or more, of the same kind: ships beside a ship's name.", 4),
    ("paraphrases", "Other ways to ask", "One a line; two more make the score steadier.", 3),
)


def counts(held_out: int, file: ProbeFile, shared: int) -> str:
    """How much there is to ask, as tiles."""
    tiles = [
        (held_out, "held-out replies, from your data"),
        (len(file.facts), "facts about the character"),
        (shared + len(file.adversarial), f"adversarial prompts, {len(file.adversarial)} of them yours"),
    ]
    if file.replies:
        tiles.insert(1, (len(file.replies), "held-out lines you added"))
    return (
        '<div class="pl-tiles">'
        + "".join(f'<div class="pl-tile"><b>{count:,}</b><span>{esc(text)}</span></div>' for count, text in tiles)
        + "</div>"
    )


def facts_table(facts: Sequence[Fact], chosen: str) -> str:
    """The facts; each question is a button that carries the fact's id."""
    rows = [
        (_question(fact, fact.id == chosen), esc(fact.answer), esc(", ".join(fact.wrong)) or _soft("none yet"))
        for fact in facts
    ]
    return table(("Question", "Right answer", "Wrong answers"), rows, "Choose a question to change it.")


def _question(fact: Fact, chosen: bool) -> str:
    current = ' aria-current="true"' if chosen else ""
    button = (
        f'<button type="button" class="pl-rowbutton" data-id="{esc(fact.id)}"{current}>{esc(fact.question)}</button>'
    )
    more = len(fact.paraphrases)
    return button + ("<br>" + _soft("or in " + plural(more, "other way")) if more else "")


def _soft(text: str) -> str:
    return f'<span class="pl-soft">{esc(text)}</span>'


def fact_of(fact_id: str, texts: Mapping[str, str | None]) -> Fact:
    """The fact a form describes; `texts` by field name, lists one entry a line."""
    return Fact(
        id=fact_id,
        question=" ".join((texts["question"] or "").split()),
        answer=" ".join((texts["answer"] or "").split()),
        wrong=_lines(texts["wrong"]),
        paraphrases=_lines(texts["paraphrases"]),
    )


def texts_of(fact: Fact | None) -> list[str]:
    """A fact as the form's texts, in the order of FACT_FIELDS; empty for none."""
    if fact is None:
        return ["" for _ in FACT_FIELDS]
    return [fact.question, fact.answer, "\n".join(fact.wrong), "\n".join(fact.paraphrases)]


def form_problems(fact: Fact) -> dict[str, str]:
    """What is wrong with each field of the form; more than a file is asked, because one fact is looked at."""
    problems: dict[str, str] = {}
    for name, what in fact_problems(fact):
        problems.setdefault(name, what)
    if not fact.wrong:
        problems.setdefault("wrong", "is empty: the right answer needs others to stand out from")
    said = f" {normalised(fact.answer)} "
    for name, asked in (("question", (fact.question,)), ("paraphrases", fact.paraphrases)):
        if said.strip() and any(said in f" {normalised(text)} " for text in asked):
            problems.setdefault(name, "says the answer itself")
    return problems


def field_help(name: str, help_text: str, problem: str = "") -> dict[str, Any]:
    """`info` and `elem_classes` of a form's field, with its problem in front."""
    if not problem:
        return {"info": help_text, "elem_classes": ["pl-field"]}
    label = next((label for field, label, *_ in FACT_FIELDS if field == name), name.capitalize())
    return {"info": f"⚠ {esc(label)} {esc(problem)}. {help_text}", "elem_classes": ["pl-field", "pl-field-bad"]}


def proposal_choices(proposed: Sequence[Any]) -> list[tuple[str, str]]:
    """(label, id) of proposed facts: the question and answer, then the card's sentence they came from."""
    return [(f"{p.fact.question} {p.fact.answer}\nFrom the card: “{_short(p.sentence)}”", p.fact.id) for p in proposed]


def prompt_choices(prompts: Sequence[AdversarialPrompt]) -> list[tuple[str, str]]:
    """(label, id) of the user's adversarial prompts."""
    return [(f"{_short(p.prompt)} ({p.attack})", p.id) for p in prompts]


def left_out(file: ProbeFile) -> str:
    """The lines of the file that are no probes, in one sentence; empty if there are none."""
    told = "; ".join(f"line {number} {what}" for number, what in file.problems[:3])
    more = f"; and {len(file.problems) - 3} more" if len(file.problems) > 3 else ""
    return f"{told}{more}".capitalize() if told else ""


def _lines(text: str | None) -> tuple[str, ...]:
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def _short(text: str, length: int = 240) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
