"""Drift: does the character fade over a long chat? Teacher-forced; writes no text.

The gain of the true held-out reply, g = s_variant - s_base in nats a byte, is measured after k = 0, 4, 8 and 16 turns
of neutral small talk put before the probe's own context; the base reads the same turns. G(k) is the mean over probes.

    fade = G(0) - G(16)         nats a byte, lower is better, 0: nothing fades
    slope = mean over probes of the least-squares slope of g over k, nats a byte and turn, higher is better

The base is 0 by definition. Turns are exchanges, a question and its answer. Turns that the base's context cannot hold
would be cut without a word and measure nothing, so probes that might not fit are left out: tokens are guessed on the
high side (3 bytes a token, 1 where it is not ASCII, 8 a message) and held against `context_tokens`.

Source of the question: Li et al. 2024 (persona drift within a few turns, arXiv 2402.10962); the measure is ours. What
it cannot say: how a chat drifts that the model writes itself, or what other small talk would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from persona_lab.api import EvalContext, Evaluator, Frozen, ItemScore, Message, Metric, Probe, Variant
from persona_lab_builtin.evaluators.small_talk import small_talk

TURNS = (0, 4, 8, 16)
PROBES, QUICK_PROBES = 24, 8
TOKENS_A_MESSAGE = 8
_TITLES = {"fade": "Fades over 16 turns", "slope": "Change of gain a turn"}


class DriftConfig(Frozen):
    """How long a chat may be."""

    context_tokens: int = Field(
        2048,
        ge=256,
        le=1_048_576,
        description="Tokens that the base model can read; what might not fit is left out. Raise it for long cards.",
    )


class Drift(Evaluator):
    """How much of the gain over the base is left after small talk."""

    id = "drift"
    title = "Drift"
    summary = "Whether the character fades over a long chat."
    rank = 60
    Config = DriftConfig

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics fade (compared), slope, and g_at_0, g_at_4, g_at_8, g_at_16."""
        from persona_lab.api import spread

        ctx.phase(f"Drift of {variant.name}", None)
        settings = ctx.settings if isinstance(ctx.settings, DriftConfig) else DriftConfig()
        replies = [p for p in probes if p.kind == "reply"]
        chosen = spread(replies, [p.cluster for p in replies], QUICK_PROBES if ctx.quick else PROBES, ctx.seed)
        asked = [p for p in chosen if _longest(variant, p, ctx.seed) <= settings.context_tokens]
        remark = _left_out(len(chosen) - len(asked), settings.context_tokens)
        gains = _gains(variant, asked, ctx)
        metrics = [*_summaries(asked, gains), *(_level(turns, asked, gains) for turns in TURNS)]
        if variant.kind == "base":
            # it has no gain that could fade: "the base fades less" would be no finding
            metrics = [metric.model_copy(update={"items": ()}) for metric in metrics]
        return [m.model_copy(update={"note": f"{m.note} {remark}".strip()}) for m in metrics]


def _longest(variant: Variant, probe: Probe, seed: int) -> int:
    """Tokens of the longest chat with this probe, rather too many than too few."""
    examples = [message for example in variant.examples for message in example.messages]
    system = Message(role="system", content=variant.system)
    reply = Message(role="assistant", content=probe.reply)
    return variant.example_tokens + sum(
        _tokens(m) for m in (system, *examples, *small_talk(TURNS[-1], seed), *probe.messages, reply)
    )


def _tokens(message: Message) -> int:
    plain = sum(character.isascii() for character in message.content)
    return TOKENS_A_MESSAGE + plain // 3 + len(message.content.encode()) - plain


def _left_out(count: int, context_tokens: int) -> str:
    if not count:
        return ""
    what = "probe is" if count == 1 else "probes are"
    return (
        f"{count} {what} left out: with {TURNS[-1]} turns more they might not fit into {context_tokens} tokens; if the "
        f"base model can read more, set {Drift.id}.context_tokens."
    )


def _gains(variant: Variant, asked: Sequence[Probe], ctx: EvalContext) -> Mapping[tuple[str, int], float]:
    """g of each (probe id, turns), nats a byte."""
    places = [(probe.id, turns) for probe in asked for turns in TURNS]
    if variant.kind == "base":
        return dict.fromkeys(places, 0.0)
    items = [((*small_talk(turns, ctx.seed), *p.messages), p.reply) for p in asked for turns in TURNS]
    tuned, base = ctx.loglikelihood(variant, items), ctx.loglikelihood(None, items)
    return {place: a.per_byte - b.per_byte for place, a, b in zip(places, tuned, base, strict=True)}


def _summaries(asked: Sequence[Probe], gains: Mapping[tuple[str, int], float]) -> list[Metric]:
    from persona_lab.api import mean_metric

    fades, slopes = [], []
    for probe in asked:
        at = [gains[probe.id, turns] for turns in TURNS]
        place: dict[str, Any] = {"id": probe.id, "cluster": probe.cluster}
        note = " ".join(f"after {turns}: {value:+.3f}." for turns, value in zip(TURNS, at, strict=True))
        fades.append(ItemScore(value=at[0] - at[-1], note=note, **place))
        slopes.append(ItemScore(value=_slope(at), **place))
    fade = mean_metric(
        Drift.id,
        "fade",
        fades,
        "nats/byte",
        "lower",
        reference=0.0,
        note="Gain over the base at once minus the gain after 16 turns of small talk; 0: nothing fades.",
    )
    slope = mean_metric(
        Drift.id,
        "slope",
        slopes,
        "nats/byte/turn",
        "higher",
        reference=0.0,
        note="Change of the gain with each turn of small talk, by least squares.",
    )
    return [
        fade.model_copy(update={"title": _TITLES["fade"]}),
        slope.model_copy(update={"title": _TITLES["slope"], "compared": False}),
    ]


def _slope(values: Sequence[float]) -> float:
    mean_turn, mean_value = sum(TURNS) / len(TURNS), sum(values) / len(values)
    over = sum((turn - mean_turn) * (value - mean_value) for turn, value in zip(TURNS, values, strict=True))
    return over / sum((turn - mean_turn) ** 2 for turn in TURNS)


def _level(turns: int, asked: Sequence[Probe], gains: Mapping[tuple[str, int], float]) -> Metric:
    from persona_lab.api import mean_metric

    items = [ItemScore(id=p.id, cluster=p.cluster, value=gains[p.id, turns]) for p in asked]
    when = "at once" if turns == 0 else f"after {turns} turns of small talk"
    note = f"Gain over the base on true replies {when}."
    metric = mean_metric(Drift.id, f"g_at_{turns}", items, "nats/byte", "higher", reference=0.0, note=note)
    return metric.model_copy(update={"title": f"Gain {when}", "compared": False})
