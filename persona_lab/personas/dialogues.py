"""A card's example dialogues (`mes_example`) as conversations: `<START>`, then turns of `{{user}}:` and `{{char}}:`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from persona_lab.personas.macros import spoken_name, substitute
from persona_lab.types import Conversation, Message, Persona

MAX_TEXT = 200_000
MAX_DIALOGUES = 500
_START = re.compile(r"^[ \t]*<START>[ \t]*", re.IGNORECASE | re.MULTILINE)
_USER, _CHAR = "\ue000", "\ue001"  # private-use characters: who speaks, told apart before names are filled in
_USERS = re.compile(r"^[ \t]*(?:\{\{user\}\}|<USER>|You)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)
_CHARS = re.compile(r"^[ \t]*(?:\{\{char\}\}|<BOT>)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)


def example_dialogues(persona: Persona, user: str = "User") -> tuple[Conversation, ...]:
    """The card's example dialogues, each as a conversation that has a reply of the character; macros are filled in.

    What stands before the first speaker is narration: it goes to the first turn of the character. A dialogue that the
    character begins keeps its first line as a greeting.
    """
    text = persona.field("mes_example")[:MAX_TEXT].replace(_USER, "").replace(_CHAR, "")
    found: list[Conversation] = []
    parts = [part for part in _START.split(text) if part.strip()]
    for number, part in enumerate(parts[:MAX_DIALOGUES], 1):
        messages = tuple(_messages(part, persona, user))
        if any(message.role == "assistant" for message in messages):
            name = f"example-{number}"
            found.append(Conversation(id=name, messages=messages, source=f"card: {name}", group=name))
    return tuple(found)


def _messages(part: str, persona: Persona, user: str) -> Iterator[Message]:
    marked = _USERS.sub(_USER, _CHARS.sub(_CHAR, _own_names(part, persona)))
    turns: list[tuple[str, str]] = []
    before = ""
    for piece in re.split(f"(?=[{_USER}{_CHAR}])", marked):
        said = substitute(piece.lstrip(_USER + _CHAR), persona, user).strip()
        if piece[:1] not in (_USER, _CHAR):
            before = said
        elif said:
            role = "user" if piece[0] == _USER else "assistant"
            if role == "assistant" and before:
                said, before = f"{before}\n{said}", ""
            if turns and turns[-1][0] == role:
                said = f"{turns.pop()[1]}\n{said}"
            turns.append((role, said))
    for role, said in turns:
        yield Message(role="user" if role == "user" else "assistant", content=said)


def _own_names(part: str, persona: Persona) -> str:
    """`Ada:` at the start of a line is the character speaking, as `{{char}}:` is."""
    for name in dict.fromkeys((persona.name.strip(), spoken_name(persona))):
        if name:
            part = re.sub(rf"^[ \t]*{re.escape(name)}[ \t]*:", "{{char}}:", part, flags=re.MULTILINE)
    return part


def as_rows(dialogues: Sequence[Conversation]) -> str:
    """Conversations as JSONL of `messages`, which `datasets import` reads; those without a question are left out."""
    rows = []
    for dialogue in dialogues:
        messages = [message.model_dump(mode="json") for message in dialogue.messages]
        if any(message["role"] == "user" for message in messages):
            rows.append(json.dumps({"messages": messages, "group": dialogue.group}, ensure_ascii=False) + "\n")
    return "".join(rows)
