"""Discord channels as DiscordChatExporter writes them in JSON. Replies and mentions tell who is spoken to."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult

_KINDS = ("Default", "Reply", "0", "19")


def _messages(value: Any) -> list[dict[str, Any]]:
    found = value.get("messages") if isinstance(value, dict) else None
    return (
        [m for m in found if isinstance(m, dict) and isinstance(m.get("author"), dict)]
        if isinstance(found, list)
        else []
    )


def _name(author: Any) -> str:
    if not isinstance(author, dict):
        return ""
    found = next((author[key] for key in ("nickname", "name") if isinstance(author.get(key), str) and author[key]), "")
    return str(found).strip()


def _seconds(value: Any) -> float | None:
    try:
        return datetime.datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


class DiscordReader(DatasetReader):
    """Messages of type Default and Reply; those of bots are left out unless a bot is the character."""

    id = "discord"
    title = "Discord export"
    summary = "A channel as JSON by DiscordChatExporter: say who is the character with --map assistant=NAME."
    rank = 43

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_text, read_json

        head = peek_text(path)
        if not head.lstrip().startswith("{") or '"messages"' not in head or '"author"' not in head:
            return Detection(score=0)
        try:
            messages = _messages(read_json(path))
        except BadInput:
            return Detection(score=0)
        fitting = sum("content" in message and "timestamp" in message for message in messages)
        if not fitting:
            return Detection(score=0)
        return Detection(score=0.97, why=f"it has {fitting} messages with an author, a content and a timestamp")

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        from persona_lab.api import EVERYBODY, speakers

        names = speakers(self._said(path, None)[0])
        return {"assistant": names, "user": [EVERYBODY, *names]}

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import chat_result

        said, bots = self._said(path, mapping.get("assistant") or persona.name)
        result = chat_result(said, persona, mapping, path.name)
        told = (f"{bots} messages of bots were left out.",) if bots else ()
        return result.model_copy(update={"warnings": result.warnings + told})

    def _said(self, path: Path, character: str | None) -> tuple[list, int]:
        """The lines, and how many of bots were left out; `character` None: bots stay in."""
        from persona_lab.api import Said, read_json

        said, bots, author = [], 0, {}
        wanted = (character or "").casefold()
        for number, message in enumerate(_messages(read_json(path)), 1):
            name, text = _name(message["author"]), message.get("content")
            key = message.get("id")
            if isinstance(key, str):
                author[key] = name
            if str(message.get("type", "Default")) not in _KINDS or not isinstance(text, str) or not name:
                continue
            if message["author"].get("isBot") and character is not None and name.casefold() != wanted:
                bots += 1
                continue
            reference, mentions = message.get("reference"), message.get("mentions")
            answered = reference.get("messageId") if isinstance(reference, dict) else None
            to = author.get(answered, "") if isinstance(answered, str) else ""
            if not to and isinstance(mentions, list) and len(mentions) == 1:
                to = _name(mentions[0])
            said.append(Said(number, name, text, _seconds(message.get("timestamp")), to))
        return said, bots
