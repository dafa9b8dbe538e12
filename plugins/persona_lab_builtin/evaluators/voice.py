"""Voice: does what it writes sound like the character?

The variant answers held-out prompts, and a stylometric model of the character (persona_lab/evaluation/style.py) scores
each answer. Formula, for a reply y and the real held-out lines r_1..r_n of the character:

    percentile(y) = (number of r_i with score below y's + half of those equal to it) / n

Unit: share of real lines. Higher is better; real lines average 0.5. A reply that is no speech (a loop, an assistant's
phrase, another's turn, the prompt echoed) counts 0; wrong facts and names do not matter here: see break_character.

The model knows the character against other speakers of the same data, never against generic text: that would measure
the genre, and a wrong character of the same genre would win over the base. So a text that resembles neither lands in
between; what counts is the difference from the base, not the height alone.

Method: Wang and Manning 2012 (https://aclanthology.org/P12-2018/) for the model; cluster bootstrap for the interval.
Withheld where the model cannot tell the speakers apart (AUC < 0.65) or fewer than 20 real held-out lines are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from persona_lab.api import EvalContext, Evaluator, ItemScore, Metric, Probe, Variant
from persona_lab_builtin.evaluators.character_rules import CharacterRules

UNIT = "share of real lines"
_TITLES = {"percentile": "Sounds like the character", "auc": "How well the voice is known (AUC)"}


class VoiceEvaluator(Evaluator):
    """Where the variant's own replies stand among the character's real held-out lines."""

    id = "voice"
    title = "Voice"
    summary = "Whether what it writes sounds like the character, and not like the people around them."
    rank = 14

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics percentile (compared) and auc (of the voice model; says nothing of the variant)."""
        from persona_lab.api import voice_of, written_replies

        ctx.phase(f"Voice of {variant.name}", None)
        voice = voice_of(ctx.dataset, ctx.seed)
        if voice.withheld:
            return [_missing("percentile", UNIT, "higher", f"Withheld: {voice.withheld}."), _auc(voice)]
        chosen, replies = written_replies(ctx, variant, probes)
        rules = CharacterRules.of(ctx.persona, ctx.dataset)
        broken = [
            rules.no_speech(r, p.messages[-1].content, variant.system) for p, r in zip(chosen, replies, strict=True)
        ]
        return [_percentile(voice, _items(voice, chosen, replies, broken), broken), _auc(voice)]


def _items(voice: Any, probes: Sequence[Probe], replies: Sequence[str], broken: Sequence[str]) -> list[ItemScore]:
    """`broken`: why each reply counts 0, or an empty string."""
    return [
        ItemScore(
            id=probe.id,
            cluster=probe.cluster,
            value=0.0 if reason else float(rank),
            text=reply,
            note=reason or f"{rank:.0%} of the real lines sound less like the character",
        )
        for probe, reply, rank, reason in zip(probes, replies, voice.percentiles(replies), broken, strict=True)
    ]


def _percentile(voice: Any, items: Sequence[ItemScore], broken: Sequence[str]) -> Metric:
    from persona_lab.api import mean_metric

    note = (
        "Where its replies to held-out prompts stand among the character's real held-out lines, by style alone. Real "
        f"lines average 0.50, other people's lines of the same data {float(voice.other_percentiles().mean()):.2f}. A "
        f"text that is like neither lands in between, so compare it with the base. {sum(map(bool, broken))} of "
        f"{len(items)} replies were broken and count 0. {voice.note}"
    )
    metric = mean_metric(VoiceEvaluator.id, "percentile", items, UNIT, "higher", reference=0.5, note=note)
    return metric.model_copy(update={"title": _TITLES["percentile"]})


def _auc(voice: Any) -> Metric:
    """Of the model, so the same for every variant: without items, since there is nothing to compare."""
    model = voice.model
    if model is None:
        return _missing("auc", "AUC", "none", f"There is no voice model: {voice.withheld}.")
    note = (
        "How often the voice model puts a line of the character above one of somebody else, neither seen in its fit. "
        "It says how far the percentile can be trusted, nothing about the variant. Chance is 0.5; below 0.65 the "
        "percentile is withheld."
    )
    margin = 1.96 * model.auc_error
    return Metric(
        evaluator=VoiceEvaluator.id,
        metric="auc",
        value=model.auc,
        low=max(0.0, model.auc - margin),
        high=min(1.0, model.auc + margin),
        n=model.lines,
        unit="AUC",
        better="none",
        reference=0.5,
        note=note,
        title=_TITLES["auc"],
    )


def _missing(name: str, unit: str, better: Any, note: str) -> Metric:
    from persona_lab.api import missing_metric

    metric = missing_metric(VoiceEvaluator.id, name, unit, better, note)
    return metric.model_copy(update={"title": _TITLES[name]})
