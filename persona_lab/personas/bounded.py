"""Bounded reading of what strangers' cards are made of: JSON, YAML and zip. Nothing here knows what a card is.

A small file must not become a large thing in memory: the number of values is counted before JSON is parsed, YAML
aliases are refused (they multiply), and a zip is refused by what it claims to hold before any of it is unpacked.
"""

from __future__ import annotations

import io
import math
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from persona_lab.datasets.toolkit import parse_json
from persona_lab.errors import BadInput

MAX_VALUES = 1_000_000
MAX_DEPTH = 64
MAX_YAML = 1 * 2**20
MAX_YAML_EVENTS = 100_000
MAX_ENTRIES = 2_000
MAX_UNPACKED = 160 * 2**20
MAX_ENTRY = 64 * 2**20
MAX_RATIO = 200
MAX_NAME = 300
MAX_PART = 200
_RATIO_FROM = 1 * 2**20
_ODD_NUMBER = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{309}")
_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")  # of Windows
_DRIVE = re.compile(r"^[A-Za-z]:")
_AGAIN = "Export or download it again."


# --- JSON and YAML --------------------------------------------------------------------------------


def bounded_json(text: str, name: str) -> Any:
    """Text as one JSON document of at most a million values; numbers that JSON cannot write (NaN, 1e999) become null.

    Raises:
        BadInput: it is no JSON, too deep, or holds too many values.
    """
    values = text.count(",") + text.count("[") + text.count("{")
    if values > MAX_VALUES:
        raise BadInput(
            f"{name} holds about {values:,} values; at most {MAX_VALUES:,} are read.", "No card or lorebook is so big."
        )
    value = parse_json(text, name)
    return _finite(value) if _ODD_NUMBER.search(text) else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def bounded_yaml(text: str, name: str) -> Any:
    """Text as one YAML document in which every value is text, a list or a mapping; tags mean nothing.

    Raises:
        BadInput: it is no YAML, too large or too deep, or uses aliases.
    """
    import yaml

    if len(text) > MAX_YAML:
        raise BadInput(
            f"{name} is a YAML file of {len(text):,} characters; at most {MAX_YAML:,} are read.", "It is no character."
        )
    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, Loader=loader)):
            if isinstance(event, yaml.AliasEvent):
                raise BadInput(f"{name} uses YAML aliases (*{event.anchor}), which are not read.", "Write it out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or count > MAX_YAML_EVENTS:
                raise BadInput(f"{name} is nested too deeply, or holds too many values.", "No character is; " + _AGAIN)
        return yaml.load(text, Loader=loader)  # noqa: S506 - BaseLoader makes text, lists and dicts, nothing else
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        told = f" at line {where.line + 1}" if where is not None else ""
        what = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise BadInput(
            f"{name} is neither JSON nor usable YAML: {what}{told}.", "The file may be cut off; export it again."
        ) from error


# --- zip ------------------------------------------------------------------------------------------


def is_zip(data: bytes) -> bool:
    """Whether this is a zip, also one behind a picture (as some programs write their CHARX)."""
    return data.startswith(b"PK") or (data.startswith(b"\xff\xd8") and b"PK\x05\x06" in data[-70_000:])


def unzip(data: bytes, name: str) -> dict[str, bytes]:
    """Every file of a zip by its path, unpacked in memory.

    Raises:
        BadInput: damaged, encrypted, too many or too large files, or a path that leads out of the archive.
    """
    # the directory is parsed whole by zipfile, so its length is bounded before that
    if data.count(b"PK\x01\x02") > 2 * MAX_ENTRIES:
        raise BadInput(f"{name} holds more than {MAX_ENTRIES:,} files.", "No character or bundle does.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = _checked(archive, name)
            return {info.filename: _unpacked(archive, info, name) for info in infos}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        raise BadInput(f"{name} is a damaged zip archive: {str(error)[:120]}.", _AGAIN) from error


def _checked(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MAX_ENTRIES:
        raise BadInput(f"{name} holds {len(infos):,} files; at most {MAX_ENTRIES:,} are read.", _AGAIN)
    total = sum(info.file_size for info in infos)
    if total > MAX_UNPACKED:
        raise BadInput(
            f"{name} would unpack to {total / 2**20:,.0f} MiB; at most {MAX_UNPACKED / 2**20:,.0f} are read.",
            "It may be a zip bomb.",
        )
    seen: set[str] = set()
    for info in infos:
        _check_entry(info, name)
        key = info.filename.casefold()
        if key in seen:
            raise BadInput(f"{name} holds two files called {info.filename[:100]!r}.", _AGAIN)
        seen.add(key)
    for key in seen:
        if any(str(folder) in seen for folder in PurePosixPath(key).parents):
            raise BadInput(f"{name} holds {key[:100]!r} inside of what is a file.", _AGAIN)
    return infos


def _check_entry(info: zipfile.ZipInfo, name: str) -> None:
    what = f"{name}: its file {info.filename[:100]!r}"
    if not safe_path(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
        raise BadInput(f"{what} leads out of the archive.", "Do not trust this file; nothing was read.")
    if info.flag_bits & 0x1:
        raise BadInput(f"{what} is encrypted.", "Pack it again without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # others unpack a few bytes to gigabytes before a limit is looked at
        raise BadInput(f"{what} is packed in a way that cards are not.", "Pack it again as an ordinary zip.")
    if info.file_size > MAX_ENTRY:
        raise BadInput(f"{what} is larger than {MAX_ENTRY / 2**20:,.0f} MiB.", "Make it smaller.")
    if info.file_size > _RATIO_FROM and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise BadInput(f"{what} is packed {info.file_size // max(info.compress_size, 1):,} to 1.", "A zip bomb is so.")


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise BadInput(f"{name}: its file {info.filename[:100]!r} is not as long as it says.", _AGAIN)
    return content


def safe_path(path: str) -> bool:
    """Whether an archive's path stays inside the folder it is unpacked into, on every system."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and len(path) <= MAX_NAME
        and path.isprintable()
        and not path.startswith("/")
        and "\\" not in path
        and not _DRIVE.match(path)
        and path == str(PurePosixPath(path))
        and all(part != ".." and not part.endswith((".", " ")) and ":" not in part for part in parts)
        and not set('<>"|?*') & set(path)
        and not any(_DEVICE.fullmatch(part) for part in parts)
        and all(len(part.encode("utf-8", "replace")) <= MAX_PART for part in parts)
    )


def pack(files: Mapping[str, bytes | str]) -> bytes:
    """A zip of these files; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            info = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()
