"""Traits: where do its replies stand along each trait, next to the real lines and the card's, and what moved them?

The base reads texts: p(y) is the mean hidden state of reply y projected on the trait's vector, in lengths of the vector
(persona_lab/traits/reading.py). Everything is told relative to what the base writes to the same prompt x, under the
variant's own system prompt, so that the base is at 0 by definition and what is read is what training, a prompt or a
slider moved (trait drift):

    <trait>       mean over prompts of p(variant's reply to x) - p(base's reply to x)
    <trait>.real  the same for the true held-out reply: where the character really stands
    <trait>.card  the same for the example dialogues of the card: the card's wish

Unit: lengths of the trait's vector; the trait's own example lines of one side lie 1 from those of the other. Above 0 is
towards, below 0 away; neither is better. Intervals: cluster bootstrap over conversations. What a card's description
wishes would take a judge to say; its example dialogues are lines that its author wrote, so they are read like any
other. Without them the wish is withheld. No vector is computed: traits that nobody computed are not shown.

A trait whose vector does not tell its own example lines apart, each by a vector that it was left out of (AUC < 0.65),
is withheld: it cannot be read on this base.

Method: monitoring by persona vectors (Chen et al. 2025, https://arxiv.org/abs/2507.21509). What it cannot say: whether
a person would call the reply grumpy. The projection also moves with the subject and the length of a text; lines and
replies to the same prompts share the subject only in part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from persona_lab.api import EvalContext, Evaluator, Frozen, ItemScore, Message, Metric, Probe, TraitState, Variant

UNIT = "vector lengths"
CARD_LINES = 16
MIN_AUC = 0.65
Places = Sequence[Mapping[str, float | None]]


class TraitsConfig(Frozen):
    """How much is read."""

    replies: int = Field(
        24, ge=4, le=80, description="Replies that are read; more take longer and make intervals narrower."
    )


@dataclass(frozen=True)
class _Line:
    """Something said, or to be said, in answer to `messages`."""

    id: str
    cluster: str
    messages: tuple[Message, ...]
    text: str


class Traits(Evaluator):
    """Positions along the traits that were computed for the base."""

    id = "traits"
    title = "Traits"
    summary = "Where its replies stand along the traits you computed, next to the real lines and the card's."
    rank = 65
    Config = TraitsConfig

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics <trait>, <trait>.real and <trait>.card of each computed trait; none of them is compared."""
        from persona_lab.api import replies_to, written_replies

        ctx.phase(f"Traits of {variant.name}", None)
        states = ctx.computed_traits()
        if not states:
            return [_nothing(f"No trait was computed for {variant.compared_with} yet. {_how(variant)}")]
        settings = ctx.settings if isinstance(ctx.settings, TraitsConfig) else TraitsConfig()
        asked, by_base = written_replies(ctx, None, probes, settings.replies)
        if not asked:
            return [_nothing("There are no held-out lines whose prompts could be asked. Import a dataset.")]
        written = by_base if variant.kind == "base" else written_replies(ctx, variant, probes, settings.replies)[1]
        card = _card_lines(ctx)
        card_by_base = replies_to(ctx, None, [line.messages for line in card])
        real = [_Line(probe.id, probe.cluster, tuple(probe.messages), probe.reply) for probe in asked]
        texts = [*by_base, *written, *(line.text for line in real), *card_by_base, *(line.text for line in card)]
        prompts = [line.messages for line in (*real, *real, *real, *card, *card)]
        places = ctx.along_traits([state.trait.id for state in states], list(zip(prompts, texts, strict=True)))
        parts = _cut(places, [len(real)] * 3 + [len(card)] * 2)
        own = [_Line(line.id, line.cluster, line.messages, text) for line, text in zip(real, written, strict=True)]
        metrics: list[Metric] = []
        for state in states:
            moved, true = _items(state, own, parts[1], parts[0]), _items(state, real, parts[2], parts[0])
            metrics += _metrics(variant, state, moved, true, _items(state, card, parts[4], parts[3]))
        return metrics


def _how(variant: Variant) -> str:
    command = f"persona-lab traits compute grumpy archaic --base {variant.compared_with}"
    return f"Compute some: {command}, or Traits under a pane of the Chat tab."


def _card_lines(ctx: EvalContext) -> list[_Line]:
    """The character's lines in the card's example dialogues that answer something."""
    from persona_lab.api import example_dialogues

    lines = [
        _Line(f"{dialogue.id}:{turn}", dialogue.group or dialogue.id, dialogue.messages[:turn], message.content)
        for dialogue in example_dialogues(ctx.persona)
        for turn, message in enumerate(dialogue.messages)
        if message.role == "assistant" and turn and dialogue.messages[turn - 1].role == "user"
    ]
    return lines[:CARD_LINES]


def _cut(places: Places, sizes: Sequence[int]) -> list[Places]:
    parts, start = [], 0
    for size in sizes:
        parts.append(places[start : start + size])
        start += size
    return parts


def _items(state: TraitState, lines: Sequence[_Line], places: Places, base: Places) -> list[ItemScore]:
    """Each line's place less that of the base's reply to the same prompt; where one of them is blank, nothing."""
    name = state.trait.id
    return [
        ItemScore(id=line.id, cluster=line.cluster, value=place - origin, text=line.text)
        for line, there, here in zip(lines, places, base, strict=True)
        if (place := there[name]) is not None and (origin := here[name]) is not None
    ]


def _metrics(
    variant: Variant, state: TraitState, own: Sequence[ItemScore], real: Sequence[ItemScore], card: Sequence[ItemScore]
) -> list[Metric]:
    from persona_lab.api import mean_metric, missing_metric

    trait = state.trait
    title = f"{trait.title} ({trait.away_label} to {trait.towards_label})"
    titles = {
        trait.id: title,
        f"{trait.id}.real": f"{title}: its real lines",
        f"{trait.id}.card": f"{title}: the card's",
    }
    auc = state.calibration.tells_apart if state.calibration is not None else None
    if auc is not None and auc < MIN_AUC:
        why = f"Withheld: the vector does not tell the trait's own example lines apart on this base (AUC {auc:.2f})."
        found = [missing_metric(Traits.id, name, UNIT, "none", why) for name in titles]
    else:
        scale = _scale(state, auc)
        wish_note = f"{scale} The lines of the card's example dialogues: the card's wish." + (
            "" if card else " The card has none with a question before it, so what it wishes is not known."
        )
        true = mean_metric(Traits.id, f"{trait.id}.real", real, UNIT, "none", 0.0, f"{scale} Its real lines.")
        wish = mean_metric(Traits.id, f"{trait.id}.card", card, UNIT, "none", 0.0, wish_note)
        note = f"{scale} {_yardsticks(true, wish)} {_verdict(variant, state, own, real)}"
        position = mean_metric(Traits.id, trait.id, own, UNIT, "none", true.value, note)
        if variant.kind == "base":
            position = position.model_copy(update={"items": ()})
        found = [position, true, wish]
    return [metric.model_copy(update={"title": titles[metric.metric], "compared": False}) for metric in found]


def _scale(state: TraitState, auc: float | None) -> str:
    """What the numbers of a trait mean."""
    trait = state.trait
    said = (
        f"Along {trait.title}, as the base reads texts: above 0 towards {trait.towards_label}, below 0 towards "
        f"{trait.away_label}, and 1 is as far as the trait's example lines of both kinds lie apart. 0 is what the base "
        "writes to the same prompts."
    )
    if auc is not None:
        said += f" Its vector tells its own example lines apart with AUC {auc:.2f}, each left out in turn."
    if state.status == "does not steer":
        said += " The trait does not steer this base, so its direction may mean little."
    return said


def _yardsticks(true: Metric, wish: Metric) -> str:
    said = f"Its real lines lie at {_told(true.value, true.low, true.high)}"
    if wish.value is None:
        return f"{said}; what the card wishes is not known."
    return f"{said}, the card's own lines at {_told(wish.value, wish.low, wish.high)}."


def _verdict(variant: Variant, state: TraitState, own: Sequence[ItemScore], real: Sequence[ItemScore]) -> str:
    """What moved, and whether it came to where the real lines are; empty where nothing could be read."""
    from persona_lab.api import cluster_bootstrap

    if variant.kind == "base":
        return "Zero by definition: this is the base."
    if not own:
        return "Its replies are blank."
    moved = cluster_bootstrap([i.value for i in own], [i.cluster for i in own])
    if moved.low is None or moved.high is None:
        return "Whether it moved cannot be said of one conversation."
    if moved.low <= 0 <= moved.high:
        said = "It cannot be told from the base."
    else:
        label = state.trait.towards_label if moved.value > 0 else state.trait.away_label
        said = f"It was moved towards {label}."
    true = {item.id: item.value for item in real}
    both = [item for item in own if item.id in true]
    apart = cluster_bootstrap([i.value - true[i.id] for i in both], [i.cluster for i in both]) if both else None
    if apart is None or apart.low is None or apart.high is None:
        return said
    if apart.low <= 0 <= apart.high:
        return f"{said} It cannot be told from its real lines."
    return f"{said} From its real lines it is {_told(apart.value, apart.low, apart.high)} apart."


def _told(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "an unknown place"
    return f"{value:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if low is not None and high is not None else "")


def _nothing(why: str) -> Metric:
    from persona_lab.api import missing_metric

    metric = missing_metric(Traits.id, "positions", UNIT, "none", why)
    return metric.model_copy(update={"title": "Positions along traits", "compared": False})
