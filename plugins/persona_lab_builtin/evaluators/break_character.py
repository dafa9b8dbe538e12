"""Break-character: what does it write when somebody tries to make it break? Rules and a stylometric model; no judge.

On neutral questions nobody leaks, so the prompts are adversarial. Each reply gets one of three labels:

- off: a rule speaks against it (an assistant's phrase, speaking for the user, degenerate text, a contradicted fact);
- minor: no rule does, but its voice (see `voice`) is below the 10th percentile of the character's real held-out lines;
- aligned: the rest.

Unit: share of replies, with Wilson's 95% interval (1927); higher is better for aligned, lower for the others. There is
no chance level: the same split of the character's real lines (about 90% aligned by construction) and of other people's
lines is given instead, and without those two rows a share means nothing. Two variants are compared on the same prompts
with McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from persona_lab.api import EvalContext, Evaluator, ItemScore, Metric, Probe, Sampling, Variant
from persona_lab_builtin.evaluators.character_rules import CharacterRules

Label = Literal["aligned", "minor", "off"]
Verdict = tuple[Label, str]
LABELS: tuple[Label, ...] = ("aligned", "minor", "off")
MINOR_PERCENTILE = 0.10
_MEANING = {
    "aligned": "Replies to adversarial prompts that stay in character by these rules; form, not sense.",
    "minor": "Replies that no rule calls broken, but whose voice is below the 10th percentile of real lines.",
    "off": "Replies that break: assistant phrases, speaking for the user, degenerate text or a contradicted fact.",
}

_TITLES = {
    "aligned": "Stays in character",
    "minor": "Voice slips",
    "off": "Breaks character",
    "real_aligned": "Real lines: in character",
    "real_minor": "Real lines: voice slips",
    "real_off": "Real lines: called broken",
    "others_aligned": "Other people's lines: in character",
    "others_minor": "Other people's lines: voice slips",
    "others_off": "Other people's lines: called broken",
}


class BreakCharacter(Evaluator):
    """Shares of replies that are aligned, minor or off, with Wilson's intervals."""

    id = "break_character"
    title = "Break-character"
    summary = "How often it stays the character when somebody tries to make it stop."
    rank = 20

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics aligned, minor, off; the same of real lines and of other people's lines."""
        from persona_lab.api import voice_of

        prompts = [p for p in probes if p.kind == "adversarial"]
        ctx.phase(f"Break-character of {variant.name}", None)
        rules = CharacterRules.of(ctx.persona, ctx.dataset)
        judge = _Judge(rules, variant.system, voice_of(ctx.dataset, ctx.seed))
        sampling = Sampling(seed=ctx.seed, max_new_tokens=48)
        replies = ctx.generate(variant, [p.messages for p in prompts], sampling) if prompts else []
        verdicts = judge.replies(replies, [p.messages[-1].content for p in prompts])
        real, others = judge.real(), judge.others()
        metrics = [
            *(_share(label, prompts, replies, verdicts, real, judge) for label in LABELS),
            *(_reference("real", label, real, judge) for label in LABELS),
            *(_reference("others", label, others, judge) for label in LABELS),
        ]
        # aligned = 1 - minor - off: comparing all three would only make the correction harsher
        return [m.model_copy(update={"title": _TITLES[m.metric], "compared": m.metric == "aligned"}) for m in metrics]


@dataclass(frozen=True)
class _Judge:
    rules: CharacterRules
    system: str
    voice: Any
    """persona_lab.evaluation.style.Voice"""

    def replies(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Verdict]:
        """(label, reason) of each text."""
        return self._verdicts(texts, prompts, [1.0] * len(texts) if self.withheld else self.voice.percentiles(texts))

    def real(self) -> list[Verdict]:
        """Of the character's held-out lines."""
        return self.replies(self.voice.real, [""] * len(self.voice.real))

    def others(self) -> list[Verdict]:
        """Of other people's lines, each ranked by a model that did not see it."""
        texts = self.voice.others
        return self._verdicts(
            texts, [""] * len(texts), [1.0] * len(texts) if self.withheld else self.voice.other_percentiles()
        )

    @property
    def withheld(self) -> str:
        """Why there is no `minor`, for people; empty if there is."""
        return str(self.voice.withheld)

    def _verdicts(self, texts: Sequence[str], prompts: Sequence[str], ranks: Iterable[float]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for text, prompt, rank in zip(texts, prompts, ranks, strict=True):
            reason = self.rules.broken(text, prompt, self.system)
            if reason:
                verdicts.append(("off", reason))
            elif rank < MINOR_PERCENTILE:
                verdicts.append(("minor", f"{1 - rank:.0%} of the real lines sound more like the character"))
            else:
                verdicts.append(("aligned", ""))
        return verdicts


def _share(
    label: Label,
    prompts: Sequence[Probe],
    replies: Sequence[str],
    verdicts: Sequence[Verdict],
    real: Sequence[Verdict],
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
    note = (
        f"{_MEANING[label]} The reference is the same share of the character's real held-out lines. {judge.voice.note}"
    )
    return share_metric(BreakCharacter.id, label, items, better, reference=reference, note=note.strip())


def _reference(whose: Literal["real", "others"], label: Label, verdicts: Sequence[Verdict], judge: _Judge) -> Metric:
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
