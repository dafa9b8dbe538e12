"""What a character would not say: validation conversations whose last reply is somebody else's line. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.evaluation.probes import match_lengths, normalised, other_lines, reply_probes
from persona_lab.types import Conversation, Dataset, Message

MIN_WORDS = 4
"""Shorter replies ("Yes.") are anybody's."""


def foil_pairs(dataset: Dataset, conversations: Sequence[Conversation]) -> list[tuple[Conversation, Conversation]]:
    """(conversation, the same with another speaker's line of that length as its last reply); none without lines.

    Lines that the evaluation will use as other people's are left out, so that weights are not chosen by what they are
    judged by afterwards.
    """
    judged = {normalised(probe.other) for probe in reply_probes(dataset)}
    lines = [line for line in other_lines(dataset, at_least=0) if normalised(line) not in judged]
    spoken = [c for c in conversations if c.messages[-1].role == "assistant"]
    telling = [c for c in spoken if len(c.messages[-1].content.split()) >= MIN_WORDS]
    found = match_lengths([c.messages[-1].content for c in telling], lines)
    return [(c, _with_reply(c, line)) for c, line in zip(telling, found, strict=True) if line]


def _with_reply(conversation: Conversation, line: str) -> Conversation:
    turns = (*conversation.messages[:-1], Message(role="assistant", content=line))
    return conversation.model_copy(update={"messages": turns})
