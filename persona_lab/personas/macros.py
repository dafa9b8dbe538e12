"""A card's macros: `{{char}}` and the like. Bounded, and deterministic.

`{{random:...}}` and friends give the same choice for the same text every time, so that training, evaluation and chat
see one prompt. Source: character card specification V3, and the macros that SillyTavern's cards use most.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

from persona_lab.types import Persona

_MACRO = re.compile(r"\{\{([^{}]{0,4000})\}\}")
_TAG = re.compile(r"<(bot|user)>", re.IGNORECASE)
_ROLL = re.compile(r"(\d{0,2})d?(\d{1,6})", re.IGNORECASE)
_LONGEST = 200_000
_MOST_PASSES = 4
MAX_NAME = 200
_MOST_REPORTED = 20
_FIELDS = {
    "description": "description",
    "personality": "personality",
    "scenario": "scenario",
    "charversion": "character_version",
    "char_version": "character_version",
    "creator": "creator",
}


def substitute(text: str, persona: Persona, user: str = "User", original: str = "") -> str:
    """`text` with its macros replaced; unknown macros stay as they are (`unknown_macros` names them).

    `{{char}}` and `<BOT>` give the nickname or the name, `{{user}}` and `<USER>` the `user`, `{{original}}` what the
    field replaces; comments (`{{// ...}}`, `{{comment: ...}}`) and `{{hidden_key: ...}}` go.
    """
    if "{{" not in text and "<" not in text:
        return text[:_LONGEST]
    char = spoken_name(persona)
    room = _Room()
    text = _TAG.sub(lambda match: room.take(char if match[1].lower() == "bot" else user), text[:_LONGEST])
    if "{{" not in text:
        return text
    fixed = {"char": char, "user": user, "original": original, "newline": "\n", "noop": "", "trim": ""}
    fixed |= {name: _own(persona, field, char, user) for name, field in _FIELDS.items() if name in text.lower()}
    for _ in range(_MOST_PASSES):  # macros may stand inside macros; innermost first
        replaced = _MACRO.sub(lambda match: room.take(_expand(match[0], match[1], fixed)), text)
        if replaced == text:
            break
        text = replaced[:_LONGEST]
    return text


def spoken_name(persona: Persona) -> str:
    """What the character is called: the nickname, else the name."""
    return persona.field("nickname")[:MAX_NAME].strip() or persona.name


class _Room:
    """How much macros may still write in one text: small ones can name large ones thousands of times."""

    def __init__(self) -> None:
        self._left = _LONGEST

    def take(self, text: str) -> str:
        self._left -= len(text)
        return text if self._left >= 0 else ""


def _own(persona: Persona, field: str, char: str, user: str) -> str:
    """Another field of the card, with nothing but names filled in, so that fields cannot name each other for ever."""
    simple = {"char": char, "user": user}
    return _MACRO.sub(lambda match: simple.get(match[1].strip().lower(), ""), persona.field(field)[:20_000])[:20_000]


def _expand(whole: str, inner: str, fixed: Mapping[str, str]) -> str:
    plain = inner.strip()
    if plain.lower() in fixed:
        return fixed[plain.lower()]
    if plain.startswith("//"):
        return ""
    name, colon, argument = plain.partition(":")
    expand = _WITH_ARGUMENT.get(name.strip().lower())
    return expand(argument) if expand and colon else whole


def unknown_macros(persona: Persona) -> tuple[str, ...]:
    """The macros in the card's prompted fields that are left as they are, such as `{{time}}`; at most 20."""
    greetings = persona.data.get("alternate_greetings")
    texts = [persona.field(name) for name in _PROMPTED]
    texts += [text for text in greetings if isinstance(text, str)] if isinstance(greetings, list) else []
    found = (match[0] for text in texts for match in _MACRO.finditer(substitute(text, persona)))
    return tuple(dict.fromkeys(macro[:80] for macro in found))[:_MOST_REPORTED]


_PROMPTED = (
    "system_prompt", "description", "personality", "scenario", "first_mes", "mes_example", "post_history_instructions",
)  # fmt: skip


def _chosen(argument: str) -> str:
    """One of `a,b,c`, or of `:a::b::c`."""
    if argument.startswith(":"):
        options = [option.strip() for option in argument[1:].split("::")]
    else:
        options = [option.strip().replace("\\,", ",") for option in re.split(r"(?<!\\),", argument)]
    return options[_hash(argument) % len(options)]


def _rolled(argument: str) -> str:
    match = _ROLL.fullmatch(argument.strip())
    if not match or not int(match[2]):
        return ""
    if "d" not in argument.lower():
        return str(1 + _hash(argument) % int(match[1] + match[2]))
    dice = int(match[1] or 1)
    if dice == 1:
        return str(1 + _hash(argument) % int(match[2]))
    return str(sum(1 + _hash(f"{argument} {number}") % int(match[2]) for number in range(dice)))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


_WITH_ARGUMENT: dict[str, Callable[[str], str]] = {
    "random": _chosen,
    "pick": _chosen,
    "roll": _rolled,
    "reverse": lambda argument: argument.strip()[::-1],
    "comment": lambda argument: "",
    "hidden_key": lambda argument: "",
    "newline": lambda argument: "\n" * min(int(argument.strip(": ")), 10) if argument.strip(": ").isdecimal() else "\n",
}
