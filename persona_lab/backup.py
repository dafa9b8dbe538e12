"""Backup and restore: everything that cannot be made again, in one checked zip.

    library.json · settings.json · personas/ · votes/ · chats/ · feedback/ · studio/ · runs/ · variants/ · reports/
    and, when asked for, the weights: variants/<id>/weights and the foundations under models/
    backup.json                 last: what this is, and the size and sha256 of every other file

Left out: checkpoints, caches, logs of the chat, fetched models, plugins (they are programs), the trash, and whatever
opens doors (passwords, guest links). A backup needs no lock: files are replaced whole or only appended to, and readers
of the latter pass over a torn last line. Restoring never loses what is there: what a file replaces is moved to
`replaced/<time>/`, and what the backup does not hold stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import ValidationError

from persona_lab import __version__
from persona_lab.datasets.held_out import LEDGER
from persona_lab.errors import BadInput
from persona_lab.home import Home, disk_errors, flush_folder, need_disk, replace, write_atomic
from persona_lab.library import TABLES, Library, Row, migrated
from persona_lab.models import kept
from persona_lab.models.weights import safetensors_files, sha256
from persona_lab.personas.bounded import safe_path
from persona_lab.types import Frozen, now

FORMAT, VERSION = "persona-lab-backup", 1
MANIFEST, LIBRARY, SETTINGS = "backup.json", "library.json", "settings.json"
FOLDERS = ("personas", "votes", "chats", "feedback", "studio", "traits", "runs", "variants", "reports", "models")
LEFT_OUT = ("checkpoints", "artifact")
"""Of a run: large, and of no use once it is finished."""
REPLACED = "replaced"
MOST_FILES = 500_000
MOST_MANIFEST = 256 * 2**20
MOST_LIBRARY = 512 * 2**20
BLOCK = 1 << 20
SPARE_BYTES = 16 * 2**20
GROWING = (LEDGER, "rows.jsonl", "ratings.jsonl")
"""Files that are only appended to, line by line; what was appended after the backup must not be forgotten."""
MARKERS = ("card.json", "variant.json", "job.json", "batch.json", "persona_lab.json")
"""Written last in their folders, since they say that the folder is whole."""


class BackedUp(Frozen):
    """What a backup holds."""

    file: str
    bytes: int
    files: int
    weights: bool
    personas: int
    variants: int
    runs: int
    created: str


class Restored(Frozen):
    """What a restore did. `replaced`: the folder that holds what was there before; empty: nothing was replaced."""

    file: str
    created: str
    restored: int
    unchanged: int
    left: int
    """Files of runs that are in the home already: those records only grow, so the ones there are newer."""
    replaced: str


class _File(Frozen):
    bytes: int
    sha256: str


class _Manifest(Frozen):
    format: str
    version: int
    created: str
    persona_lab: str
    weights: bool
    files: dict[str, _File]


# --- making one -----------------------------------------------------------------------------------


def back_up(home: Home, out: Path, weights: bool = False) -> BackedUp:
    """Write a backup of the home; a running page and its runs need not stop.

    Args:
        weights: also of variants and foundations.

    Raises:
        BadInput: `out` is there already, or lies in a folder that is backed up. DiskFull
    """
    out = out.expanduser().absolute()
    if out.exists():
        raise BadInput(f"{out} is there already, and a backup overwrites nothing.", "Name another file.")
    if any(out.is_relative_to(home.root / folder) for folder in FOLDERS):
        raise BadInput(f"{out} lies inside of what is backed up.", "Name a file elsewhere, best on another disk.")
    created = now()
    files: dict[str, _File] = {}
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w+b") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                    for path, source in chosen(home, weights):
                        written = _add(archive, path, source)
                        if written is not None:
                            files[path] = written
                    manifest = _Manifest(
                        format=FORMAT, version=VERSION, created=created, persona_lab=__version__, weights=weights,
                        files=files,
                    )  # fmt: skip
                    archive.writestr(MANIFEST, manifest.model_dump_json(indent=0))
                file.flush()
                os.fsync(file.fileno())
            replace(Path(temporary), out)
        finally:
            Path(temporary).unlink(missing_ok=True)
        flush_folder(out.parent)
    return _summary(out, manifest)


def chosen(home: Home, weights: bool) -> Iterator[tuple[str, Path]]:
    """(path in the backup, file) of everything that is backed up; the library first, since files are the truth."""
    for name in (LIBRARY, SETTINGS):
        if (home.root / name).is_file():
            yield name, home.root / name
    foundations = set(kept.ids(home)) if weights else set()
    for folder in FOLDERS:
        for where, folders, names in os.walk(home.root / folder):
            inside = Path(where).relative_to(home.root).parts
            folders[:] = sorted(name for name in folders if _enter(home, (*inside, name), weights, foundations))
            for name in sorted(names):
                path = Path(where) / name
                if not name.startswith(".") and not name.endswith((".tmp", ".lock")) and not path.is_symlink():
                    yield path.relative_to(home.root).as_posix(), path


def _enter(home: Home, parts: tuple[str, ...], weights: bool, foundations: set[str]) -> bool:
    """Whether a folder, by its path in the home, is backed up."""
    if parts[-1].startswith("."):
        return False
    if parts[0] == "models" and len(parts) == 2:
        return parts[1] in foundations
    if parts[0] == "runs" and len(parts) == 3:
        return parts[2] not in LEFT_OUT or (weights and parts[2] == "artifact")
    if parts[0] == "variants" and len(parts) == 3 and parts[2] == "weights":
        # a prompt's pool of examples lies there too: data, and small
        return weights or not safetensors_files(home.root.joinpath(*parts))
    return True


def _add(archive: zipfile.ZipFile, path: str, source: Path) -> _File | None:
    """Copy a file as long as it is now into the archive; None where it went away meanwhile.

    Raises:
        BadInput: it cannot be read, so that this would be no whole backup.
    """
    try:
        file = _patiently(source)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise BadInput(f"{source} cannot be read.", "Give yourself the right to, or move it away.") from error
    with file:
        left = os.fstat(file.fileno()).st_size
        info = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
        info.compress_type = zipfile.ZIP_STORED if path.endswith(".safetensors") else zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        digest, size = hashlib.sha256(), 0
        with archive.open(info, "w", force_zip64=True) as target:
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                target.write(block)
                size, left = size + len(block), left - len(block)
    return _File(bytes=size, sha256=digest.hexdigest())


def _patiently(source: Path) -> IO[bytes]:
    """Open to read; Windows refuses a file for the moment in which it is replaced."""
    for wait in (0.05, 0.2, 0.5):
        try:
            return source.open("rb")
        except PermissionError:
            if sys.platform != "win32":
                raise
            time.sleep(wait)
    return source.open("rb")


def _summary(file: Path, manifest: _Manifest) -> BackedUp:
    def count(folder: str, marker: str) -> int:
        return sum(1 for path in manifest.files if path.startswith(f"{folder}/") and path.endswith(f"/{marker}"))

    return BackedUp(
        file=str(file),
        bytes=file.stat().st_size,
        files=len(manifest.files),
        weights=manifest.weights,
        personas=sum(1 for path in manifest.files if PurePosixPath(path).match("personas/*/card.json")),
        variants=count("variants", "variant.json"),
        runs=count("runs", "job.json"),
        created=manifest.created,
    )


# --- putting it back ------------------------------------------------------------------------------


def check(file: Path) -> BackedUp:
    """Read a whole backup and compare every file with its checksum; changes nothing.

    Raises:
        BadInput: it is none, damaged, changed, or of a newer version.
    """
    with _opened(file) as archive:
        manifest = _manifest(archive, file)
        for path, known in manifest.files.items():
            _copy(archive, path, known, None, file)
    return _summary(file, manifest)


def restore(home: Home, library: Library, file: Path) -> Restored:
    """Put a backup into the home; see the head of this module for what happens to what is there.

    The whole backup is checked before anything is changed. Breaking off in the middle loses nothing: do it again.

    Raises:
        BadInput: it is none, damaged, changed, or of a newer version. DiskFull
    """
    with _opened(file) as archive:
        manifest = _manifest(archive, file)
        need_disk(home.root, sum(known.bytes for known in manifest.files.values()) + SPARE_BYTES)
        with disk_errors(home.root):
            staging = Path(tempfile.mkdtemp(dir=home.root, prefix=".restore-"))
            try:
                for path, known in manifest.files.items():
                    _copy(archive, path, known, staging / path, file)
                tables = _tables(staging / LIBRARY, file)
                return _put_back(home, library, staging, manifest, tables, file)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def _put_back(
    home: Home,
    library: Library,
    staging: Path,
    manifest: _Manifest,
    tables: dict[str, list[Row]],
    file: Path,
) -> Restored:
    aside = _free_name(home.root / REPLACED)
    there = {path.parent.name for path in home.root.glob("runs/*/job.json")}
    counts = {"restored": 0, "unchanged": 0, "left": 0}
    paths = [path for path in manifest.files if path != LIBRARY]
    for path in sorted(paths, key=lambda path: (PurePosixPath(path).name in MARKERS, path)):
        parts = PurePosixPath(path).parts
        target = home.root / path
        if parts[0] == "runs" and parts[1] in there:
            counts["left"] += 1
        elif target.is_file() and _same(target, manifest.files[path]):
            counts["unchanged"] += 1
        elif PurePosixPath(path).name in GROWING and target.is_file():
            _join(staging / path, target, aside / path)
            counts["restored"] += 1
        else:
            _move(staging / path, target, aside / path)
            counts["restored"] += 1
    if any(_changes(library, table, row, there=True) for table in tables for row in tables[table]):
        aside.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home.library, aside / LIBRARY)
    for table, rows in tables.items():
        for row in rows:
            if _changes(library, table, row):
                library.put(table, row)  # type: ignore[arg-type]
    replaced = str(aside) if aside.exists() else ""
    return Restored(file=str(file), created=manifest.created, replaced=replaced, **counts)


def _changes(library: Library, table: str, row: Row, there: bool = False) -> bool:
    """Whether the row is to be put back. `there`: only if it takes the place of another."""
    known = library.get(table, row["id"])  # type: ignore[arg-type]
    # a run that is there knows more of itself than an older row of it
    return known != row and not (known is None and there) and not (known is not None and table == "runs")


def _same(path: Path, known: _File) -> bool:
    return path.stat().st_size == known.bytes and sha256(path) == known.sha256


def _join(source: Path, target: Path, aside: Path) -> None:
    """Lines that only the backup has come before those that are there: what was held out, written or rated stays so."""
    present = target.read_bytes()
    known = set(present.splitlines())
    missing = [line for line in source.read_bytes().splitlines() if line and line not in known]
    if missing:
        write_atomic(aside, present)
        write_atomic(target, b"".join(line + b"\n" for line in missing) + present)


def _move(source: Path, target: Path, aside: Path) -> None:
    if target.exists():
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(target, aside)
    for parent in reversed(target.parents):
        if parent.is_file():  # a file lies where a folder is needed
            raise BadInput(f"{parent} is a file where the backup has a folder.", "Move it away and do it again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _free_name(folder: Path) -> Path:
    stem, number = now()[:19].replace(":", "-"), 1
    while (folder / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return folder / (stem if number == 1 else f"{stem}-{number}")


# --- reading what may be damaged, or no backup at all ---------------------------------------------


def _opened(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except FileNotFoundError as error:
        raise BadInput(f"There is no file {file}.", "Name a backup.") from error
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BadInput(f"{file} is no backup, or it is cut off: {error}.", "Use another copy.") from error


def _manifest(archive: zipfile.ZipFile, file: Path) -> _Manifest:
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) > MOST_FILES or len(infos) != len(archive.infolist()):
        raise BadInput(f"{file} holds too many files, or two of one name.", "No backup of ours does.")
    info = infos.get(MANIFEST)
    if info is None or info.file_size > MOST_MANIFEST:
        raise BadInput(f"{file} is a zip, but no backup of Persona Lab.", "Use what `persona-lab backup` wrote.")
    try:
        with archive.open(info) as entry:
            document = json.loads(entry.read(MOST_MANIFEST + 1))
        if document.get("format") != FORMAT:
            raise ValueError(f"it is a {str(document.get('format'))[:40]!r}")
        if int(document.get("version", 0)) > VERSION:
            raise ValueError(f"it is of a newer Persona Lab (version {document['version']}): update Persona Lab")
        manifest = _Manifest.model_validate(document)
    except (ValidationError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        what = str(error).splitlines()[0]
        raise BadInput(f"{file} cannot be used as a backup: {what}.", "Use another copy.") from error
    for path in manifest.files:
        _check_path(path, infos.get(path), file)
    if extra := sorted(set(infos) - set(manifest.files) - {MANIFEST}):
        raise BadInput(f"{file} holds {extra[0][:100]!r}, which it does not name.", "Do not trust this file.")
    return manifest


def _check_path(path: str, info: zipfile.ZipInfo | None, file: Path) -> None:
    parts = PurePosixPath(path).parts
    known = path in (LIBRARY, SETTINGS) or (len(parts) > 1 and parts[0] in FOLDERS)
    if not known or not safe_path(path) or any(part.startswith(".") for part in parts):
        raise BadInput(f"{file} would write {path[:100]!r}, which is no place of ours.", "Do not trust this file.")
    if info is None:
        raise BadInput(f"{file} is incomplete: {path[:100]!r} is missing.", "Use another copy.")
    packed = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if stat.S_ISLNK(info.external_attr >> 16) or info.flag_bits & 0x1 or packed:
        raise BadInput(f"{file}: {path[:100]!r} is a link, encrypted or packed in another way.", "Use another copy.")


def _copy(archive: zipfile.ZipFile, path: str, known: _File, target: Path | None, file: Path) -> None:
    """Unpack a file, no further than its announced size, and compare it with its checksum."""
    digest, left = hashlib.sha256(), known.bytes
    sink: IO[bytes] | None = None
    try:
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            sink = target.open("wb")
        with archive.open(path) as entry:
            while block := entry.read(min(BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    break
                digest.update(block)
                if sink is not None:
                    sink.write(block)
        if sink is not None:
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BadInput(
            f"{file} is damaged at {path[:100]!r}: {error}.", "Nothing was changed. Use another copy."
        ) from error
    finally:
        if sink is not None:
            sink.close()
    if left != 0 or digest.hexdigest() != known.sha256:
        fix = "Nothing was changed. Use another copy."
        raise BadInput(f"{file}: {path[:100]!r} was changed since the backup was made.", fix)


def _tables(path: Path, file: Path) -> dict[str, list[Row]]:
    """The rows of a backup's library, in today's schema."""
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > MOST_LIBRARY:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        data = migrated(json.loads(path.read_bytes()))
        found: dict[str, list[Row]] = {table: [dict(row) for row in data.get(table, {}).values()] for table in TABLES}
        if any(not isinstance(row.get("id"), str) for rows in found.values() for row in rows):
            raise ValueError("a row has no id")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{file}: its library cannot be read: {error}.", "Nothing was changed.") from error
    return found
