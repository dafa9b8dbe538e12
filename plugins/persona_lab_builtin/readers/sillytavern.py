"""SillyTavern chats: JSONL whose first line names user and character; then one message a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import DatasetReader, Detection, Persona, ReadResult


def _head(rows: Sequence[Any]) -> dict[str, Any] | None:
    first = rows[0] if rows else None
    if isinstance(first, dict) and ("character_name" in first or "chat_metadata" in first) and "mes" not in first:
        return first
    return None


def _is_message(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("mes"), str) and ("is_user" in row or "name" in row)


class SillyTavernReader(DatasetReader):
    """Messages with `name`, `is_user` and `mes`; the swipe that was kept is in `mes`. System notes are left out."""

    id = "sillytavern"
    title = "SillyTavern chat"
    summary = "A chat file of SillyTavern (.jsonl): the character's messages are its replies."
    rank = 15

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_rows

        rows = peek_rows(path)
        head = _head(rows)
        hits = sum(_is_message(row) and "is_user" in row for row in rows)
        if not hits or (head is None and hits < len(rows)):
            return Detection(score=0)
        names = f" of {head.get('character_name', 'a group')}" if head else ""
        return Detection(score=0.97, why=f"its lines are messages{names} with `mes` and `is_user`")

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        from persona_lab.api import EVERYBODY, speakers

        names = speakers(self._said(path)[0])
        return {"assistant": names, "user": [EVERYBODY, *names]}

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import chat_result

        said, character = self._said(path)
        chosen = dict(mapping)
        if character and not chosen.get("assistant"):
            chosen["assistant"] = character
        result = chat_result(said, persona, chosen, path.name, room=False)
        other = character and character.casefold() not in (
            persona.name.casefold(),
            persona.field("nickname").casefold(),
        )
        told = (f"The chat is with {character!r}, and is taken as {persona.name}'s.",) if other else ()
        return result.model_copy(update={"warnings": told + result.warnings})

    def _said(self, path: Path) -> tuple[list, str]:
        from persona_lab.api import Said, read_rows

        rows = read_rows(path)
        head = _head([row for _, row in rows.rows[:1]]) or {}
        head = {key: value for key, value in head.items() if value != "unused"}  # what newer versions write there
        character = str(head.get("character_name") or "")
        said = []
        for number, row in rows.rows:
            if not _is_message(row) or row.get("is_system"):
                continue
            mine = bool(row.get("is_user"))
            name = str(row.get("name") or (head.get("user_name") if mine else character) or ("You" if mine else "They"))
            if mine and name.casefold() == character.casefold():
                name = f"{name} (you)"
            said.append(Said(number, name, row["mes"]))
        if not character:
            spoken = [row.get("name") for _, row in rows.rows if _is_message(row) and not row.get("is_user")]
            named = {name for name in spoken if isinstance(name, str) and name}
            character = named.pop() if len(named) == 1 else ""
        return said, character
