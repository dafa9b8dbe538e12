"""Examining a home and repairing it: opens the library, also a damaged one, and goes through what was found."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from persona_lab.catalog import Catalog
from persona_lab.chats.votes import Votes
from persona_lab.checkup.findings import Finding, Quarantine, Trouble, reason
from persona_lab.checkup.looking import Looking
from persona_lab.errors import HomeLocked, PersonaLabError
from persona_lab.home import Home, write_atomic
from persona_lab.library import Library, migrated


def examine(home: Home, deep: bool = False) -> list[Finding]:
    """What is wrong with a home; changes nothing, and works beside a running page.

    Args:
        deep: also compare the checksums of weights and checkpoints, and read large datasets.
    """
    quarantine = Quarantine(home)
    damaged = _library_trouble(home, quarantine)
    if damaged is not None:
        return [damaged.finding]  # the rest is known once there is a library
    library = Library(home, readonly=True)
    try:
        return [trouble.finding for trouble in Looking(home, library, quarantine, deep).all()]
    finally:
        library.close()


def repair(home: Home, deep: bool = False) -> list[Finding]:
    """Put aside what is damaged and put right what can be; gives what was found, with what was done.

    Raises:
        HomeLocked: a page or a command has the home open; close it first.
    """
    quarantine = Quarantine(home)
    done = []
    lock = FileLock(str(home.library.with_suffix(".lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise HomeLocked(
            f"The data folder {home.root} is in use, and is not repaired under somebody's hands.",
            "Close the page (or the command) first; `persona-lab doctor` alone only looks.",
        ) from error
    try:
        damaged = _library_trouble(home, quarantine)
        if damaged is not None:
            done.append(_done(damaged))
            if not done[0].done:
                return done
    finally:
        lock.release()
    library = Library(home)
    try:
        catalog = Catalog(home, library)
        catalog.recover()
        Votes(home, library)
        looked = list(Looking(home, library, quarantine, deep).all())
        done += [_done(trouble) for trouble in looked]
        # what was put aside may have left rows without files, and what was put right may lack a row
        catalog.recover()
        done += [_done(trouble) for trouble in Looking(home, library, quarantine, deep=False).rows()]
    finally:
        library.close()
    return done


def _done(trouble: Trouble) -> Finding:
    if trouble.act is None:
        return trouble.finding
    try:
        return trouble.finding.model_copy(update={"done": trouble.act()})
    except (OSError, ValueError, PersonaLabError) as error:
        told = f"It could not be done: {reason(error)}"
        return trouble.finding.model_copy(update={"remedy": told, "mendable": False})


def _library_trouble(home: Home, quarantine: Quarantine) -> Trouble | None:
    path, backup = home.library, home.library.with_suffix(".backup.json")
    if not path.exists():
        return None  # a new one is made, and filled from the files
    wrong, newer = _wrong(path)
    if not wrong:
        return None
    if newer:
        return Trouble(
            Finding(kind="library", path=path.name, what=wrong, remedy="Update Persona Lab.", mendable=False)
        )
    usable = backup.exists() and not _wrong(backup)[0]
    then = "its backup of the last start takes its place" if usable else "another is made from the files of the home"

    def act() -> str:
        told = quarantine.put(path, wrong)
        if usable:
            write_atomic(path, backup.read_bytes())
        elif backup.exists():
            quarantine.put(backup, "The backup cannot be read either.")
        return f"{told}; {then}, and whatever has files is put into it"

    remedy = f"It is put aside, and {then}; whatever has files is put into it."
    return Trouble(Finding(kind="library", path=path.name, what=wrong, remedy=remedy), act)


def _wrong(path: Path) -> tuple[str, bool]:
    """(what is wrong with a library file, empty for nothing; whether it is only too new for us)."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"The library cannot be read: {reason(error)}", False
    if not isinstance(data, dict) or not all(isinstance(table, dict) for table in data.values()):
        return "The library holds no tables.", False
    for name, table in data.items():
        rows = list(table.values())
        if not all(isinstance(row, dict) and (name == "meta" or isinstance(row.get("id"), str)) for row in rows):
            return f"The library's table {name!r} holds what is no row.", False
        if not all(key.isdecimal() for key in table):
            return f"The library's table {name!r} has rows without a number.", False
    with suppress(ValueError, TypeError, AttributeError):
        try:
            migrated(data)
        except PersonaLabError as error:
            return error.message, True
        return "", False
    return "The library does not say of which version it is.", False
