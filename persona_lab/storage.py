"""What a home keeps on the disk, by kind, and what of it can go. Deletes caches, logs and trash; never work."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from persona_lab.errors import BadInput, UnknownName
from persona_lab.home import Home
from persona_lab.types import Frozen

KINDS = {
    "models": ("Base models", "Fetched or trained as foundations; fetched ones can be fetched again."),
    "traits": ("Traits", "Trait sliders: your own, and the vectors of all for each base model."),
    "variants": ("Variants", "The trained weights of your characters."),
    "runs": ("Runs", "Logs, curves, reports and checkpoints of trainings and evaluations."),
    "personas": ("Characters and data", "Cards, pictures, conversations and probes."),
    "chats": ("Conversations", "What was said in the Chat tab."),
    "votes": ("Votes", "Blind comparisons, with the replies that were compared."),
    "feedback": ("Feedback", "Thumbs and corrections."),
    "studio": ("Studio", "Prompts, styles, batches and ratings."),
    "exports": ("Exports", "What was taken along to this folder."),
    "plugins": ("Plugins", "Files of your own."),
    "cache": ("Cache", "Scores, token counts and blends; they are computed again when needed."),
    "logs": ("Logs", "What the chat worker said, for finding faults."),
    "backups": ("Backups", "Made in the Settings tab; another disk is a better place for them."),
    "replaced": ("Replaced", "What was there before a backup was put back."),
    "quarantine": ("Quarantine", "Damaged files that `persona-lab doctor --repair` put aside."),
    "trash": ("Trash", "What was deleted last. Once this is empty, it cannot be brought back."),
}
CLEANED = ("cache", "logs", "trash")


class Use(Frozen):
    """One kind of thing in the home."""

    kind: str
    title: str
    about: str
    path: str
    bytes: int
    files: int
    can_go: bool


def usage(home: Home) -> list[Use]:
    """Every kind, largest first, then what else lies in the home. Links are not followed."""
    found = [_use(home.root / kind, kind, *words, can_go=kind in CLEANED) for kind, words in KINDS.items()]
    rest = ("Everything else", "The library, its backup and the settings.")
    other = _use(home.root, "other", *rest, leave_out=set(KINDS))
    return [*sorted(found, key=lambda use: use.bytes, reverse=True), other]


def _use(
    folder: Path, kind: str, title: str, about: str, can_go: bool = False, leave_out: set[str] | None = None
) -> Use:
    size, files = _size(folder, leave_out)
    return Use(kind=kind, title=title, about=about, path=str(folder), bytes=size, files=files, can_go=can_go)


def _size(folder: Path, leave_out: set[str] | None = None) -> tuple[int, int]:
    total = count = 0
    for where, folders, files in os.walk(folder):
        if leave_out is not None and Path(where) == folder:
            folders[:] = [name for name in folders if name not in leave_out]
        for name in files:
            try:
                total += (Path(where) / name).lstat().st_size
            except FileNotFoundError:  # written and renamed by a worker meanwhile
                continue
            count += 1
    return total, count


def clean(home: Home, kind: str) -> int:
    """Delete a cache, the logs or the trash; gives the bytes that were freed.

    Raises:
        UnknownName: no such kind. BadInput: it holds work and is not deleted.
    """
    if kind not in KINDS:
        raise UnknownName("kind", kind, CLEANED)
    if kind not in CLEANED:
        raise BadInput(f"{KINDS[kind][0]} are not deleted as a whole.", "Delete single ones where they are listed.")
    folder = home.root / kind
    freed, _ = _size(folder)
    if folder.exists():
        # out of the way in one step, so that nobody finds half of it
        away = Path(tempfile.mkdtemp(dir=home.root, prefix=".gone-"))
        try:
            folder.rename(away / kind)
        except PermissionError as error:  # on Windows, while a program has a file of it open
            away.rmdir()
            raise BadInput(f"{folder} is in use.", "Stop the chat, or try again after the next start.") from error
        shutil.rmtree(away)
    return freed
