"""Keeps likelihoods and replies across runs, so that nothing is computed twice: `<home>/cache/scores.sqlite`.

A key is a hash of everything that decides the result (weights and the files that say how they are used, prompt, reply
or sampling, device and precision). Losing the file costs time only, so whatever goes wrong with it is said once and the
evaluation goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import Reporter

FORMAT = 1
"""Part of every key: raised when the same inputs give other numbers, such as after a change of the scoring."""
MAX_BYTES = 400 << 20
_AT_ONCE = 500


def key_of(*parts: Any) -> str:
    """A hash of JSON-able parts; equal only for equal parts."""
    text = json.dumps([FORMAT, *parts], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ScoreCache:
    """JSON values by key, in a file that several workers may use at once.

    Args:
        path: of the database; made with its folder at first use.
        reporter: is told, once, when the file cannot be used.
    """

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path, self._reporter = path, reporter
        self._connection: sqlite3.Connection | None = None
        self._broken = False

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values that are there."""
        found: dict[str, Any] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = list(keys[start : start + _AT_ONCE])
            marks = ",".join("?" * len(part))
            for key, value in self._do(f"SELECT key, value FROM scores WHERE key IN ({marks})", part):
                found[key] = json.loads(value)
        return found

    def put(self, values: Mapping[str, Any]) -> None:
        """Add values; they are on disk when this returns."""
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in values.items()]
        self._do("INSERT OR REPLACE INTO scores (key, value) VALUES (?, ?)", rows, many=True)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _do(self, sql: str, values: Sequence[Any], many: bool = False) -> Iterable[tuple[str, str]]:
        if self._broken:
            return []
        try:
            connection = self._open()
            with connection:
                if many:
                    connection.executemany(sql, values)
                    return []
                return connection.execute(sql, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            self._reporter.log(f"{self._path} cannot be used ({error}): scores are not kept for next time.", "warning")
            return []

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=20)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
            if self._path.stat().st_size > MAX_BYTES:
                connection.execute("DELETE FROM scores")
                connection.commit()
                connection.execute("VACUUM")
            self._connection = connection
        return self._connection
