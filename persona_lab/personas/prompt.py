"""A card's text as prompt: macros, the system prompt and the greeting.

Deterministic: `{{random:...}}` and friends give the same choice for the same text every time, so that training,
evaluation and chat see one prompt. The lorebook is not read here, and the creator's notes are never prompted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from persona_lab.types import Persona

_MACRO = re.compile(r"\{\{([^{}]{0,4000})\}\}")
_TAG = re.compile(r"<(bot|user)>", re.IGNORECASE)
_ROLL = re.compile(r"d?(\d{1,6})", re.IGNORECASE)
_LONGEST = 200_000
_MOST_PASSES = 4


def substitute(text: str, persona: Persona, user: str = "User", original: str = "") -> str:
    """`text` with its macros replaced; unknown macros stay as they are.

    `{{char}}` and `<BOT>` give the nickname or the name, `{{user}}` and `<USER>` the `user`, `{{original}}` what the
    field replaces; comments (`{{// ...}}`, `{{comment: ...}}`) and `{{hidden_key: ...}}` go. Source: character card
    specification V3.
    """
    char = persona.field("nickname").strip() or persona.name
    text = _TAG.sub(lambda match: char if match[1].lower() == "bot" else user, text[:_LONGEST])
    for _ in range(_MOST_PASSES):  # macros may stand inside macros; innermost first
        replaced = _MACRO.sub(lambda match: _expand(match[0], match[1], char, user, original), text)
        if replaced == text:
            break
        text = replaced[:_LONGEST]
    return text


def _expand(whole: str, inner: str, char: str, user: str, original: str) -> str:
    plain = inner.strip()
    fixed = {"char": char, "user": user, "original": original}
    if plain.lower() in fixed:
        return fixed[plain.lower()]
    if plain.startswith("//"):
        return ""
    name, colon, argument = plain.partition(":")
    expand = _WITH_ARGUMENT.get(name.strip().lower())
    return expand(argument) if expand and colon else whole


def _chosen(argument: str) -> str:
    options = [option.strip().replace("\\,", ",") for option in re.split(r"(?<!\\),", argument)]
    return options[_hash(argument) % len(options)]


def _rolled(argument: str) -> str:
    match = _ROLL.fullmatch(argument.strip())
    return str(1 + _hash(argument) % int(match[1])) if match and int(match[1]) else ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


_WITH_ARGUMENT: dict[str, Callable[[str], str]] = {
    "random": _chosen,
    "pick": _chosen,
    "roll": _rolled,
    "reverse": lambda argument: argument.strip()[::-1],
    "comment": lambda argument: "",
    "hidden_key": lambda argument: "",
}


def system_prompt(persona: Persona, user: str = "User") -> str:
    """Who the character is, as the system message: one short paragraph a field, empty fields left out.

    The card's `system_prompt` takes the place of the opening line (which its `{{original}}` brings back);
    `post_history_instructions` come last.
    """
    opening = f"You are {persona.name}. Stay in character."

    def text(field: str, original: str = "") -> str:
        written = substitute(persona.field(field), persona, user, original)
        return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", written)).strip()

    first = text("system_prompt", opening) or opening
    titled = (("", "description"), ("Personality: ", "personality"), ("Scenario: ", "scenario"))
    parts = [first, *(title + text(field) for title, field in titled if text(field)), text("post_history_instructions")]
    return "\n".join(part for part in parts if part)


def greeting(persona: Persona, user: str = "User") -> str:
    """The character's first message; empty if the card has none."""
    return substitute(persona.field("first_mes"), persona, user).strip()
