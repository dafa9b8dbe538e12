"""OpenAI messages: rows of `{"messages": [{"role", "content"}, ...]}`, as JSON or JSONL. Content is text or parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_lab.api import Conversation, DatasetReader, Detection, Persona, ReadResult

_KEYS = ("messages", "conversation", "conversations", "dialogue")
_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}


def _messages(row: Any) -> list[Any] | None:
    """The row's list of messages, if it is one of this format."""
    found = row if isinstance(row, list) else None
    if isinstance(row, dict):
        found = next((row[key] for key in _KEYS if isinstance(row.get(key), list)), None)
    if not found or not all(isinstance(message, dict) for message in found):
        return None
    return found if any("role" in message for message in found) else None


def _text(content: Any) -> str:
    """Content as text: parts are `{"type": "text", "text"}`; pictures and sounds are left out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part if isinstance(part, str) else _part(part) for part in content]
    return "\n".join(part for part in parts if part)


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "input_text", "output_text"):
        return ""
    value = part.get("text", part.get("value", ""))
    return value if isinstance(value, str) else ""


class OpenAIMessagesReader(DatasetReader):
    """Rows with a list of messages; optional `id`, `split` and `group` beside it."""

    id = "openai_messages"
    title = "OpenAI messages"
    summary = 'Rows of {"messages": [{"role": "user", "content": ...}, ...]}; what most chat tools export.'
    rank = 10

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_rows

        rows = peek_rows(path)
        hits = sum(_messages(row) is not None for row in rows)
        if not hits:
            return Detection(score=0)
        return Detection(
            score=0.97 * hits / len(rows),
            why=f"{hits} of the first {len(rows)} rows hold messages with a role and content",
        )

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import UnusableRow, collect, make_conversation, read_rows

        passed_over = 0

        def convert(row: Any, source: str) -> Conversation:
            nonlocal passed_over
            messages = _messages(row)
            if messages is None:
                raise UnusableRow("has no list of messages with roles")
            turns = []
            for message in messages:
                role = _ROLES.get(str(message.get("role", "")).lower())
                if role is None:
                    passed_over += 1
                else:
                    turns.append((role, _text(message.get("content"))))
            return make_conversation(turns, source, row if isinstance(row, dict) else None)

        conversations, skipped = collect(read_rows(path), path, convert)
        notes = (f"{passed_over} messages of tools were left out.",) if passed_over else ()
        return ReadResult(conversations=tuple(conversations), skipped=tuple(skipped), warnings=notes)
