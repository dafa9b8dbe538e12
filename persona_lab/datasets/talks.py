"""Lines of a chat, and one talk after another made of them. See rooms.py for many talks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from persona_lab.datasets.progress import ticking
from persona_lab.datasets.turns import UnusableRow, make_conversation
from persona_lab.types import Conversation, Role

EVERYBODY = "*"
MOST_EXCHANGES = 6


@dataclass(frozen=True)
class Said:
    """One line of a log.

    `number`: of its line or row in the file; `seconds`: when, on any clock that only goes forwards, or None; `to`: the
    speaker it is said to, where the log itself tells (a reply, an @mention).
    """

    number: int
    speaker: str
    text: str
    seconds: float | None = None
    to: str = ""


@dataclass
class Talk:
    """What the character and one partner said to each other so far, and where it stands."""

    turns: list[tuple[Role, str]] = field(default_factory=list)
    number: int = 0
    last: int = -1
    replies: int = 0


def of_talk(lines: Sequence[Said], character: str, partner: str, gap: float, source: str) -> list[Conversation]:
    """Turn after turn, cut at long silences."""
    found: list[Conversation] = []
    talk = Talk()
    before: float | None = None
    for line in ticking(lines, len(lines), "telling who answers whom"):
        if partner != EVERYBODY and line.speaker not in (character, partner):
            continue
        role: Role = "assistant" if line.speaker == character else "user"
        silent = before is not None and line.seconds is not None and line.seconds - before > gap
        full = role == "user" and talk.replies >= MOST_EXCHANGES and talk.turns[-1][0] == "assistant"
        if silent or full:
            close(talk, found, source)
            talk = Talk()
        talk.number = talk.number or line.number
        talk.replies += role == "assistant" and (not talk.turns or talk.turns[-1][0] == "user")
        talk.turns.append((role, line.text))
        before = line.seconds if line.seconds is not None else before
    close(talk, found, source)
    return found


def close(talk: Talk, found: list[Conversation], source: str) -> None:
    """End a talk: what was said becomes a conversation, if the other side said anything and the character answered."""
    if not talk.turns or not any(role == "user" for role, _ in talk.turns):
        return  # the character alone: nobody asked
    try:
        found.append(make_conversation(talk.turns, f"{source}:{talk.number}"))
    except UnusableRow:
        return  # only the others spoke: counted as theirs
