"""Rows of files: JSON, JSONL, CSV, TSV and Parquet, bounded, with what could not be read and why.

Which column means what is the readers' business.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona_lab.datasets.progress import tick
from persona_lab.datasets.toolkit import (
    MAX_BYTES,
    forget_text,
    head_bytes,
    json_type,
    parse_json,
    read_bytes,
    read_text,
    split_of,
)
from persona_lab.errors import BadInput

MAX_ROWS = 500_000


@dataclass(frozen=True)
class Rows:
    """Rows of a file with their numbers (from 1), and those that could not be parsed with the reason."""

    rows: tuple[tuple[int, Any], ...]
    skipped: tuple[tuple[int, str], ...] = ()


def read_rows(path: Path, max_rows: int = MAX_ROWS) -> Rows:
    """The rows of a JSON array, a JSON object of arrays, JSONL, CSV or TSV file.

    Rows are shared between readers (the last file is kept): do not change them. Of an object such as
    `{"train": [...], "test": [...]}` the key becomes each row's `split`.

    Raises:
        BadInput: as `read_text`; or no row can be parsed; or there are more than `max_rows`.
    """
    try:
        stat = path.stat()
        rows = _rows_of(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError as error:
        raise BadInput(f"There is no file {path}.", "Check the path.") from error
    if len(rows.rows) > max_rows:
        raise BadInput(
            f"{path} has {len(rows.rows):,} rows; at most {max_rows:,} are read.", "Use a smaller part of it."
        )
    return rows


@lru_cache(maxsize=1)
def _rows_of(path: Path, changed: int, size: int) -> Rows:
    """`changed` (nanoseconds) and `size` are in the key, so that an edited file is read again."""
    if path.suffix.lower() in (".parquet", ".pq") or head_bytes(path, 4) == b"PAR1":
        return _parquet_rows(path)
    text = read_text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_rows(text, path)
    if path.suffix.lower() in (".jsonl", ".ndjson") or _looks_like_jsonl(text):
        return _jsonl_rows(text, path)
    return _json_rows(parse_json(text, str(path)), path)


def forget_rows() -> None:
    """Let go of the rows kept for the next reader; a file may be hundreds of megabytes."""
    _rows_of.cache_clear()
    forget_text()


def peek_rows(path: Path, count: int = 30) -> list[Any]:
    """The first rows, for `detect`: an empty list where the file has none or cannot be read, never BadInput."""
    try:
        return [row for _, row in read_rows(path).rows[:count]]
    except BadInput:
        return []


def _looks_like_jsonl(text: str) -> bool:
    lines = [line for line in text[:200_000].split("\n", 3)[:3] if line.strip()]
    if len(lines) < 2 or not all(line.lstrip().startswith(("{", "[")) for line in lines[:2]):
        return False
    try:
        return isinstance(json.loads(lines[0]), (dict, list))
    except (ValueError, RecursionError):
        return False


def _jsonl_rows(text: str, path: Path) -> Rows:
    rows: list[tuple[int, Any]] = []
    skipped: list[tuple[int, str]] = []
    for number, (line, end) in enumerate(_lines(text), 1):
        if number % 1024 == 0:
            tick("reading", end / len(text))
        if not line.strip():
            continue
        try:
            rows.append((number, parse_json(line, f"line {number}")))
        except BadInput as error:
            detail = error.__cause__.msg if isinstance(error.__cause__, json.JSONDecodeError) else "nested too deep"
            skipped.append((number, f"is not valid JSON ({detail})"))
    if not rows:
        raise BadInput(
            f"{path} has no line that is JSON; the first, line {skipped[0][0]}, {skipped[0][1]}.",
            "A .jsonl file holds one JSON object on each line.",
        )
    return Rows(tuple(rows), tuple(skipped))


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Each line with where it ends; one at a time, so that a large file is not held twice."""
    start = 0
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end], end
        start = end + 1


def _parquet_rows(path: Path) -> Rows:
    """A Parquet table by pyarrow, which is an optional part of 50 MB."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadInput(
            f"{path} is a Parquet table, and reading those needs pyarrow, which is not installed.",
            "Install it (pip install 'persona-lab[parquet]'), or save the table as CSV or JSONL.",
        ) from error
    read_bytes(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise BadInput(
                    f"{path} has {file.metadata.num_rows:,} rows; at most {MAX_ROWS:,} are read.", "Use a part."
                )
            rows: list[Any] = []
            size = 0
            for batch in file.iter_batches(batch_size=1024):
                size += batch.nbytes
                if size > MAX_BYTES:
                    raise BadInput(f"{path} unpacks to more than {MAX_BYTES / 2**20:,.0f} MiB.", "Use a smaller part.")
                rows += batch.to_pylist()
                tick("reading", len(rows) / max(file.metadata.num_rows, 1))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path} is a damaged Parquet table ({error}).", "Export it again.") from error
    if not rows:
        raise BadInput(f"{path} is a table without rows.", "Export it again.")
    return Rows(tuple(enumerate(rows, 1)))


def _json_rows(value: Any, path: Path) -> Rows:
    if isinstance(value, list):
        return Rows(tuple(enumerate(value, 1)))
    if isinstance(value, dict):
        lists = {key: rows for key, rows in value.items() if isinstance(rows, list) and rows}
        if lists and all(split_of(key) for key in lists):
            labelled = [
                {"split": key, **row} if isinstance(row, dict) else row for key, rows in lists.items() for row in rows
            ]
            return Rows(tuple(enumerate(labelled, 1)))
        for key in ("data", "rows", "examples", "items", "dialogues"):
            if key in lists:
                return Rows(tuple(enumerate(lists[key], 1)))
        return Rows(((1, value),))
    raise BadInput(
        f"{path} holds a JSON {json_type(value)}, but a list of conversations is expected.",
        'For example: [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}]',
    )


def _csv_rows(text: str, path: Path) -> Rows:
    head = text[:20_000]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.split("\n", 1)[0].count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, restkey="__more__")
    rows: list[tuple[int, Any]] = []
    skipped: list[tuple[int, str]] = []
    try:
        for row in reader:
            if "__more__" in row:
                skipped.append((reader.line_num, "has more cells than the header has columns"))
            else:
                rows.append((reader.line_num, {key.strip(): value or "" for key, value in row.items() if key}))
    except csv.Error as error:
        raise BadInput(
            f"{path} cannot be read as CSV at line {reader.line_num}: {error}.", "Export it again."
        ) from error
    if not rows:
        raise BadInput(f"{path} has a header but no usable rows.", "Each line after the header is one row.")
    return Rows(tuple(rows), tuple(skipped))
