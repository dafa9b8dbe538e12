"""A batch as a file to take along: CSV, JSONL or Markdown. From rows and ratings to text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from persona_lab.errors import UnknownName
from persona_lab.home import write_atomic
from persona_lab.studio.records import Batch, Rating, Row

FORMATS = ("csv", "jsonl", "md")
COLUMNS = (
    "id", "prompt", "text", "variant", "variant_name", "seed", "reply", "stars", "verdict", "note", "style", "error",
    "adapter", "base", "tokens", "seconds", "created",
)  # fmt: skip
FORMULA = re.compile(r"^[=+\-@\t\r\n]|^\s+[=+\-@]")


def records(batch: Batch, rows: Sequence[Row], ratings: Mapping[str, Rating]) -> list[dict[str, Any]]:
    """A flat object a row, in the order of the columns."""
    found = []
    for row in rows:
        rating = ratings.get(row.id) or Rating(row=row.id)
        judged = {"stars": rating.stars or None, "verdict": rating.verdict, "note": rating.note}
        whole = row.model_dump(mode="json") | judged | {"style": batch.style.name}
        found.append({column: whole[column] for column in COLUMNS})
    return found


def as_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """For spreadsheets. Text that one would take for a formula gets an apostrophe before it (OWASP, CSV injection)."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in record.items()} for record in found)
    return out.getvalue()


def _harmless(value: Any) -> Any:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def as_jsonl(found: Sequence[Mapping[str, Any]]) -> str:
    """One object a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found)


def as_markdown(batch: Batch, found: Sequence[Mapping[str, Any]]) -> str:
    """To read: a heading a prompt, the replies below it."""
    parts = [
        f"# {_line(batch.name)}\n",
        f"{len(found)} replies, {batch.created[:10]}, style: {_line(batch.style.name)}.\n",
    ]
    order = {prompt.name: place for place, prompt in enumerate(batch.prompts)}
    ordered = sorted(found, key=lambda record: (order.get(record["prompt"], 0), record["text"]))
    for (prompt, text), group in groupby(ordered, key=lambda record: (record["prompt"], record["text"])):
        parts.append(f"\n## {_line(prompt)}\n\n{_quoted(text)}\n")
        parts += [_reply(record) for record in group]
    return "\n".join(parts).rstrip() + "\n"


def _reply(record: Mapping[str, Any]) -> str:
    stars = "★" * (record["stars"] or 0)
    judged = " · ".join(part for part in (stars, record["verdict"], _line(record["note"])) if part)
    head = f"**{_line(record['variant_name'])}**, seed {record['seed']}{f' · {judged}' if judged else ''}"
    body = f"*No reply: {_line(record['error'])}*" if record["error"] else _text(record["reply"])
    return f"{head}\n\n{body}\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in _text(text).splitlines())


def _text(text: str) -> str:
    """A reply in Markdown: HTML shown, not run; a line cannot become a heading or a rule."""
    safe = text.replace("<", "&lt;")
    return re.sub(r"^(\s*)([#=>]|-{3})", r"\1\\\2", safe, flags=re.MULTILINE)


def _line(text: str) -> str:
    return " ".join(str(text).split()).replace("<", "&lt;")


def write_file(batch: Batch, rows: Sequence[Row], ratings: Mapping[str, Rating], format: str, out: Path) -> Path:
    """Write the rows to `out`.

    Raises:
        UnknownName: no such format. DiskFull
    """
    found = records(batch, rows, ratings)
    if format == "csv":
        write_atomic(out, "\ufeff" + as_csv(found))  # with a mark, or Excel takes UTF-8 for something else
    elif format == "jsonl":
        write_atomic(out, as_jsonl(found))
    elif format == "md":
        write_atomic(out, as_markdown(batch, found))
    else:
        raise UnknownName("format", format, FORMATS)
    return out
