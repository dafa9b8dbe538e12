"""Alpaca: rows of `{"instruction", "input", "output"}`, optionally with `system` and `history` (pairs of texts)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_lab.api import Conversation, DatasetReader, Detection, Persona, ReadResult


def _fits(row: Any) -> bool:
    return isinstance(row, dict) and "instruction" in row and ("output" in row or "response" in row)


def _turns(row: dict[str, Any]) -> list[tuple[Any, str]]:
    def text(key: str) -> str:
        value = row.get(key)
        return value if isinstance(value, str) else ""

    turns: list[tuple[Any, str]] = [("system", text("system"))]
    history = row.get("history")
    for pair in history if isinstance(history, list) else []:
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair):
            turns += [("user", pair[0]), ("assistant", pair[1])]
    question = "\n".join(part for part in (text("instruction"), text("input")) if part.strip())
    return [*turns, ("user", question), ("assistant", text("output") or text("response"))]


class AlpacaReader(DatasetReader):
    """One instruction and its output a row."""

    id = "alpaca"
    title = "Alpaca"
    summary = 'Rows of {"instruction": ..., "input": ..., "output": ...}: one question and one answer each.'
    rank = 30

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_rows

        rows = peek_rows(path)
        hits = sum(_fits(row) for row in rows)
        if not hits:
            return Detection(score=0)
        return Detection(
            score=0.95 * hits / len(rows), why=f"{hits} of the first {len(rows)} rows have `instruction` and `output`"
        )

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import UnusableRow, collect, make_conversation, read_rows

        def convert(row: Any, source: str) -> Conversation:
            if not _fits(row):
                raise UnusableRow("has no `instruction` and `output`")
            return make_conversation(_turns(row), source, row)

        conversations, skipped = collect(read_rows(path), path, convert)
        return ReadResult(conversations=tuple(conversations), skipped=tuple(skipped))
