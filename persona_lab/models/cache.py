"""The folders under `<home>/models`: built beside, fsynced, renamed; one process at a time; marked when whole.

A folder without its marker, `persona_lab.json`, does not count. Does not know where models come from.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from persona_lab.errors import DiskFull
from persona_lab.home import Home, disk_errors, flush_folder, need_disk
from persona_lab.models.weights import read_json, safetensors_files, weight_disk_errors
from persona_lab.types import BaseModelInfo, now

if TYPE_CHECKING:
    from persona_lab.api import Reporter

MARKER = "persona_lab.json"


def cached(home: Home, key: str) -> BaseModelInfo | None:
    """The whole model in `<home>/models/<key>`, or None."""
    folder = home.model(key)
    if not (folder / MARKER).is_file() or not safetensors_files(folder):
        return None
    marker = read_json(folder / MARKER)
    return BaseModelInfo(
        id=str(marker.get("id", key)),
        key=key,
        name=str(marker.get("name", key)),
        path=str(folder),
        ready=True,
        license=str(marker.get("license", "unknown")),
        parameters=int(marker.get("parameters", 0)),
        architecture=str(marker.get("architecture", "")),
        config=read_json(folder / "config.json"),
        origin=str(marker.get("origin", "")),
    )


def disk_full(folder: Path) -> DiskFull:
    """The error for a disk that filled up while models were written."""
    return DiskFull(f"The disk that holds {folder} is full.", "Free some space or use another disk with --home DIR.")


def build(
    home: Home, key: str, reporter: Reporter, needed: int, make: Callable[[Path], dict[str, Any]]
) -> BaseModelInfo:
    """The cached model, made by `make` first if it is not there.

    Args:
        needed: bytes of disk that the making takes.
        make: fills an empty folder and gives the marker's fields: id, name, source, sha256, license, parameters,
            architecture.

    Raises:
        DiskFull: nothing is left behind. Whatever `make` raises.
    """
    models = home.model(key).parent
    with disk_errors(models):
        models.mkdir(parents=True, exist_ok=True)
    with _locked(models / f".{key}.lock", key, reporter):
        ready = cached(home, key)
        if ready:
            return ready
        _remove_remains(models, key)
        need_disk(models, needed)
        temporary = Path(tempfile.mkdtemp(dir=models, prefix=f".{key}.", suffix=".tmp"))
        try:
            with weight_disk_errors(models):
                marker = make(temporary) | {"created": now()}
                (temporary / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
                _put_in_place(temporary, home.model(key))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    done = cached(home, key)
    assert done is not None, f"{key} was just put in place"
    return done


@contextmanager
def _locked(path: Path, key: str, reporter: Reporter) -> Iterator[None]:
    lock = FileLock(path)
    waiting = False
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            if not waiting:
                reporter.phase(f"Waiting for another process that prepares {key}")
                waiting = True
            reporter.step(0, 1)  # lets the user cancel
    try:
        yield
    finally:
        lock.release()


def _remove_remains(models: Path, key: str) -> None:
    """Under the lock, whatever an interrupted build left is nobody's."""
    for left in models.glob(f".{key}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    if (models / key).is_dir():
        shutil.rmtree(models / key)


def _put_in_place(temporary: Path, target: Path) -> None:
    for path in (p for p in temporary.rglob("*") if p.is_file()):
        path.chmod(0o644)
        handle = os.open(path, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    temporary.chmod(0o755)
    os.rename(temporary, target)
    flush_folder(target.parent)
