"""Batches on disk: `studio/batches/<id>/` with batch.json (once), rows.jsonl and ratings.jsonl (append only).

Every row is flushed to disk before the next is asked for, so a crash loses none; a last line without its newline is
ignored by readers and cut off by the next writer. A row written again (after an error) replaces the one before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError

from persona_lab.errors import BadInput, UnknownName
from persona_lab.events import drop_partial_line
from persona_lab.formats import told, upgraded, written
from persona_lab.home import Home, disk_errors, write_atomic
from persona_lab.studio.records import MOST_ROWS, Batch, Rating, Row
from persona_lab.types import Frozen, slug

Record = TypeVar("Record", Row, Rating)


class BatchStore:
    """The batches of one home; rows have one writer at a time, whichever process it is in."""

    def __init__(self, home: Home) -> None:
        self.root = home.root / "studio" / "batches"
        self._lock = threading.RLock()

    def ids(self) -> list[str]:
        """Every batch, newest first."""
        found = sorted(self.root.glob("*/batch.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in found]

    def folder(self, batch_id: str) -> Path:
        """The batch's folder.

        Raises:
            UnknownName
        """
        folder = self.root / batch_id
        if not batch_id or folder.parent != self.root or not (folder / "batch.json").exists():
            raise UnknownName("batch", batch_id, self.ids())
        return folder

    def add(self, batch: Batch) -> Batch:
        """Keep a new batch, under its id or the next free one.

        Raises:
            BadInput: too many rows. DiskFull
        """
        if batch.size > MOST_ROWS:
            raise BadInput(
                f"{batch.size:,} replies are more than a batch holds ({MOST_ROWS:,}).",
                "Choose fewer prompts, variants or seeds.",
            )
        with self._lock, disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            stem, number = slug(batch.name, "batch"), 1
            while True:
                batch_id = stem if number == 1 else f"{stem}-{number}"
                try:
                    (self.root / batch_id).mkdir()
                    break
                except FileExistsError:
                    number += 1
            made = batch.model_copy(update={"id": batch_id})
            write_atomic(self.root / batch_id / "batch.json", written("batch", made, indent=1))
            return made

    def batch(self, batch_id: str) -> Batch:
        """What was asked for.

        Raises:
            UnknownName. BadInput: its file is damaged.
        """
        path = self.folder(batch_id) / "batch.json"
        try:
            return upgraded("batch", path.read_bytes(), Batch)
        except ValueError as error:
            raise BadInput(f"The batch file {path} cannot be read: {told(error)}.", "Delete the batch.") from error

    def rows(self, batch_id: str) -> dict[str, Row]:
        """Rows written so far, by id."""
        return {row.id: row for row in _read(self.folder(batch_id) / "rows.jsonl", Row)}

    def ratings(self, batch_id: str) -> dict[str, Rating]:
        """The last rating of each rated row."""
        last = {rating.row: rating for rating in _read(self.folder(batch_id) / "ratings.jsonl", Rating)}
        return {row: rating for row, rating in last.items() if rating.given}

    def add_row(self, batch_id: str, row: Row) -> None:
        """Append a row; it is on the disk when this returns. Call inside `writing`."""
        _append(self.folder(batch_id) / "rows.jsonl", row)

    def add_rating(self, batch_id: str, rating: Rating) -> None:
        """Append a rating; it is on the disk when this returns."""
        with self._lock:
            _append(self.folder(batch_id) / "ratings.jsonl", rating)

    @contextmanager
    def writing(self, batch_id: str) -> Iterator[None]:
        """Be the one writer of the batch's rows.

        Raises:
            BadInput: another process is.
        """
        lock = FileLock(str(self.folder(batch_id) / "rows.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise BadInput(f"Batch {batch_id!r} is being written by another Persona Lab.", "Wait for it.") from error
        try:
            yield
        finally:
            lock.release()


def _read(path: Path, model: type[Record]) -> list[Record]:
    """The whole lines of a file; a line that is none of ours (a torn one, a newer version's) is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            found.append(model.model_validate_json(line))
        except ValidationError:
            continue
    return found


def _append(path: Path, record: Frozen) -> None:
    drop_partial_line(path)
    with disk_errors(path.parent), path.open("ab") as file:
        file.write(record.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
