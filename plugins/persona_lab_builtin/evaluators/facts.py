"""Facts: does it know who it is? Right answers against wrong ones of the same type, and what it writes when asked.

Formula: c(a|q) = log p(a | system, q) - log p(a | system, NEUTRAL), in nats over the whole answer: what the question
adds to the answer's likelihood, so that common or short answers gain nothing. margin = c(right) - max c(wrong) over
K >= 3 wrong answers, higher is better, above 0 where the right one wins. accuracy = share of margins above 0, higher
is better; chance is 1 / (K + 1), the reference its mean. Both have the same weights and prompt on either side of the
difference. written = share of facts whose greedy reply gives the right answer and no wrong one (see
`answer_matching`). Intervals resample facts, since phrasings of one fact are not independent.
Source: domain-conditional PMI, Holtzman et al. 2021 (arXiv 2104.08315); the total, as there, because by Bayes' rule it
is how much better the answer explains the question, whatever the answer's length.
Weakness: where the card's prompt repeats an answer, the base may know it as well: compare with the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from persona_lab.api import EvalContext, Evaluator, Frozen, ItemScore, Message, Metric, Probe, Sampling, Variant
from persona_lab_builtin.evaluators.answer_matching import answer_kind, contains, given, same

NEUTRAL = "Answer in a few words."
"""Asks for nothing: what an answer is worth before any question."""
MIN_WRONG, MAX_WRONG = 3, 7
ENOUGH_FACTS = 20
QUICK_FACTS, QUICK_PHRASINGS = 12, 1
REPLY = Sampling(max_new_tokens=48, temperature=0, repetition_penalty=1.0)
Name = Literal["accuracy", "margin", "written"]
UNITS: dict[Name, str] = {"accuracy": "share", "margin": "nats", "written": "share"}
TITLES: dict[Name, str] = {"accuracy": "Facts", "margin": "Facts, margin", "written": "Facts, written"}
_MEANING: dict[Name, str] = {
    "accuracy": "Share of questions where the right answer beats every wrong one, each corrected by its likelihood"
    " without the question. The reference is chance.",
    "margin": "Corrected log-likelihood of the right answer minus that of the best wrong one. Above 0: it knows.",
    "written": "Facts whose written reply gives the right answer and no wrong one; word by word, not by sense.",
}


class FactsConfig(Frozen):
    """How much is asked."""

    facts: int = Field(40, ge=1, le=1000, description="Facts asked about at most; a quick evaluation asks 12.")
    phrasings: int = Field(3, ge=1, le=20, description="Ways each question is put at most; a quick evaluation has 1.")


class Facts(Evaluator):
    """Margin and accuracy of the right answer over wrong ones, and a check on written replies."""

    id = "facts"
    title = "Facts"
    summary = "Whether it knows who it is: right answers about itself against wrong ones, and what it writes."
    rank = 13
    Config = FactsConfig

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics accuracy (share), margin (nats), written (share)."""
        ctx.phase(f"Facts of {variant.name}", None)
        questions, left_out = _questions(probes)
        asked = _sample(questions, ctx)
        if not asked:
            return [_withheld(name, left_out, ctx) for name in UNITS]
        remarks = _remarks(asked, left_out)
        margins = _margins(variant, asked, ctx)
        return [_accuracy(asked, margins, remarks, ctx), _margin(margins, remarks, ctx), _written(variant, asked, ctx)]


@dataclass(frozen=True)
class Question:
    """One phrasing of a fact, with the wrong answers that may stand beside the right one."""

    probe: Probe
    right: str
    wrong: tuple[str, ...]
    completed: bool = False
    """Some wrong answers are the right ones of other facts."""


# --- what is asked --------------------------------------------------------------------------------


def _questions(probes: Sequence[Probe]) -> tuple[list[Question], int]:
    """Every phrasing that can be asked, and the number of facts of which none can."""
    facts = {p.fact.id: p.fact for p in probes if p.kind == "fact" and p.fact is not None}
    kinds = {name: answer_kind(fact.answer, fact.question) for name, fact in facts.items()}
    asked: list[Question] = []
    for probe in probes:
        fact, ask = probe.fact, probe.messages[-1].content
        if probe.kind != "fact" or fact is None or not fact.answer.strip() or contains(ask, fact.answer):
            continue
        kind = kinds[fact.id]
        others = [facts[name].answer for name in facts if kind and kinds[name] == kind]
        borrowed = [a for a in others if not contains(a, fact.answer) and not contains(fact.answer, a)]
        wrong = _usable(fact.answer, fact.wrong, ask, MAX_WRONG)
        if len(wrong) < MIN_WRONG:
            wrong = _usable(fact.answer, (*wrong, *borrowed), ask, MIN_WRONG)
        if len(wrong) >= MIN_WRONG:
            completed = any(answer not in {*map(str.strip, fact.wrong)} for answer in wrong)
            asked.append(Question(probe, fact.answer.strip(), tuple(wrong), completed))
    return asked, len(facts.keys() - {q.probe.cluster for q in asked})


def _usable(right: str, wrong: Sequence[str], ask: str, most: int) -> list[str]:
    """Wrong answers that differ from the right one and each other, and that the question does not say itself."""
    kept: list[str] = []
    for answer in (text.strip() for text in wrong):
        known = any(same(answer, other) for other in (right, *kept))
        if answer and not known and not contains(ask, answer) and len(kept) < most:
            kept.append(answer)
    return kept


def _sample(questions: Sequence[Question], ctx: EvalContext) -> list[Question]:
    """The same facts for every variant of a run, and of each the first phrasings."""
    from persona_lab.api import spread

    settings = ctx.settings if isinstance(ctx.settings, FactsConfig) else FactsConfig()
    most, phrasings = settings.facts, settings.phrasings
    if ctx.quick:
        most, phrasings = min(most, QUICK_FACTS), min(phrasings, QUICK_PHRASINGS)
    names = list(dict.fromkeys(q.probe.cluster for q in questions))
    kept = set(spread(names, names, most, ctx.seed))
    chosen: list[Question] = []
    for name in (name for name in names if name in kept):
        chosen += [q for q in questions if q.probe.cluster == name][:phrasings]
    return chosen


# --- scores ---------------------------------------------------------------------------------------


def _margins(variant: Variant, asked: Sequence[Question], ctx: EvalContext) -> list[ItemScore]:
    """Of each question: c(right) - max c(wrong); the note names the strongest wrong answer."""
    answers = [(q, answer) for q in asked for answer in (q.right, *q.wrong)]
    neutral = (Message(role="user", content=NEUTRAL),)
    plain = list(dict.fromkeys(answer for _, answer in answers))
    items = [(q.probe.messages, answer) for q, answer in answers] + [(neutral, answer) for answer in plain]
    totals = [result.total for result in ctx.loglikelihood(variant, items)]
    without = dict(zip(plain, totals[len(answers) :], strict=True))
    corrected = iter([total - without[answer] for (_, answer), total in zip(answers, totals, strict=False)])
    scores: list[ItemScore] = []
    for q in asked:
        right = next(corrected)
        best, rival = max((next(corrected), answer) for answer in q.wrong)
        scores.append(
            ItemScore(
                id=q.probe.id,
                cluster=q.probe.cluster,
                value=right - best,
                text=q.probe.messages[-1].content,
                note=f"right: {q.right}; strongest wrong answer: {rival}",
            )
        )
    return scores


def _accuracy(asked: Sequence[Question], margins: Sequence[ItemScore], remarks: str, ctx: EvalContext) -> Metric:
    from persona_lab.api import mean_metric, wilson

    items = [item.model_copy(update={"value": float(item.value > 0)}) for item in margins]
    chance = sum(1 / (len(q.wrong) + 1) for q in asked) / len(asked)
    note = f"{_MEANING['accuracy']}{remarks}"
    metric = mean_metric(Facts.id, "accuracy", items, "share", "higher", reference=chance, note=note, seed=ctx.seed)
    update: dict[str, object] = {"title": TITLES["accuracy"], "compared": False}
    if metric.value in (0.0, 1.0):  # resampling equal items gives no width; as many facts as there are still do
        facts = len({item.cluster for item in items})
        update["low"], update["high"] = wilson(facts if metric.value else 0, facts)
    return metric.model_copy(update=update)


def _margin(margins: Sequence[ItemScore], remarks: str, ctx: EvalContext) -> Metric:
    from persona_lab.api import mean_metric

    note = f"{_MEANING['margin']}{remarks}"
    metric = mean_metric(Facts.id, "margin", margins, "nats", "higher", reference=0.0, note=note, seed=ctx.seed)
    return metric.model_copy(update={"title": TITLES["margin"]})


def _written(variant: Variant, asked: Sequence[Question], ctx: EvalContext) -> Metric:
    """One greedy reply a fact, to its first phrasing, so that the replies are independent."""
    from persona_lab.api import share_metric

    first = list({q.probe.cluster: q for q in reversed(asked)}.values())[::-1]
    replies = ctx.generate(variant, [q.probe.messages for q in first], REPLY)
    items = []
    for q, reply in zip(first, replies, strict=True):
        right, reason = given(reply, q.right, q.wrong)
        ask = q.probe.messages[-1].content
        items.append(
            ItemScore(
                id=q.probe.id,
                cluster=q.probe.cluster,
                value=float(right),
                text=reply,
                note=f"{ask} {reason or f'says {q.right!r}'}",
            )
        )
    metric = share_metric(Facts.id, "written", items, "higher", note=f"{_MEANING['written']}{_few(len(items))}")
    return metric.model_copy(update={"title": TITLES["written"]})


# --- what is said about it ------------------------------------------------------------------------


def _withheld(name: Name, left_out: int, ctx: EvalContext) -> Metric:
    from persona_lab.api import missing_metric

    if left_out:
        reason = f"None of its {left_out} facts can be asked: each needs {MIN_WRONG} wrong answers of the same type"
        advice = "and a question that does not say the answer. Add them in the Facts editor."
    else:
        reason = f"Withheld: {ctx.persona.name} has no facts to ask about."
        advice = f"Write some in the Facts editor, or `persona-lab probes propose {ctx.persona.id}` reads them"
        advice += " out of the card for you to accept."
    metric = missing_metric(Facts.id, name, UNITS[name], "higher", f"{_MEANING[name]} {reason} {advice}")
    return metric.model_copy(update={"title": TITLES[name], "compared": name != "accuracy"})


def _remarks(asked: Sequence[Question], left_out: int) -> str:
    remarks = _few(len({q.probe.cluster for q in asked}))
    completed = len({q.probe.cluster for q in asked if q.completed})
    if completed:
        remarks += f" {completed} had too few wrong answers and took some from other facts of their type."
    if left_out:
        which = "fact is" if left_out == 1 else "facts are"
        remarks += f" {left_out} {which} left out: too few usable wrong answers, or the question says it."
    return remarks


def _few(facts: int) -> str:
    return f" Only {facts} facts: the interval is wide." if facts < ENOUGH_FACTS else ""
