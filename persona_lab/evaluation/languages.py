"""Finds held-out lines in another language than the lines that were trained on: what a score of them says is nothing.

No language is named, so any pair will do: in one language short words come back in every line, and a line that shares
hardly any word with everything in the training data is not of it. Needs some data to know the language from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from persona_lab.types import Dataset, Probe

MIN_KNOWN = 400
"""Words of training data below which its language is not known well enough."""
MIN_WORDS = 5
MIN_SHARED = 0.25
"""No held-out line of the two plays that the tests read shares less than 0.6 of its words with the training lines."""


def in_other_languages(probes: Sequence[Probe], dataset: Dataset | None) -> list[Probe]:
    """The reply probes whose true reply is in another language than the train split's replies."""
    if dataset is None:
        return []
    known: set[str] = set()
    count = 0
    for conversation in dataset.of("train"):
        for message in conversation.messages:
            if message.role == "assistant":
                found = words(message.content)
                known.update(found)
                count += len(found)
    if count < MIN_KNOWN:
        return []
    return [probe for probe in probes if probe.kind == "reply" and _foreign(probe.reply, known)]


def words(text: str) -> list[str]:
    """Lower-case words; writing without spaces gives its single characters."""
    return re.findall(
        r"[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", text.lower()
    )


def _foreign(text: str, known: set[str]) -> bool:
    found = words(text)
    return len(found) >= MIN_WORDS and sum(word in known for word in found) / len(found) < MIN_SHARED
