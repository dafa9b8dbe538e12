"""Which replies are written to be judged: one choice of prompts and sampling, so that evaluators share them.

Replies take time and are kept by what went in; evaluators that ask here ask for the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.api import EvalContext
from persona_lab.evaluation.probes import spread
from persona_lab.types import Message, Probe, Sampling, Variant

REPLIES = 80
QUICK_REPLIES = 16
MAX_NEW_TOKENS = 60


def written_replies(
    ctx: EvalContext, variant: Variant | None, probes: Sequence[Probe], at_most: int = REPLIES
) -> tuple[list[Probe], list[str]]:
    """What the variant (None: its base) writes where the character's true line is known and was held out.

    At most 80 reply probes (quick: 16), spread over their clusters; the same ones for every variant and evaluator of a
    seed. All are written in one call.

    Args:
        at_most: fewer: the first of those.
    """
    known = [probe for probe in probes if probe.kind == "reply"]
    count = min(at_most, QUICK_REPLIES if ctx.quick else REPLIES)
    chosen = spread(known, [p.cluster for p in known], count, ctx.seed)
    return chosen, replies_to(ctx, variant, [probe.messages for probe in chosen])


def replies_to(ctx: EvalContext, variant: Variant | None, prompts: Sequence[Sequence[Message]]) -> list[str]:
    """What the variant (None: its base) writes to prompts of one's own, drawn as `written_replies` draws."""
    if not prompts:
        return []
    return ctx.generate(variant, prompts, Sampling(seed=ctx.seed, max_new_tokens=MAX_NEW_TOKENS))
