"""Turns to conversations: one system message, runs of one role joined, named lines of a script as exchanges.

It reads no files (toolkit.py does).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona_lab.datasets.progress import ticking
from persona_lab.datasets.rows import Rows
from persona_lab.datasets.toolkit import clean, split_of
from persona_lab.types import Conversation, Message, Role

MAX_ROW_CHARACTERS = 1_000_000
MAX_TAGS = 16
MAX_TAG_CHARACTERS = 48


class UnusableRow(ValueError):
    """One row cannot become a conversation; its text is the reason, for people."""


@dataclass
class Dialogue:
    """What a run of named lines gave: conversations of the persona, and what the other speakers said."""

    conversations: list[Conversation] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def make_conversation(
    turns: Iterable[tuple[Role, str]],
    source: str,
    row: dict[str, Any] | None = None,
    columns: dict[str, str] | None = None,
) -> Conversation:
    """Turns as a conversation: one system message, first; runs of one role joined; trailing user turns dropped.

    Args:
        turns: (role, text) in order.
        source: `file:row`; the id where the row has none.
        row: where `id`, `split`, `group` and `tags` (or `aspect`) are taken from, if it has them.
        columns: other names of those three columns.

    Raises:
        UnusableRow: nothing is left to train on.
    """
    messages = _merged(turns)
    while messages and messages[-1].role == "user":
        messages.pop()
    if not any(message.role == "assistant" for message in messages):
        raise UnusableRow("has no reply of the assistant")
    if sum(len(message.content) for message in messages) > MAX_ROW_CHARACTERS:
        raise UnusableRow(f"is longer than {MAX_ROW_CHARACTERS:,} characters")

    def label(name: str) -> str:
        value = (row or {}).get((columns or {}).get(name, name))
        return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""

    return Conversation(
        id=clean(label("id"))[:200] or source,
        messages=tuple(messages),
        split=split_of(label("split")),
        source=source,
        group=clean(label("group"))[:200],
        tags=_tags(row or {}),
    )


def _tags(row: dict[str, Any]) -> tuple[str, ...]:
    """`tags` (a list, or text with commas) or `aspect` of a row, in lower case, each once."""
    value = row.get("tags", row.get("aspect"))
    parts = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else []
    found = (clean(part).lower()[:MAX_TAG_CHARACTERS] for part in parts if isinstance(part, str))
    return tuple(dict.fromkeys(tag for tag in found if tag))[:MAX_TAGS]


def _merged(turns: Iterable[tuple[Role, str]]) -> list[Message]:
    system: list[str] = []
    merged: list[tuple[Role, str]] = []
    for role, text in turns:
        content = clean(text)
        if not content:
            continue
        if role == "system":
            system.append(content)
        elif merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n{content}")
        else:
            merged.append((role, content))
    if system:
        merged.insert(0, ("system", "\n".join(dict.fromkeys(system))))
    return [Message(role=role, content=content) for role, content in merged]


def collect(
    rows: Rows, path: Path, convert: Callable[[Any, str], Conversation | None]
) -> tuple[list[Conversation], list[tuple[int, str]]]:
    """Convert each row; what raises UnusableRow is skipped with its reason, what gives None is passed over.

    Args:
        convert: of (row, source).

    Returns:
        the conversations, and (row number, reason) of the skipped, those that could not be parsed included.
    """
    conversations: list[Conversation] = []
    skipped = list(rows.skipped)
    for number, row in ticking(rows.rows, len(rows.rows), "taking rows apart"):
        try:
            conversation = convert(row, f"{path.name}:{number}")
        except UnusableRow as error:
            skipped.append((number, str(error)))
            continue
        if conversation is not None:
            conversations.append(conversation)
    return conversations, sorted(skipped)


# --- named lines (scripts, chat logs) -------------------------------------------------------------


def match_speaker(speakers: Collection[str], names: Sequence[str]) -> str | None:
    """Which of `speakers` is the persona: equal to one of its `names` without regard to case, else, if exactly one
    speaker is the first or last word of a name (Nan for Nan Tolliver), that one; None if there is none."""
    wanted = {name.casefold().strip() for name in names if name.strip()}
    for speaker in speakers:
        if speaker.casefold().strip(" .") in wanted:
            return speaker
    parts = {word for name in wanted for word in (name.split()[0], name.split()[-1]) if len(word) > 2}
    near = [speaker for speaker in speakers if speaker.casefold().strip(" .") in parts]
    return near[0] if len(near) == 1 else None


def dialogue(
    scenes: Iterable[Sequence[tuple[str, str]]], persona: str, source: str, most_exchanges: int = 3
) -> Dialogue:
    """Named lines as conversations: the persona's lines answer whatever the others said since its last one.

    Args:
        scenes: for each scene, (speaker, text) in order; a conversation never crosses two scenes.
        persona: the speaker who is the assistant, without regard to case.
        source: name of the file, for ids.
        most_exchanges: a conversation is cut after so many replies, so that a long scene gives many examples.
    """
    result = Dialogue()
    for scene in scenes:
        for turns in _exchanges(scene, persona.casefold(), most_exchanges):
            number = len(result.conversations) + 1
            try:
                result.conversations.append(make_conversation(turns, f"{source}:{number}"))
            except UnusableRow:
                continue  # the others' last words in a scene: counted below, as theirs
        result.others.extend(clean(text) for speaker, text in scene if speaker.casefold() != persona.casefold())
    result.others = [text for text in result.others if text]
    return result


def _exchanges(scene: Sequence[tuple[str, str]], persona: str, most: int) -> Iterator[list[tuple[Role, str]]]:
    turns: list[tuple[Role, str]] = []
    replies = 0
    for speaker, text in scene:
        role: Role = "assistant" if speaker.casefold() == persona else "user"
        if role == "user" and turns and turns[-1][0] == "assistant":
            replies += 1
            if replies >= most:
                yield turns
                turns, replies = [], 0
        turns.append((role, text))
    if turns:
        yield turns
