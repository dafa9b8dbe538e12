"""Logs of chats to conversations of one speaker: who answers whom, where a talk ends, what is only noise.

A log is lines (`Said`). In a talk of two, turns follow each other. In a room of many, talks run through each other:
each line of the character is given to one partner (whom it names, else by how near, how related and how asked the
lines before it are), and the partner's lines since the character's last one to them are the user's turn.

It knows no file format (the readers do).
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from persona_lab.api import ReadResult
from persona_lab.datasets.rooms import of_room, with_addressees
from persona_lab.datasets.talks import EVERYBODY, Said, of_talk
from persona_lab.datasets.toolkit import clean
from persona_lab.datasets.turns import dialogue, match_speaker
from persona_lab.errors import BadInput
from persona_lab.types import Persona

ROOM_GAP_MINUTES = 30.0
TALK_GAP_MINUTES = 180.0
NAMED_SPEAKERS = 15


def chat_result(
    said: Sequence[Said], persona: Persona, mapping: Mapping[str, str], source: str, room: bool | None = None
) -> ReadResult:
    """A log as what a reader gives: conversations of the character, and lines of the others.

    Args:
        mapping: `assistant` (the speaker who is the character; default: the persona's name or nickname), `user` (one
            speaker, or `*` for everybody), `gap` (minutes of silence that end a conversation).
        source: the file's name, for ids.
        room: True: many talks at once, to be told apart; False: one talk; None: a room if more than two speak.

    Raises:
        BadInput: the mapping names nobody, or nobody in the log is the persona; the speakers are listed.
    """
    lines = [line for line in said if clean(line.text)]
    counts = Counter(line.speaker for line in lines)
    character = _speaker(mapping.get("assistant", ""), counts, persona, source)
    partner = mapping.get("user", EVERYBODY)
    if partner != EVERYBODY:
        partner = _speaker(partner, counts, None, source, role="user")
    many = len(counts) > 2 if room is None else room
    gap = _gap(mapping.get("gap", ""), ROOM_GAP_MINUTES if many else TALK_GAP_MINUTES)
    addressed = with_addressees(lines, counts) if many else list(lines)
    make = of_room if many else of_talk
    conversations = make(addressed, character, partner, gap, source)
    others = [clean(line.text) for line in addressed if line.speaker != character]
    told = f"{character!r} is the character ({counts[character]} lines)"
    with_whom = "everybody else" if partner == EVERYBODY else repr(partner)
    notes = [f"{told}; the other side is {with_whom}."]
    if many:
        notes.append("Lines of a room are shared out to talks by whom they name, else by what they seem to answer.")
    return ReadResult(conversations=tuple(conversations), others=tuple(others), warnings=tuple(notes))


def speakers(said: Sequence[Said], most: int = 50) -> list[str]:
    """Who speaks, most lines first."""
    return [name for name, _ in Counter(line.speaker for line in said).most_common(most)]


def _speaker(wanted: str, counts: Counter[str], persona: Persona | None, source: str, role: str = "assistant") -> str:
    names = [wanted] if wanted else [persona.name, persona.field("nickname")] if persona else []
    found = match_speaker(counts, names)
    if found is not None:
        return found
    told = ", ".join(f"{name} ({count})" for name, count in counts.most_common(NAMED_SPEAKERS))
    near = difflib.get_close_matches(wanted, list(counts), n=1) if wanted else []
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise BadInput(
        f"{source} has no lines of {names[0]!r}. Its speakers, with their number of lines: {told or 'nobody'}.",
        f"{hint}Say who is {'the character' if role == 'assistant' else 'the other side'} with --map {role}=NAME.",
    )


def _gap(text: str, default: float) -> float:
    if not text:
        return default * 60
    try:
        minutes = float(text)
    except ValueError as error:
        raise BadInput(f"--map gap={text!r} is no number.", "Give minutes, for example --map gap=30.") from error
    if not 0 < minutes <= 60 * 24 * 365:
        raise BadInput(f"--map gap={text} is out of range.", "Give minutes of silence, for example --map gap=30.")
    return minutes * 60


# --- several chats, scripts ---------------------------------------------------------------------


def chats_result(
    chats: Sequence[Sequence[Said]], persona: Persona, mapping: Mapping[str, str], source: str
) -> ReadResult:
    """As `chat_result`, of several chats of one file: the character's own name is looked for in each.

    Raises:
        BadInput: in none of them.
    """
    every = [line for chat in chats for line in chat]
    counts = Counter(line.speaker for line in every)
    _speaker(mapping.get("assistant", ""), counts, persona, source)  # says who there is, if nobody fits
    if mapping.get("user", EVERYBODY) != EVERYBODY:
        _speaker(mapping["user"], counts, None, source, role="user")
    _gap(mapping.get("gap", ""), TALK_GAP_MINUTES)
    results = []
    for chat in chats:
        try:
            results.append(chat_result(chat, persona, mapping, source))
        except BadInput:
            continue  # a chat without the character
    return ReadResult(
        conversations=tuple(c for result in results for c in result.conversations),
        others=tuple(text for result in results for text in result.others),
        warnings=tuple(dict.fromkeys(text for result in results for text in result.warnings)),
    )


def script_result(
    scenes: Sequence[Sequence[tuple[str, str]]], persona: Persona, mapping: Mapping[str, str], source: str
) -> ReadResult:
    """Speeches of a play or a film as what a reader gives. `mapping` may have `assistant`, the name in the script.

    Raises:
        BadInput: nobody in it is the persona; the speakers are listed.
    """
    counts = Counter(speaker.casefold() for scene in scenes for speaker, _ in scene)
    speaker = _speaker(mapping.get("assistant", ""), counts, persona, source)
    found = dialogue(scenes, speaker, source)
    name = mapping.get("assistant") or persona.name
    same = speaker in (name.casefold(), persona.field("nickname").casefold())
    notes = () if same else (f"Lines of {speaker!r} were taken as {name}'s.",)
    return ReadResult(conversations=tuple(found.conversations), others=tuple(found.others), warnings=notes)
