"""Rows with columns of any name (JSON, JSONL, CSV, TSV): `--map user=COLUMN,assistant=COLUMN`.

Also `system`, `split`, `group` and `id`. Without a mapping, obvious names are taken. Rows of `speaker` and `text` are
lines of a dialogue: the persona's become replies, the rest are lines of other speakers.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import BadInput, Conversation, DatasetReader, Detection, Persona, ReadResult

_ROLES = ("user", "assistant", "system", "split", "group", "id", "speaker", "text", "other")
_PAIRS = (
    ("user", "assistant"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "chosen"),
    ("question", "answer"),
    ("query", "response"),
    ("human", "bot"),
    ("context", "response"),
    ("input", "output"),
    ("input", "target"),
)
_LINES = (
    ("speaker", "text"),
    ("name", "text"),
    ("character", "line"),
    ("speaker", "line"),
    ("name", "mes"),
    ("author", "text"),
)


def _guess(columns: list[str]) -> dict[str, str]:
    """A mapping out of obvious column names; empty if there are none."""
    lower = {column.lower().strip(): column for column in columns}
    for roles, pairs in ((("user", "assistant"), _PAIRS), (("speaker", "text"), _LINES)):
        for pair in pairs:
            if all(name in lower for name in pair):
                labels = {name: lower[name] for name in ("system", "split", "group", "id") if name in lower}
                return {role: lower[name] for role, name in zip(roles, pair, strict=True)} | labels
    return {}


def _columns(rows: list[Any]) -> list[str]:
    return list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))


def _cell(row: dict[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


class ColumnsReader(DatasetReader):
    """Any table: you say which column is whose."""

    id = "columns"
    title = "Rows with columns"
    summary = "CSV, TSV, JSON, JSONL or Parquet with any columns: say which with --map user=QUESTION,assistant=ANSWER."
    rank = 60

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_rows

        columns = _columns(peek_rows(path))
        if not columns:
            return Detection(score=0)
        told = ", ".join(columns[:12])
        guess = _guess(columns)
        if "assistant" in guess:
            return Detection(
                score=0.6, why=f"it has the columns {guess['user']!r} and {guess['assistant']!r} (of {told})"
            )
        if guess:
            return Detection(score=0.5, why=f"each row is a line of a speaker: {guess['speaker']!r}, {guess['text']!r}")
        return Detection(score=0.05, why=f"it has rows with the columns {told}, none of them a known pair")

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        from persona_lab.api import read_rows

        columns = _columns([row for _, row in read_rows(path).rows[:200]])
        return dict.fromkeys(("assistant", "user", "system", "split", "group"), columns)

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        """`mapping`: any of user, assistant, system, split, group, id; or speaker, text; or other.

        Raises:
            BadInput: it names a column that is not there, or too few columns.
        """
        from persona_lab.api import read_rows

        rows = read_rows(path)
        columns = _columns([row for _, row in rows.rows])
        chosen = _checked(mapping, columns, path) if mapping else _guess(columns)
        notes = () if mapping else (f"Columns were guessed: {', '.join(f'{k}={v}' for k, v in chosen.items())}.",)
        if "assistant" in chosen:
            result = _read_pairs(path, rows, {**_labels(columns), **chosen})
        elif {"speaker", "text"} <= chosen.keys():
            result = _read_lines(path, rows, chosen, persona)
        elif "other" in chosen:
            others = [_cell(row, chosen["other"]) for _, row in rows.rows if isinstance(row, dict)]
            result = ReadResult(conversations=(), others=tuple(text for text in others if text.strip()))
        else:
            raise BadInput(
                f"Which columns of {path} hold question and answer is unclear (columns: {', '.join(columns[:30])}).",
                "Name them: --map user=QUESTION_COLUMN,assistant=ANSWER_COLUMN.",
            )
        return result.model_copy(update={"warnings": notes + result.warnings})


def _labels(columns: list[str]) -> dict[str, str]:
    """Columns that mean what they are called, mapped or not."""
    return {name: name for name in ("split", "group", "id") if name in columns}


def _checked(mapping: Mapping[str, str], columns: list[str], path: Path) -> dict[str, str]:
    for role, column in mapping.items():
        if role not in _ROLES:
            raise BadInput(f"--map has the unknown role {role!r}.", f"Known: {', '.join(_ROLES)}.")
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise BadInput(
                f"{path} has no column {column!r} (mapped to {role}).", f"{hint}Its columns: {', '.join(columns[:30])}."
            )
    return dict(mapping)


def _read_pairs(path: Path, rows: Any, chosen: Mapping[str, str]) -> ReadResult:
    from persona_lab.api import UnusableRow, collect, make_conversation

    def convert(row: Any, source: str) -> Conversation:
        if not isinstance(row, dict):
            raise UnusableRow("is not an object with columns")
        reply = _cell(row, chosen["assistant"])
        if not reply.strip():
            raise UnusableRow(f"has nothing in {chosen['assistant']!r}")
        asked = _cell(row, chosen.get("user"))
        if "user" in chosen and not asked.strip():
            raise UnusableRow(f"has nothing in {chosen['user']!r}")
        turns = [("system", _cell(row, chosen.get("system"))), ("user", asked), ("assistant", reply)]
        return make_conversation(turns, source, row, dict(chosen))

    conversations, skipped = collect(rows, path, convert)
    return ReadResult(conversations=tuple(conversations), skipped=tuple(skipped))


def _read_lines(path: Path, rows: Any, chosen: Mapping[str, str], persona: Persona) -> ReadResult:
    from persona_lab.api import dialogue, match_speaker

    table = [(number, row) for number, row in rows.rows if isinstance(row, dict)]
    lines = [(number, _cell(row, chosen["speaker"]).strip(), _cell(row, chosen["text"])) for number, row in table]
    skipped = [*rows.skipped, *((number, "has no text") for number, _, text in lines if not text.strip())]
    spoken = [(speaker, text) for _, speaker, text in lines if text.strip()]
    counts = Counter(speaker for speaker, _ in spoken)
    speaker = match_speaker(counts, [persona.name, persona.field("nickname")])
    if speaker is None:
        told = ", ".join(f"{name} ({count})" for name, count in counts.most_common(10))
        note = f"None of the lines is {persona.name}'s: all are taken as other speakers' ({told})."
        others = tuple(text for _, text in spoken)
        return ReadResult(conversations=(), others=others, skipped=tuple(skipped), warnings=(note,))
    found = dialogue([spoken], speaker, path.name)
    return ReadResult(conversations=tuple(found.conversations), others=tuple(found.others), skipped=tuple(skipped))
