"""A card as a form edits it: only what was changed is written, everything else of the card stays as it was."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from persona_lab.errors import BadInput
from persona_lab.personas.bounded import bounded_json
from persona_lab.personas.cards import MAX_NAME, V1_FIELDS, card_name, normalise
from persona_lab.personas.lorebook_entries import MAX_ENTRIES, rows_of
from persona_lab.types import Persona

TEXTS = (
    "name", "nickname", "description", "personality", "scenario", "first_mes", "mes_example", "system_prompt",
    "post_history_instructions", "creator_notes", "creator", "character_version",
)  # fmt: skip
LISTED = ("alternate_greetings", "tags")
BOOK = "character_book"


def edited_card(
    persona: Persona, texts: Mapping[str, str | None], greetings: Sequence[str | None], tags: str, rest: str
) -> Persona:
    """The persona with what the form says.

    Args:
        texts: by field, of TEXTS.
        greetings: the alternate ones, in order; empty ones go.
        tags: separated by commas.
        rest: `rest_of` as the user left it.

    Raises:
        BadInput: no name, or `rest` is no JSON object.
    """
    card = copy.deepcopy(persona.card)
    data: dict[str, Any] = card["data"]
    _set_rest(data, rest)
    for field in TEXTS:
        if field in texts:
            _set_text(card, field, texts[field] or "")
    kept = [text for text in greetings if text and text.strip()]
    if kept != [text for text in greetings_of(persona) if text.strip()]:
        data["alternate_greetings"] = kept
    if tags != ", ".join(_strings(data.get("tags"))):
        data["tags"] = [tag.strip() for tag in tags.split(",") if tag.strip()]
    if card != persona.card and "modification_date" in data:
        data["modification_date"] = int(time.time())
    name = data["name"].strip()
    if not name or len(name) > MAX_NAME:
        raise BadInput("The character has no name." if not name else "The name is too long.", "Give it a short one.")
    card, _, _ = normalise(card, "The card")
    return persona.model_copy(update={"name": card_name(data), "card": card, "example": False})


def _set_text(card: dict[str, Any], field: str, text: str) -> None:
    """A form shows line ends as one character, so the same text with others is not a change."""
    data = card["data"]
    before = data.get(field)
    before = before if isinstance(before, str) else ""
    if text == _shown(before) or (not text and field not in data):
        return
    data[field] = text
    if field in V1_FIELDS and field in card:  # a copy for programs that know V1 only must not go stale
        card[field] = text


def _shown(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _strings(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def greetings_of(persona: Persona) -> list[str]:
    """The alternate greetings, as the form shows them."""
    return [_shown(text) for text in _strings(persona.data.get("alternate_greetings"))]


def tags_of(persona: Persona) -> str:
    """The tags, as the form shows them."""
    return ", ".join(_strings(persona.data.get("tags")))


def rest_of(persona: Persona) -> str:
    """The card's fields that have no place of their own in the form, as JSON."""
    rest = {key: value for key, value in persona.data.items() if not _has_place(key, value)}
    return json.dumps(rest, ensure_ascii=False, indent=2)


def _has_place(key: str, value: Any) -> bool:
    if key in TEXTS or key == BOOK:
        return True
    return key in LISTED and isinstance(value, list) and all(isinstance(item, str) for item in value)


def _set_rest(data: dict[str, Any], rest: str) -> None:
    what = "The JSON under “Everything else”"
    try:
        values = bounded_json(rest or "{}", what)
    except BadInput as error:
        raise BadInput(error.message, "Mend it; choosing the character again brings the card's own back.") from error
    if not isinstance(values, dict):
        raise BadInput(f"{what} is not an object.", "Begin it with { and end it with }.")
    for key in [key for key, value in data.items() if not _has_place(key, value)]:
        if key not in values:
            del data[key]
    for key, value in values.items():
        if key in TEXTS or key == BOOK:
            raise BadInput(f"{what} holds {key!r}, which has a place of its own above.", "Take it out there.")
        data[key] = value


# --- the lorebook ---------------------------------------------------------------------------------


def entries_of(persona: Persona) -> list[dict[str, Any]]:
    """The lorebook's entries, as the card has them; what is no object is left out."""
    return [row for row in rows_of(persona.data.get(BOOK)) if isinstance(row, dict)]


def with_entry(persona: Persona, number: int | None, fields: Mapping[str, Any]) -> Persona:
    """The persona with an entry changed, or a new one at the end.

    Args:
        number: its place among `entries_of`; None: a new one.
        fields: by name; `extensions` are added to those that are there.

    Raises:
        BadInput: no content, no key that could wake it, no such entry, or too many.
    """
    if not str(fields.get("content") or "").strip():
        raise BadInput("The entry says nothing.", "Write what the character is to know.")
    if not fields.get("keys") and not fields.get("constant"):
        raise BadInput("No key would ever wake this entry.", "Give it a key, or tick “Always there”.")
    entries = copy.deepcopy(entries_of(persona))
    if number is not None and not 0 <= number < len(entries):
        raise BadInput(f"There is no entry {number + 1}: the lorebook has {len(entries)}.", "Choose one of the table.")
    if number is None:
        if len(entries) >= MAX_ENTRIES:
            raise BadInput(f"A lorebook holds at most {MAX_ENTRIES:,} entries.", "Delete some.")
        entries.append({"keys": [], "content": "", "extensions": {}, "enabled": True, "insertion_order": 100})
    entry = entries[-1 if number is None else number]
    more = fields.get("extensions") or {}
    entry |= {key: value for key, value in fields.items() if key != "extensions"}
    if more:
        entry["extensions"] = {**(entry.get("extensions") or {}), **more}
    return with_book(persona, {"entries": entries})


def without_entry(persona: Persona, number: int) -> Persona:
    """The persona without an entry.

    Raises:
        BadInput: there is no such entry.
    """
    entries = entries_of(persona)
    if not 0 <= number < len(entries):
        raise BadInput(f"There is no entry {number + 1}: the lorebook has {len(entries)}.", "Choose one of the table.")
    return with_book(persona, {"entries": [row for place, row in enumerate(entries) if place != number]})


def with_book(persona: Persona, fields: Mapping[str, Any]) -> Persona:
    """The persona with fields of its lorebook changed; None takes a field away."""
    card = copy.deepcopy(persona.card)
    own = card["data"].get(BOOK)
    book = own if isinstance(own, dict) else {"extensions": {}, "entries": []}
    for key, value in fields.items():
        if value is None:
            book.pop(key, None)
        else:
            book[key] = copy.deepcopy(value)
    card["data"][BOOK] = book
    return persona.model_copy(update={"card": card, "example": False})
