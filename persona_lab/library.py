"""The library: what exists, as metadata, in one JSON file. TinyDB is hidden behind it and can be replaced.

TinyDB alone loses updates under threads and corrupts the file under processes (measured). Here: one process-lifetime
file lock a home, one RLock around every read-modify-write, a storage that writes temp + fsync + rename, a backup on
start, and a schema version with migrations. Weights, cards and conversations are files, not rows.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout
from tinydb import TinyDB, where
from tinydb.storages import Storage

from persona_lab.errors import BadInput, DiskFull, HomeLocked
from persona_lab.home import Home, write_atomic
from persona_lab.types import now

SCHEMA = 1
Table = Literal["personas", "datasets", "runs", "variants", "reports", "votes"]
TABLES: tuple[Table, ...] = get_args(Table)
Row = dict[str, Any]

# version -> function that turns the whole file's content of that version into the next one's
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """A library file's content in the present schema.

    Raises:
        BadInput: it is of a newer one.
    """
    if not isinstance(data, dict):
        raise BadInput("The library file holds no object.", "Run `persona-lab doctor --repair`.")
    meta: dict[str, Any] = next(iter(data.get("meta", {}).values()), {})
    version = int(meta.get("schema", 1))
    if version > SCHEMA:
        raise BadInput(
            f"The library is of a newer Persona Lab (schema {version}, ours is {SCHEMA}).",
            "Update Persona Lab, or use another folder with --home DIR.",
        )
    while version < SCHEMA:
        data = MIGRATIONS[version](data)
        version += 1
        data.setdefault("meta", {}).setdefault("1", {})["schema"] = version
    return data


class AtomicStorage(Storage):
    """TinyDB storage that reads the file each time and replaces it whole.

    Raises:
        BadInput: the file is not JSON; names the backup.
        DiskFull: on writing; the old file is untouched.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        self._path = path
        self._readonly = readonly

    def read(self) -> dict[str, dict[str, Any]] | None:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return json.loads(text) if text.strip() else None
        except json.JSONDecodeError as error:
            raise BadInput(
                f"The library file {self._path} is damaged ({error}).",
                "Nothing is lost: `persona-lab doctor --repair` puts it aside and makes another from the files "
                f"and the backup {self._path.with_suffix('.backup.json')}.",
            ) from error

    def write(self, data: dict[str, dict[str, Any]]) -> None:
        if self._readonly:
            raise HomeLocked("This library was opened for reading only.", "Open it for writing to change it.")
        write_atomic(self._path, json.dumps(data, ensure_ascii=False))

    def close(self) -> None:
        """Nothing is held open between calls."""


class Library:
    """Metadata of personas, datasets, runs, variants, reports and votes.

    Args:
        home: the data home.
        readonly: take no lock and refuse to write; the file is read anew at each call, so a running page's changes
            are seen.

    Raises:
        HomeLocked: another process has this home open for writing.
    """

    def __init__(self, home: Home, readonly: bool = False) -> None:
        self.home = home
        self.readonly = readonly
        self._guard = threading.RLock()
        self._lock = FileLock(str(home.library.with_suffix(".lock")))
        if not readonly:
            self._acquire()
        try:
            self._storage = AtomicStorage(home.library, readonly)
            if not readonly:
                self._prepare()
            self._db = TinyDB(storage=lambda: self._storage)
        except BaseException:
            self._lock.release()
            raise

    def _acquire(self) -> None:
        owner = self.home.library.with_suffix(".owner")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            pid = owner.read_text().strip() if owner.exists() else "unknown"
            raise HomeLocked(
                f"The data folder {self.home.root} is in use by another Persona Lab (process {pid}).",
                "Use that page, close it first, or work in another folder with --home DIR.",
            ) from error
        with suppress(OSError):  # only for the message above; on a full disk the library still opens for reading
            owner.write_text(str(os.getpid()))

    def _prepare(self) -> None:
        data = self._storage.read()
        if data is None:
            self._storage.write({"meta": {"1": {"schema": SCHEMA, "created": now()}}})
            return
        changed = migrated(json.loads(json.dumps(data)))  # a copy: a step may change what it is given
        with suppress(OSError, DiskFull):  # a full disk must not stop the library from opening
            write_atomic(self.home.library.with_suffix(".backup.json"), self.home.library.read_bytes())
        if changed != data:
            self._storage.write(changed)

    def all(self, table: Table) -> list[Row]:
        """Every row, in the order of insertion."""
        with self._guard:
            return [dict(row) for row in self._fresh(table).all()]

    def get(self, table: Table, row_id: str) -> Row | None:
        """The row with this `id`, or None."""
        with self._guard:
            row = self._fresh(table).get(where("id") == row_id)
            return dict(row) if row else None

    def put(self, table: Table, row: Row) -> None:
        """Insert the row, or replace the one with the same `id`.

        Raises:
            DiskFull: nothing was changed.
        """
        with self._guard:
            self._fresh(table).upsert(row, where("id") == row["id"])

    def remove(self, table: Table, row_id: str) -> Row | None:
        """Remove and return the row with this `id`; None if there was none."""
        with self._guard:
            row = self.get(table, row_id)
            if row is not None:
                self._fresh(table).remove(where("id") == row_id)
            return row

    def new_id(self, table: Table, wanted: str) -> str:
        """`wanted`, or `wanted-2`, `-3`, ... : the first id that is free in the table."""
        with self._guard:
            taken = {row["id"] for row in self.all(table)}
            number, candidate = 1, wanted
            while candidate in taken:
                number += 1
                candidate = f"{wanted}-{number}"
            return candidate

    def _fresh(self, table: Table) -> Any:
        tiny = self._db.table(table)
        tiny.clear_cache()  # a second, read-only instance must not answer from stale queries
        tiny._next_id = None  # likewise for row numbers
        return tiny

    def close(self) -> None:
        """Give the home back to other processes."""
        self._db.close()
        self._lock.release()
