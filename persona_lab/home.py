"""Where data lives, and how files are replaced: temp file, fsync, rename.

`--home`, else `PERSONA_LAB_HOME`, else the platform's user-data folder. Never the current folder.
"""

from __future__ import annotations

import errno
import os
import tempfile
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
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
