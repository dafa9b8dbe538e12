"""A card's example dialogues and lorebook as training rows and separate probes, each saying where it came from.

Example dialogues are the author's own words. Of lorebook entries, answers are the entry's words and questions are made
by templates; every fifth entry is a probe only: its rows are marked `test`, so what is asked of them shows what the
model makes of the prompt and the rest of the book, not what it learnt by heart. It reads cards in V3 shape and writes
none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from persona_lab.datasets.toolkit import clean
from persona_lab.datasets.turns import UnusableRow, make_conversation
from persona_lab.errors import BadInput
from persona_lab.personas.dialogues import example_dialogues
from persona_lab.personas.lorebook_entries import book_of
from persona_lab.personas.macros import substitute
from persona_lab.types import Conversation, Persona

DIALOGUE = "example dialogue of the card"
LORE = "lorebook entry, asked by a template"
MOST_ENTRIES = 2_000
PROBE_EVERY = 5
YOU = "my friend"
"""Who {{user}} is in a row."""
_ASKED = (
    "What can you tell me about {key}?",
    "Who or what is {key}?",
    "Tell me about {key}.",
)


@dataclass(frozen=True)
class CardRows:
    """Rows of the card: those with the split `test` are probes. `notes` say what was made and left out."""

    conversations: tuple[Conversation, ...]
    notes: tuple[str, ...]


def card_rows(persona: Persona) -> CardRows:
    """The rows that a card's example dialogues and lorebook give.

    Raises:
        BadInput: it has neither.
    """
    dialogues = list(_dialogues(persona))
    lore = list(_lore(persona))
    if not dialogues and not lore:
        raise BadInput(
            f"The card of {persona.name} has neither example dialogues nor a lorebook.",
            "Write some in the Personas tab, or add conversations from a file.",
        )
    probes = sum(row.split == "test" for row in lore)
    notes = [f"{len(dialogues)} rows are example dialogues of the card."] if dialogues else []
    if lore:
        notes.append(
            f"{len(lore)} rows are lorebook entries behind made questions; {probes} of them are kept as probes "
            "and never trained on."
        )
    return CardRows((*dialogues, *lore), tuple(notes))


def _dialogues(persona: Persona) -> Iterator[Conversation]:
    for dialogue in example_dialogues(persona, YOU):
        if all(message.role != "user" for message in dialogue.messages):
            continue
        try:
            row = make_conversation([(m.role, m.content) for m in dialogue.messages], f"card:{dialogue.id}")
        except UnusableRow:
            continue  # the other side only
        yield row.model_copy(update={"made": DIALOGUE, "split": "train"})


def _lore(persona: Persona) -> Iterator[Conversation]:
    for entry in book_of(persona.data).entries[:MOST_ENTRIES]:
        key = next((key.strip()[:80] for key in entry.keys if key.strip() and not key.startswith("/")), "")
        content = clean(substitute(entry.content, persona, YOU))
        if not entry.enabled or entry.regex or not key or len(content.split()) < 4:
            continue
        digest = int(hashlib.sha256(content.encode("utf-8", "replace")).hexdigest(), 16)
        asked = _ASKED[digest % len(_ASKED)].format(key=key)
        row = make_conversation([("user", asked), ("assistant", content)], f"card:lore-{entry.number + 1}")
        split = "test" if digest // len(_ASKED) % PROBE_EVERY == 0 else "train"
        yield row.model_copy(update={"made": LORE, "split": split})
