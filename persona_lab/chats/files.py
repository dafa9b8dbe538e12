"""One JSON file a record: written whole, read with bounds. A file that cannot be read is said in the log and left."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from persona_lab.errors import BadInput
from persona_lab.formats import told, upgraded, written
from persona_lab.home import write_atomic

log = logging.getLogger(__name__)

MOST_BYTES = 16 * 2**20
KINDS = {"SavedChat": "chat", "Vote": "vote", "Feedback": "feedback"}
_ID = re.compile(r"[0-9a-z][0-9a-z_-]{0,63}")
_Record = TypeVar("_Record", bound=BaseModel)


def path_of(folder: Path, record_id: str) -> Path:
    """The file of a record.

    Raises:
        BadInput: the id is none (it may come from a browser, so it must not leave the folder).
    """
    if not _ID.fullmatch(record_id):
        raise BadInput(f"{record_id[:40]!r} is not an id.")
    return folder / f"{record_id}.json"


def write(folder: Path, record_id: str, record: BaseModel) -> None:
    """Write or replace a record.

    Raises:
        BadInput: it is too large to be read again. DiskFull: nothing was changed.
    """
    text = written(KINDS[type(record).__name__], record, exclude_defaults=True)
    if len(text.encode()) > MOST_BYTES:
        raise BadInput("This conversation is too long to be saved (over 16 MB).", "Begin a new one.")
    write_atomic(path_of(folder, record_id), text)


def read(path: Path, model: type[_Record]) -> _Record | None:
    """A record; None where there is none, or none that can be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        return upgraded(KINDS[model.__name__], path.read_bytes(), model)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        log.warning("%s cannot be read and is left alone: %s", path, told(error))
        return None


def read_all(folder: Path, model: type[_Record]) -> Iterator[_Record]:
    """Every record of a folder that can be read, in no order."""
    for path in folder.glob("*.json"):
        record = read(path, model)
        if record is not None:
            yield record
