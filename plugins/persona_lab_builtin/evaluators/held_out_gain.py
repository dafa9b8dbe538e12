"""Held-out gain: did training teach this voice, or only its genre? Teacher-forced; writes no text.

Formula: s(y|x) = (1 / bytes(y)) * sum_t log p(y_t | x, y_<t); g = s_variant - s_base on the same prompt, nats a byte.
g_true: mean g of the character's held-out lines; g_other: of other people's lines of the same data, similar in length;
specificity = g_true - g_other, higher is better, 0 for the base. A wrong character lowers bits per byte too, because it
learns the genre: only specificity tells right from wrong. bpb = -s / ln 2 (bits a byte, lower is better);
generalisation_gap = bpb of held-out lines - bpb of training lines (lower is better; large: learnt by heart).
Source: bits per byte as in Gao et al. 2020 (The Pile, arXiv 2101.00027); the anchoring on the base is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from persona_lab.api import EvalContext, Evaluator, ItemScore, Message, Metric, Probe, Variant

Item = tuple[Sequence[Message], str]
MIN_WORDS = 4
TITLES = {
    "g_true": "Gain on its own lines",
    "g_other": "Gain on other people's lines",
    "specificity": "Specificity",
    "bpb_base": "Bits per byte, base",
    "bpb_variant": "Bits per byte",
    "generalisation_gap": "Learnt by heart",
}


class HeldOutGain(Evaluator):
    """g(y|x) = s_variant - s_base on the same prompt; s is the mean log-likelihood a byte, in nats."""

    id = "held_out_gain"
    title = "Held-out gain"
    summary = "How much better it predicts lines of this character that it never saw, compared with other people's."
    rank = 10

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics g_true, g_other, specificity (nats a byte), bpb_base, bpb_variant, generalisation_gap (bits)."""
        replies = [p for p in probes if p.kind == "reply"]
        paired = [p for p in replies if p.other]
        true: list[Item] = [(p.messages, p.reply) for p in replies]
        other: list[Item] = [(p.messages, p.other) for p in paired]
        ctx.phase(f"Held-out gain of {variant.name}", None)
        tuned = dict(zip((p.id for p in replies), _per_byte(ctx, variant, true), strict=True))
        base = dict(zip((p.id for p in replies), _per_byte(ctx, None, true), strict=True))
        gain = {p.id: tuned[p.id] - base[p.id] for p in replies}
        if variant.kind == "base":
            gain_other = {p.id: 0.0 for p in paired}
        else:
            pairs = zip(paired, _per_byte(ctx, variant, other), _per_byte(ctx, None, other), strict=True)
            gain_other = {p.id: after - before for p, after, before in pairs}
        specific = {p.id: gain[p.id] - gain_other[p.id] for p in paired}
        metrics = [
            *_gain_metrics(variant, replies, paired, gain, gain_other, specific),
            _bits(
                "bpb_base",
                replies,
                base,
                "none",
                "Bits per byte of held-out lines under the base with the same prompt.",
            ),
            _bits(
                "bpb_variant",
                replies,
                tuned,
                "lower",
                "Bits per byte of held-out lines. Also lower for a wrong character of the same genre: see specificity.",
                reference=_mean_bits(base),
            ),
            self._gap(variant, replies, tuned, ctx),
        ]
        return [metric.model_copy(update={"title": TITLES[metric.metric]}) for metric in metrics]

    def _gap(self, variant: Variant, replies: Sequence[Probe], tuned: dict[str, float], ctx: EvalContext) -> Metric:
        from persona_lab.api import difference_bootstrap, missing_metric, spread

        note = "Bits per byte of held-out lines minus that of as many training lines: how much was learnt by heart."
        turns = _train_turns(ctx)
        chosen = spread(turns, [cluster for cluster, _ in turns], len(replies), ctx.seed)
        if not chosen or not replies:
            return missing_metric(self.id, "generalisation_gap", "bits/byte", "lower", f"{note} No lines to compare.")
        seen = [-s / math.log(2) for s in _per_byte(ctx, variant, [item for _, item in chosen])]
        unseen = [-tuned[p.id] / math.log(2) for p in replies]
        gap = difference_bootstrap(
            (unseen, [p.cluster for p in replies]), (seen, [cluster for cluster, _ in chosen]), seed=ctx.seed
        )
        return Metric(
            evaluator=self.id,
            metric="generalisation_gap",
            value=gap.value,
            low=gap.low,
            high=gap.high,
            n=gap.n,
            unit="bits/byte",
            better="lower",
            reference=0.0,
            note=note,
        )


def _gain_metrics(
    variant: Variant,
    replies: Sequence[Probe],
    paired: Sequence[Probe],
    gain: dict[str, float],
    gain_other: dict[str, float],
    specific: dict[str, float],
) -> list[Metric]:
    from persona_lab.api import mean_metric

    by_definition = " Zero by definition: this is the base." if variant.kind == "base" else ""
    rows: list[tuple[str, Sequence[Probe], dict[str, float], Literal["higher", "none"], str]] = [
        ("g_true", replies, gain, "higher", "Gain over the base on this character's held-out lines."),
        (
            "g_other",
            paired,
            gain_other,
            "none",
            "Gain over the base on lines of other people, of similar length: genre.",
        ),
        (
            "specificity",
            paired,
            specific,
            "higher",
            "Gain on its own lines minus gain on other people's. Above 0: it learnt this voice, not just the genre.",
        ),
    ]
    metrics = []
    for name, probes, values, better, meaning in rows:
        items = [ItemScore(id=p.id, cluster=p.cluster, value=values[p.id]) for p in probes]
        bits = f" {sum(i.value for i in items) / len(items) / math.log(2):+.3f} bits/byte." if items else ""
        note = f"{meaning}{bits}{by_definition}"
        metrics.append(mean_metric(HeldOutGain.id, name, items, "nats/byte", better, reference=0.0, note=note))
    return metrics


def _bits(
    name: str,
    probes: Sequence[Probe],
    scores: dict[str, float],
    better: Literal["lower", "none"],
    note: str,
    reference: float | None = None,
) -> Metric:
    from persona_lab.api import mean_metric

    items = [ItemScore(id=p.id, cluster=p.cluster, value=-scores[p.id] / math.log(2)) for p in probes]
    return mean_metric(HeldOutGain.id, name, items, "bits/byte", better, reference=reference, note=note)


def _mean_bits(scores: dict[str, float]) -> float | None:
    return -sum(scores.values()) / len(scores) / math.log(2) if scores else None


def _per_byte(ctx: EvalContext, variant: Variant | None, items: Sequence[Item]) -> list[float]:
    return [result.per_byte for result in ctx.loglikelihood(variant, items)]


def _train_turns(ctx: EvalContext) -> list[tuple[str, Item]]:
    """(cluster, item) of every reply of the train split that is as long as a probe's must be."""
    if ctx.dataset is None:
        return []
    turns: list[tuple[str, Item]] = []
    for conversation in ctx.dataset.of("train"):
        for index, message in enumerate(conversation.messages):
            before = tuple(m for m in conversation.messages[:index] if m.role != "system")
            if message.role == "assistant" and before and len(message.content.split()) >= MIN_WORDS:
                turns.append((conversation.group or conversation.id, (before, message.content)))
    return turns
