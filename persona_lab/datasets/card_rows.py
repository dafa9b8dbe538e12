"""A card's example dialogues and lorebook as training rows and separate probes, each saying where it came from.

Example dialogues are the author's own words. Of lorebook entries, answers are the entry's words and questions are made
by templates; every fifth entry is a probe only: its rows are marked `test`, so what is asked of them shows what the
model makes of the prompt and the rest of the book, not what it learnt by heart. It reads cards in V3 shape and writes
none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from persona_lab.datasets.toolkit import clean
from persona_lab.datasets.turns import UnusableRow, make_conversation
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Persona, Role

DIALOGUE = "example dialogue of the card"
LORE = "lorebook entry, asked by a template"
MOST_ENTRIES = 2_000
PROBE_EVERY = 5
_START = re.compile(r"<START>", re.I)
_LINE = re.compile(r"^\s*(\{\{(?:user|char)\}\}|<(?:user|bot)>)\s*:\s*", re.I | re.M)
_MACROS = re.compile(r"\{\{(char|user)\}\}|<(user|bot)>", re.I)
_DECORATOR = re.compile(r"^@@\w.*$", re.M)
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
    blocks = _START.split(persona.field("mes_example")[:200_000])
    for number, block in enumerate(blocks, 1):
        marks = list(_LINE.finditer(block))
        ends = [mark.start() for mark in marks[1:]] + [len(block)]
        turns: list[tuple[Role, str]] = []
        for mark, end in zip(marks, ends, strict=False):  # what stands before the first mark is nobody's
            role: Role = "assistant" if mark[1].strip("{}<>").lower() in ("char", "bot") else "user"
            turns.append((role, _filled(block[mark.end() : end], persona)))
        if not any(role == "user" for role, _ in turns):
            continue
        try:
            row = make_conversation(turns, f"card:example-{number}")
        except UnusableRow:
            continue  # the other side only
        yield row.model_copy(update={"made": DIALOGUE, "split": "train"})


def _lore(persona: Persona) -> Iterator[Conversation]:
    book = persona.data.get("character_book")
    entries = book.get("entries") if isinstance(book, Mapping) else None
    values = entries.values() if isinstance(entries, Mapping) else entries if isinstance(entries, list) else ()
    for number, entry in enumerate(list(values)[:MOST_ENTRIES], 1):
        key, content = _key(entry), _content(entry, persona)
        if not key or len(content.split()) < 4:
            continue
        digest = int(hashlib.sha256(content.encode("utf-8", "replace")).hexdigest(), 16)
        asked = _ASKED[digest % len(_ASKED)].format(key=key)
        row = make_conversation([("user", asked), ("assistant", content)], f"card:lore-{number}")
        split = "test" if digest // len(_ASKED) % PROBE_EVERY == 0 else "train"
        yield row.model_copy(update={"made": LORE, "split": split})


def _key(entry: Any) -> str:
    if not isinstance(entry, Mapping) or entry.get("enabled") is False or entry.get("disable") is True:
        return ""
    keys = entry.get("keys", entry.get("key"))
    names = keys if isinstance(keys, list) else [keys]
    plain = [name.strip() for name in (entry.get("name"), *names) if isinstance(name, str)]
    return next((name[:80] for name in plain if name and not name.startswith("/")), "")


def _content(entry: Mapping[str, Any], persona: Persona) -> str:
    content = entry.get("content")
    return _filled(_DECORATOR.sub("", content), persona) if isinstance(content, str) else ""


def _filled(text: str, persona: Persona) -> str:
    """The text with macros for names filled in."""
    name = persona.field("nickname") or persona.name
    return clean(_MACROS.sub(lambda m: name if (m[1] or m[2]).lower() in ("char", "bot") else "my friend", text))
