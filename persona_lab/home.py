"""Where data lives, and how files are replaced: temp file, fsync, rename.

`--home`, else `PERSONA_LAB_HOME`, else the platform's user-data folder. Never the current folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from persona_lab.errors import BadInput, DiskFull


@dataclass(frozen=True)
class Home:
    """The folders of one data home; `root` is absolute and exists."""

    root: Path

    @classmethod
    def resolve(cls, folder: str | Path | None = None) -> Home:
        """The home to use, created if missing.

        Raises:
            BadInput: the folder cannot be made or is a file.
        """
        chosen = (
            folder or os.environ.get("PERSONA_LAB_HOME") or platformdirs.user_data_dir("persona-lab", appauthor=False)
        )
        root = Path(chosen).expanduser().resolve()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"The data folder {root} cannot be used: {error.strerror}.", "Name another with --home DIR."
            ) from error
        return cls(root)

    @property
    def library(self) -> Path:
        return self.root / "library.json"

    @property
    def plugins(self) -> Path:
        return self.root / "plugins"

    def persona(self, persona_id: str) -> Path:
        return self.root / "personas" / persona_id

    def model(self, key: str) -> Path:
        return self.root / "models" / key

    def run(self, run_id: str) -> Path:
        return self.root / "runs" / run_id

    def variant(self, variant_id: str) -> Path:
        return self.root / "variants" / variant_id

    def report(self, report_id: str) -> Path:
        return self.root / "reports" / report_id

    @property
    def traits(self) -> Path:
        return self.root / "traits"

    @property
    def score_cache(self) -> Path:
        return self.root / "cache" / "scores.sqlite"

    @property
    def fingerprints(self) -> Path:
        return self.root / "cache" / "fingerprints.json"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration.json"

    @property
    def token_counts(self) -> Path:
        return self.root / "cache" / "tokens"

    @property
    def exports(self) -> Path:
        return self.root / "exports"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" into `DiskFull` that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk that holds {path} is full.",
                "Free some space (old runs: `persona-lab variants delete ID`) or use another disk with --home DIR.",
            ) from error
        raise


def refuse_existing(out: Path) -> None:
    """Nothing of a user's is overwritten.

    Raises:
        BadInput: there is a file or folder `out` already.
    """
    if out.exists():
        raise BadInput(f"{out} exists already and was left alone.", "Name another file with --out.")


def usable_folder(out: str | Path) -> Path:
    """The folder that results are to be written to, made if need be; found out before the work and not after it.

    Raises:
        BadInput: nothing can be written there. DiskFull
    """
    folder = Path(out).resolve()
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except OSError as error:
        message = f"Nothing can be written to {folder}: {error.strerror or error}."
        raise BadInput(message, "Name another folder with --out.") from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` with `data`, whole or not at all.

    Raises:
        DiskFull: nothing was changed.
    """
    content = data.encode() if isinstance(data, str) else data
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            replace(Path(temporary), path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def replace(source: Path, target: Path) -> None:
    """`os.replace`, patient where a reader has the file open: Windows refuses to replace such a file, for a moment."""
    for wait in (0.01, 0.05, 0.2, 0.5):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if sys.platform != "win32":
                raise
            time.sleep(wait)
    os.replace(source, target)


def flush_folder(folder: Path) -> None:
    """Make renames inside `folder` outlive a power loss, where the system can (Windows cannot open folders)."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network and user-space file systems do not flush folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def need_disk(folder: Path, needed: int) -> None:
    """Refuse to start what cannot end.

    Raises:
        DiskFull: fewer than `needed` bytes are free where `folder` is.
    """
    free = free_disk(folder)
    if free < needed:
        raise DiskFull(
            f"{needed / 1e6:.0f} MB are needed on the disk that holds {folder}, and {free / 1e6:.0f} MB are free.",
            "Free some space or use another disk with --home DIR.",
        )


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
