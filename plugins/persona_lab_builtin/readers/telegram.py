"""Telegram's JSON export (Settings, Advanced, Export Telegram data; machine-readable): one chat, or all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult


def _chats(value: Any) -> list[dict[str, Any]]:
    """The chats of an export, those with messages."""
    if not isinstance(value, dict):
        return []
    chats = value.get("chats")
    found = chats.get("list") if isinstance(chats, dict) else [value]
    return [
        chat
        for chat in (found if isinstance(found, list) else [])
        if isinstance(chat, dict) and isinstance(chat.get("messages"), list) and "type" in chat
    ]


def _text(value: Any) -> str:
    """A text, or parts: texts and objects with a text (links, mentions, bold)."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    texts = (part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else "" for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _seconds(message: dict[str, Any]) -> float | None:
    try:
        return float(message["date_unixtime"])
    except (KeyError, TypeError, ValueError):
        return None


class TelegramReader(DatasetReader):
    """Messages with `from`, `text` and `date_unixtime`; what was forwarded is not the sender's own and left out."""

    id = "telegram"
    title = "Telegram export"
    summary = "result.json of Telegram's export: say who is the character with --map assistant=NAME."
    rank = 42

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_text, read_json

        head = peek_text(path)
        if not head.lstrip().startswith("{") or '"messages"' not in head or '"from"' not in head:
            return Detection(score=0)
        try:
            chats = _chats(read_json(path))
        except BadInput:
            return Detection(score=0)
        messages = [m for chat in chats for m in chat["messages"] if isinstance(m, dict)]
        fitting = sum("from" in m and "text" in m and "date" in m for m in messages)
        if not fitting:
            return Detection(score=0)
        return Detection(
            score=0.97, why=f"it has {len(chats)} chats with {fitting} messages of `from`, `text` and `date`"
        )

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        from persona_lab.api import EVERYBODY, speakers

        names = speakers([line for said in self._said(path)[0] for line in said])
        return {"assistant": names, "user": [EVERYBODY, *names]}

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import chats_result

        chats, left_out = self._said(path)
        result = chats_result(chats, persona, mapping, path.name)
        told = (f"{left_out} forwarded messages and messages without text were left out.",) if left_out else ()
        return result.model_copy(update={"warnings": result.warnings + told})

    def _said(self, path: Path) -> tuple[list[list], int]:
        from persona_lab.api import Said, read_json

        result, left_out, number = [], 0, 0
        for chat in _chats(read_json(path)):
            said: list = []
            author: dict[Any, str] = {}
            for message in chat["messages"]:
                number += 1
                if not isinstance(message, dict) or message.get("type") != "message":
                    continue
                name, text = message.get("from"), _text(message.get("text"))
                if not isinstance(name, str) or not text.strip() or message.get("forwarded_from"):
                    left_out += 1
                    continue
                key, reply = message.get("id"), message.get("reply_to_message_id")
                if isinstance(key, int):
                    author[key] = name
                to = author.get(reply, "") if isinstance(reply, int) else ""
                said.append(Said(number, name, text, _seconds(message), to))
            result.append(said)
        return result, left_out
