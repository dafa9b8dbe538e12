"""A card's text as prompt: the system prompt with its lore, and the greetings. The creator's notes are never prompted.

Training and evaluation see the lorebook's constant entries only: one prompt for all of a persona's examples, which is
what they share and what is kept between them. In a conversation, entries that what is said wakes are put in as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from persona_lab.personas.lorebook import Count, Lore, book_of, constant_lore, lore_for, rough_tokens
from persona_lab.personas.macros import substitute
from persona_lab.types import Message, Persona

__all__ = ["greeting", "greetings", "lore_of", "substitute", "system_prompt", "with_lore"]


def system_prompt(persona: Persona, user: str = "User", lore: Lore | None = None) -> str:
    """Who the character is, as the system message: one short paragraph a field, empty fields left out.

    The card's `system_prompt` takes the place of the opening line (which its `{{original}}` brings back); lore stands
    before the description or after the scenario; `post_history_instructions` come last.

    Args:
        lore: of the conversation (`lore_of`); None: the lorebook's constant entries.
    """
    opening = f"You are {persona.name}. Stay in character."

    def text(field: str, original: str = "") -> str:
        return _tidy(substitute(persona.field(field), persona, user, original))

    known = _constant(persona, user) if lore is None else lore
    first = text("system_prompt", opening) or opening
    titled = (("", "description"), ("Personality: ", "personality"), ("Scenario: ", "scenario"))
    described = [title + text(field) for title, field in titled if text(field)]
    last = text("post_history_instructions")
    parts = [first, *map(_tidy, known.before), *described, *map(_tidy, known.after), last]
    return "\n".join(part for part in parts if part)


def _tidy(written: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", written)).strip()


def _constant(persona: Persona, user: str) -> Lore:
    if not persona.data.get("character_book"):
        return Lore()
    return constant_lore(book_of(persona.data), lambda text: substitute(text, persona, user))


def lore_of(persona: Persona, messages: Sequence[Message], user: str = "User", count: Count = rough_tokens) -> Lore:
    """What the lorebook adds to this conversation.

    Args:
        count: tokens of a text, for the lorebook's budget.
    """
    if not persona.data.get("character_book"):
        return Lore()
    said = [message for message in messages if message.role != "system"]
    replies = sum(message.role == "assistant" for message in said)
    texts = [message.content for message in said]
    return lore_for(book_of(persona.data), texts, lambda text: substitute(text, persona, user), count, replies)


def with_lore(system: str, persona: Persona, lore: Lore, user: str = "User") -> str:
    """A variant's system prompt with the lore of a conversation in it.

    Where the variant was made with the card as it is now, lore stands where the card puts it; where the card was
    changed since, it follows the prompt that the variant knows. Where nothing was woken, the prompt stays as it is:
    constant entries are in the one that the variant knows, if it was trained with them. `lore.inserted` is not put in:
    it stands in the conversation.
    """
    if all(entry.constant or entry.depth is not None for entry in lore.used):
        return system
    if system == system_prompt(persona, user):
        return system_prompt(persona, user, lore)
    return "\n".join([system, *(text for text in map(_tidy, lore.texts) if text not in system)])


def greeting(persona: Persona, user: str = "User") -> str:
    """The character's first message; empty if the card has none."""
    return substitute(persona.field("first_mes"), persona, user).strip()


def greetings(persona: Persona, user: str = "User") -> tuple[str, ...]:
    """Every way the character begins a chat: the first message, then the alternate ones."""
    others = persona.data.get("alternate_greetings")
    texts = [text for text in others if isinstance(text, str)] if isinstance(others, list) else []
    filled = (substitute(text, persona, user).strip() for text in (persona.field("first_mes"), *texts))
    return tuple(dict.fromkeys(text for text in filled if text))
