"""Rows of plain `text` (or `completion`): chats spelt out in it are taken apart, other texts become passages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_lab.api import Conversation, DatasetReader, Detection, Persona, ReadResult

_KEYS = ("text", "completion", "story", "body", "content")
_ROLES = {
    **dict.fromkeys(("user", "human", "instruction", "question", "input"), "user"),
    **dict.fromkeys(("assistant", "bot", "gpt", "response", "answer", "output", "model"), "assistant"),
    "system": "system",
}
_TURN = re.compile(
    r"(?:^|(?<=\n))(?:<\|im_start\|>\s*(\w{1,12})\s*\n|<\|(user|assistant|system)\|>\s*|###\s*(\w{1,12})\s*:\s*|"
    r"\**(User|Human|Assistant|System|Question|Answer)\**\s*:\s+)",
    re.IGNORECASE,
)
_END = re.compile(r"<\|im_end\|>|<\|endoftext\|>|<\|end\|>|</s>")


def _column(row: Any) -> str:
    """The column that holds the row's text, if it is a row of this format."""
    if not isinstance(row, dict):
        return ""
    texts = [
        key for key, value in row.items() if isinstance(value, str) and key.lower() not in ("id", "split", "source")
    ]
    return next((key for key in _KEYS if key in row and isinstance(row[key], str) and len(texts) <= 3), "")


def _turns(text: str) -> list[tuple[Any, str]]:
    """Turns of a chat that is spelt out in a text; empty if there is none."""
    marks = list(_TURN.finditer(text))
    roles = [_ROLES.get(next(group for group in mark.groups() if group).lower()) for mark in marks]
    if "user" not in roles or "assistant" not in roles:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    parts = zip(roles, (mark.end() for mark in marks), ends, strict=True)
    return [(role, _END.sub("", text[start:end])) for role, start, end in parts if role]


class CompletionReader(DatasetReader):
    """Rows of one text each, as for plain language modelling."""

    id = "completion"
    title = "Completion text"
    summary = 'Rows of {"text": ...}: chats spelt out in it are taken apart, other texts become passages.'
    rank = 65

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_rows

        rows = peek_rows(path)
        columns = [column for row in rows if (column := _column(row))]
        if not columns or any(isinstance(row, dict) and {"speaker", "name", "author"} & row.keys() for row in rows):
            return Detection(score=0)
        chats = sum(bool(_turns(row[_column(row)])) for row in rows if _column(row))
        told = f", {chats} of them chats spelt out" if chats else ""
        return Detection(
            score=0.58 * len(columns) / len(rows),
            why=f"{len(columns)} of the first {len(rows)} rows hold a text in {columns[0]!r}{told}",
        )

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import (
            BadInput,
            Block,
            UnusableRow,
            collect,
            document_result,
            make_conversation,
            read_rows,
            split_of,
        )

        passages: dict[str, list[str]] = {}

        def convert(row: Any, source: str) -> Conversation | None:
            column = _column(row)
            if not column or not row[column].strip():
                raise UnusableRow("has no text")
            turns = _turns(row[column])
            if turns:
                return make_conversation(turns, source, row)
            passages.setdefault(str(row.get("split") or ""), []).append(row[column])
            return None

        conversations, skipped = collect(read_rows(path), path, convert)
        found, notes = list(conversations), []
        for split, texts in passages.items():
            blocks = [
                block
                for text in texts  # a heading without words keeps the rows apart
                for block in (Block("", True), *(Block(part) for part in re.split(r"\n\s*\n", text)))
            ]
            try:
                made = document_result(blocks, persona, f"{path.name}:{split}" if split else path.name)
            except BadInput as error:
                if not found and len(passages) == 1:
                    raise
                notes.append(error.message)  # too little of it beside what is good
                continue
            found += (
                [row.model_copy(update={"split": split_of(split)}) for row in made.conversations]
                if split
                else (made.conversations)
            )
            notes += made.warnings
        return ReadResult(conversations=tuple(found), skipped=tuple(skipped), warnings=tuple(notes))
