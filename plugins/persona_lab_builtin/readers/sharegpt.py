"""ShareGPT: rows of `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_lab.api import Conversation, DatasetReader, Detection, Persona, ReadResult

_KEYS = ("conversations", "conversation", "messages")
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "bot", "chatgpt", "bing", "bard", "model", "char", "character"), "assistant"),
    "system": "system",
}


def _turns(row: Any) -> list[dict[str, Any]] | None:
    """The row's list of turns, if it is one of this format."""
    found = row if isinstance(row, list) else None
    if isinstance(row, dict):
        found = next((row[key] for key in _KEYS if isinstance(row.get(key), list)), None)
    if not found or not all(isinstance(turn, dict) and "from" in turn for turn in found):
        return None
    return found


class ShareGPTReader(DatasetReader):
    """Turns with `from` and `value`; turns of tools (function_call, observation) are left out and counted."""

    id = "sharegpt"
    title = "ShareGPT"
    summary = 'Rows of {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}.'
    rank = 20

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_rows

        rows = peek_rows(path)
        hits = sum(_turns(row) is not None for row in rows)
        if not hits:
            return Detection(score=0)
        return Detection(
            score=0.97 * hits / len(rows),
            why=f"{hits} of the first {len(rows)} rows hold turns with `from` and `value`",
        )

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import UnusableRow, collect, make_conversation, read_rows

        left_out: dict[str, int] = {}

        def convert(row: Any, source: str) -> Conversation:
            found = _turns(row)
            if found is None:
                raise UnusableRow("has no list of turns with `from` and `value`")
            turns: list[tuple[Any, str]] = []
            if isinstance(row, dict) and isinstance(row.get("system"), str):
                turns.append(("system", row["system"]))
            for turn in found:
                speaker = str(turn["from"]).strip().lower()
                value = turn.get("value")
                if speaker in _ROLES and isinstance(value, str):
                    turns.append((_ROLES[speaker], value))
                else:
                    left_out[speaker] = left_out.get(speaker, 0) + 1
            return make_conversation(turns, source, row if isinstance(row, dict) else None)

        conversations, skipped = collect(read_rows(path), path, convert)
        told = ", ".join(f"{count} of {speaker!r}" for speaker, count in sorted(left_out.items()))
        notes = (f"Turns that are neither a person's nor the character's were left out: {told}.",) if told else ()
        return ReadResult(conversations=tuple(conversations), skipped=tuple(skipped), warnings=notes)
