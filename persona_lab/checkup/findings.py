"""A finding, what repairs it, and the quarantine that damaged things are moved to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from persona_lab.formats import told
from persona_lab.home import Home, write_atomic
from persona_lab.types import Frozen, now

QUARANTINE = "quarantine"
NOTES = "notes.json"
Kind = Literal[
    "library", "persona", "dataset", "run", "checkpoint", "variant", "model", "vote", "conversation", "feedback",
    "studio", "settings", "cache", "leftover",
]  # fmt: skip


class Finding(Frozen):
    """One thing that is not as it should be.

    Attributes:
        path: in the home, or the library's row.
        remedy: what `--repair` does, or, where it can do nothing, what a person can.
        mendable: whether `--repair` does something.
        done: what it did; empty before, and where it failed (then `remedy` says why).
    """

    kind: Kind
    path: str
    what: str
    remedy: str
    mendable: bool = True
    done: str = ""


@dataclass(frozen=True)
class Trouble:
    """A finding with what repairs it; `act` gives what it did, in words for people."""

    finding: Finding
    act: Callable[[], str] | None = None


Troubles = Iterator[Trouble]


class Quarantine:
    """Where damaged things are put aside, with a note of where they lay and why."""

    def __init__(self, home: Home) -> None:
        self.home = home
        stem, number = now()[:19].replace(":", "-"), 1
        while (home.root / QUARANTINE / f"{stem}-{number}").exists():
            number += 1
        self.folder = home.root / QUARANTINE / f"{stem}-{number}"
        self.notes: list[dict[str, str]] = []

    def put(self, path: Path, why: str, copy: bool = False) -> str:
        """Move (or copy) a file or folder of the home here; gives what was done.

        Raises:
            OSError: it stays where it is.
        """
        inside = path.relative_to(self.home.root)
        target = self.folder / inside
        while target.exists():
            target = target.with_name(target.name + "-again")
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(path, target)
        else:
            os.replace(path, target)
        self._note(inside.as_posix(), why)
        return f"put aside in {target.relative_to(self.home.root).as_posix()}"

    def keep_row(self, table: str, row: dict[str, object], why: str) -> str:
        """Keep a row of the library that is about to be taken out."""
        target = self.folder / "rows" / table / f"{row['id']}.json"
        write_atomic(target, json.dumps(row, ensure_ascii=False))
        self._note(f"{table} row {row['id']}", why)
        return f"kept in {target.relative_to(self.home.root).as_posix()} and taken out of the library"

    def _note(self, path: str, why: str) -> None:
        self.notes.append({"path": path, "why": why, "time": now()})
        write_atomic(self.folder / NOTES, json.dumps(self.notes, indent=1, ensure_ascii=False))


def reason(error: BaseException) -> str:
    """The first line of an error, short enough for a list."""
    return told(error)[:200]


def damaged_lines(path: Path, usable: Callable[[bytes], object]) -> int:
    """How many whole lines of a file are not usable (`usable` raises ValueError). A torn last line is no damage."""
    return sum(1 for line in path.read_bytes().split(b"\n")[:-1] if line.strip() and not _usable(line, usable))


def keep_whole_lines(path: Path, usable: Callable[[bytes], object], quarantine: Quarantine, why: str) -> str:
    """Put a copy of a file aside and leave only its usable lines."""
    told = quarantine.put(path, why, copy=True)
    good = [line for line in path.read_bytes().split(b"\n")[:-1] if line.strip() and _usable(line, usable)]
    write_atomic(path, b"".join(line + b"\n" for line in good))
    return f"{len(good)} whole lines were kept; the file as it was is {told}"


def _usable(line: bytes, usable: Callable[[bytes], object]) -> bool:
    try:
        usable(line)
    except ValueError:
        return False
    return True
