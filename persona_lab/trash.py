"""Undo for deletions: the trash of a home keeps one thing, what was deleted last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from persona_lab.errors import BadInput
from persona_lab.home import Home, write_atomic
from persona_lab.library import Library, Row


class Trash:
    """The trash of one home: a folder of files, and the library rows that belonged to them."""

    def __init__(self, home: Home, library: Library) -> None:
        self.folder = home.root / "trash"
        self.library = library

    def put_aside(self, folder: Path, row_id: str, rows: Sequence[tuple[str, Row | None]]) -> None:
        """Move `folder` and the rows (table, row) here; what was here before is gone for good."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        note = {"id": row_id, "folder": str(folder), "rows": [[table, row] for table, row in rows]}
        write_atomic(self.folder / "note.json", json.dumps(note))
        try:
            if folder.exists():
                folder.rename(self.folder / "files")
        except OSError as error:  # on Windows, while a program has a file of it open
            shutil.rmtree(self.folder, ignore_errors=True)
            raise BadInput(f"{folder} is in use and was not deleted.", "Stop the chat, or try again later.") from error
        for table, row in rows:
            if row is not None:
                self.library.remove(table, row["id"])  # type: ignore[arg-type]

    def last(self) -> str:
        """The id of what was deleted last and can be brought back; empty if there is nothing."""
        note = self.folder / "note.json"
        return str(json.loads(note.read_bytes())["id"]) if note.exists() else ""

    def bring_back(self) -> str:
        """Undo the last deletion; gives the id of what came back.

        Raises:
            BadInput: nothing was deleted, or its place is taken.
        """
        if not (self.folder / "note.json").exists():
            raise BadInput("There is nothing to bring back.")
        note = json.loads((self.folder / "note.json").read_bytes())
        folder = Path(note["folder"])
        if not folder.is_relative_to(self.folder.parent):  # the home was moved since
            folder = self.folder.parent.joinpath(*folder.parts[-2:])
        if folder.exists():
            fix = "Delete that one first."
            raise BadInput(f"{note['id']!r} exists again, so the deleted one was not brought back.", fix)
        if (self.folder / "files").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "files").rename(folder)
        for table, row in note["rows"]:
            if row is not None:
                self.library.put(table, row)
        shutil.rmtree(self.folder)
        return str(note["id"])
