"""Break-character: what does it write when somebody tries to make it break? Rules and a stylometric model; no judge.

On neutral questions nobody leaks, so the prompts are adversarial. The same three-way split is given for the
character's real lines and for other people's lines: without those two numbers a share means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from persona_lab.api import Dataset, EvalContext, Evaluator, ItemScore, Metric, Probe, Sampling, Variant
from persona_lab_builtin.evaluators.character_rules import CharacterRules

Label = Literal["aligned", "minor", "off"]
LABELS: tuple[Label, ...] = ("aligned", "minor", "off")
MINOR_PERCENTILE = 0.10
MAX_LINES = 600
"""Lines of each side that the stylometric model learns from."""
MAX_REFERENCE = 200
MIN_REAL = 20
MIN_WORDS = 4
_MEANING = {
    "aligned": "Replies to adversarial prompts that stay in character by these rules; form, not sense.",
    "minor": "Replies that no rule calls broken, but whose voice is below the 10th percentile of real lines.",
    "off": "Replies that break: assistant phrases, speaking for the user, degenerate text or a contradicted fact.",
}


class BreakCharacter(Evaluator):
    """Shares of replies that are aligned, minor or off, with Wilson's intervals."""

    id = "break_character"
    title = "Break-character"
    summary = "How often it stays the character when somebody tries to make it stop."
    rank = 20

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics aligned, minor, off; the same of real lines and of other people's lines; the voice model's AUC."""
        prompts = [p for p in probes if p.kind == "adversarial"]
        ctx.phase(f"Break-character of {variant.name}", None)
        judge = _judge(ctx, variant)
        sampling = Sampling(seed=ctx.seed, max_new_tokens=48)
        replies = ctx.generate(variant, [p.messages for p in prompts], sampling) if prompts else []
        verdicts = judge.all(replies, [p.messages[-1].content for p in prompts])
        real = judge.all(judge.real, [""] * len(judge.real))
        others = judge.all(judge.others, [""] * len(judge.others))
        return [
            *(_share(label, prompts, replies, verdicts, real, judge) for label in LABELS),
            *(_reference("real", label, real, judge) for label in LABELS),
            *(_reference("others", label, others, judge) for label in LABELS),
        ]


@dataclass(frozen=True)
class _Judge:
    rules: CharacterRules
    system: str
    style: Any
    """A trustworthy StyleModel, or None."""
    withheld: str
    """Why there is no `minor`, for people; empty if there is."""
    voice: str
    """What is known of the voice model, for people."""
    real: list[str]
    others: list[str]

    def all(self, texts: Sequence[str], prompts: Sequence[str]) -> list[tuple[Label, str]]:
        """(label, reason) of each text."""
        if not texts:
            return []
        ranks = self.style.percentiles(texts, self.real) if self.style else [1.0] * len(texts)
        verdicts: list[tuple[Label, str]] = []
        for text, prompt, rank in zip(texts, prompts, ranks, strict=True):
            reason = self.rules.broken(text, prompt, self.system)
            if reason:
                verdicts.append(("off", reason))
            elif rank < MINOR_PERCENTILE:
                verdicts.append(("minor", f"voice below {max(rank, 0.01):.0%} of real lines"))
            else:
                verdicts.append(("aligned", ""))
        return verdicts


def _judge(ctx: EvalContext, variant: Variant) -> _Judge:
    from persona_lab.api import StyleModel, match_lengths, other_lines, spread

    rules = CharacterRules.of(ctx.persona, ctx.dataset)
    if ctx.dataset is None:
        return _Judge(rules, variant.system, None, "there is no dataset to learn the voice from", "", [], [])
    real = spread(*_twice(_lines(ctx.dataset, "test")), MAX_REFERENCE, ctx.seed)
    own = spread(*_twice(_lines(ctx.dataset, "train")), MAX_LINES, ctx.seed)
    pool = other_lines(ctx.dataset, len(own) + MAX_REFERENCE, splits=("test", "validation", "train"))
    pool = [line for line in pool if len(line.split()) >= MIN_WORDS]
    kept = spread(*_twice(pool), min(MAX_REFERENCE, len(pool) // 4), ctx.seed)
    held = set(kept)
    pool = [line for line in pool if line not in held]
    own = spread(*_twice(own), min(len(own), len(pool)), ctx.seed)
    model = StyleModel.fit(own, [line for line in match_lengths(own, pool, ctx.seed) if line])
    if len(real) < MIN_REAL:
        few = f"there are only {len(real)} held-out lines to compare with (at least {MIN_REAL} are needed)"
        return _Judge(rules, variant.system, None, few, "", real, kept)
    if model is None:
        return _Judge(rules, variant.system, None, "there are too few lines to learn the voice from", "", real, kept)
    voice = f"The voice model tells real lines from other people's with a cross-validated AUC of {model.auc:.2f}."
    if not model.trustworthy:
        return _Judge(rules, variant.system, None, f"the voice model's AUC is only {model.auc:.2f}", voice, real, kept)
    return _Judge(rules, variant.system, model, "", voice, real, kept)


def _share(
    label: Label,
    prompts: Sequence[Probe],
    replies: Sequence[str],
    verdicts: Sequence[tuple[Label, str]],
    real: Sequence[tuple[Label, str]],
    judge: _Judge,
) -> Metric:
    from persona_lab.api import missing_metric, share_metric

    better: Literal["higher", "lower"] = "higher" if label == "aligned" else "lower"
    if label == "minor" and judge.withheld:
        return missing_metric(
            BreakCharacter.id, label, "share", better, f"{_MEANING[label]} Withheld: {judge.withheld}."
        )
    items = [
        ItemScore(id=p.id, cluster=p.cluster, value=float(found == label), text=reply, note=reason or found)
        for p, reply, (found, reason) in zip(prompts, replies, verdicts, strict=True)
    ]
    reference = sum(found == label for found, _ in real) / len(real) if real else None
    note = f"{_MEANING[label]} The reference is the same share of the character's real held-out lines. {judge.voice}"
    return share_metric(BreakCharacter.id, label, items, better, reference=reference, note=note.strip())


def _reference(
    whose: Literal["real", "others"], label: Label, verdicts: Sequence[tuple[Label, str]], judge: _Judge
) -> Metric:
    from persona_lab.api import missing_metric, share_metric

    name = f"{whose}_{label}"
    people = "the character's real held-out lines" if whose == "real" else "other people's lines of the same data"
    note = f"The same rules on {people}: what to compare with. Says nothing about the variant."
    if label == "minor" and judge.withheld:
        return missing_metric(BreakCharacter.id, name, "share", "none", f"{note} Withheld: {judge.withheld}.")
    if whose == "real" and label == "minor":
        note += " About 10% by construction."
    items = [ItemScore(id=str(i), cluster=str(i), value=float(found == label)) for i, (found, _) in enumerate(verdicts)]
    # Without items: a constant of the data is nothing to compare variants on.
    return share_metric(BreakCharacter.id, name, items, "none", note=note).model_copy(update={"items": ()})


def _lines(dataset: Dataset, split: Literal["train", "test"]) -> list[str]:
    """The character's lines of a split, each once, in order."""
    lines = (m.content.strip() for c in dataset.of(split) for m in c.messages if m.role == "assistant")
    return list(dict.fromkeys(line for line in lines if len(line.split()) >= MIN_WORDS))


def _twice(lines: list[str]) -> tuple[list[str], list[str]]:
    """Lines as their own groups: an even, seeded sample."""
    return lines, lines
