"""What readers are made of: bounded reading of bytes, text and JSON. Rows are in rows.py.

Everything here is light and caps what it reads. It does not decide which format a file is of (reading.py and the
readers do), nor make conversations (turns.py).
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona_lab.errors import BadInput
from persona_lab.types import Split

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 64

_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"PK\x03\x04": "a zip archive",
    b"GGUF": "a GGUF model",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "gzip-compressed data",
    b"PAR1": "a Parquet table",
}
_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "held_out", "heldout"), "test"),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


# --- bounded reading ------------------------------------------------------------------------------


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The whole file.

    Raises:
        BadInput: it is missing, a folder, unreadable, empty, or larger than `max_bytes`.
    """
    try:
        if path.is_dir():
            raise BadInput(f"{path} is a folder, but a file is needed here.", "Name a file in it.")
        size = path.stat().st_size
        if not path.is_file():
            raise BadInput(f"{path} is not a regular file.", "Save it as a file first.")
        if size > max_bytes:
            raise BadInput(
                f"{path} is {size / 2**20:,.0f} MiB; at most {max_bytes / 2**20:,.0f} MiB are read.",
                "Use a smaller part of it.",
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"There is no file {path}.", "Check the path.") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    if not data.strip(b"\x00 \t\r\n"):
        raise BadInput(f"{path} is empty ({len(data)} bytes, nothing in it).", "Export or download the file again.")
    return data


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The file as text: UTF-8, or UTF-16 with a byte-order mark; line ends become `\\n`.

    Raises:
        BadInput: as `read_bytes`, or it is not text, or it is in another encoding (says at which byte).
    """
    return decode(read_bytes(path, max_bytes), str(path))


def decode(data: bytes, name: str) -> str:
    """Bytes as text; see `read_text`. `name` is what errors call it."""
    known = next((what for magic, what in _MAGIC.items() if data.startswith(magic)), "")
    if known:
        raise BadInput(
            f"{name} is {known}, not text.",
            "Choose a text, JSON, JSONL or CSV file; a character card (PNG) is imported as a character.",
        )
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding == "utf-8-sig" and b"\x00" in data[:4096]:
        raise BadInput(
            f"{name} holds binary data, not text.",
            "Choose a text, JSON, JSONL or CSV file; a character card (PNG) is imported as a character.",
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _encoding_error(data, name, error) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding_error(data: bytes, name: str, error: UnicodeDecodeError) -> BadInput:
    line = data.count(b"\n", 0, error.start) + 1
    around = data[max(0, error.start - 20) : error.start + 20].decode("latin-1").replace("\n", " ")
    return BadInput(
        f"{name} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}. It looks like Latin-1, "
        f"which reads {around!r} there.",
        f"Save it as UTF-8, for example: iconv -f latin1 -t utf-8 {Path(name).name} > utf8_{Path(name).name}",
    )


def is_text(head: bytes) -> bool:
    """Whether a file that begins so may be text: none of the known binary formats, and no zero bytes but UTF-16's."""
    if any(head.startswith(magic) for magic in _MAGIC):
        return False
    return b"\x00" not in head or head[:2] in (b"\xff\xfe", b"\xfe\xff")


def head_bytes(path: Path, count: int = 64) -> bytes:
    """The first bytes of a file, for `detect`: none where it cannot be read, never BadInput."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def peek_text(path: Path, characters: int = 100_000) -> str:
    """The beginning of a text file, for `detect`: empty where it is no text or cannot be read, never BadInput."""
    try:
        stat = path.stat()
        return _beginning(path, stat.st_mtime_ns, stat.st_size, characters)
    except (BadInput, OSError):
        return ""


@lru_cache(maxsize=1)
def _beginning(path: Path, changed: int, size: int, characters: int) -> str:
    data = head_bytes(path, 4 * characters)
    for cut in range(4):  # a character may be cut in two at the end
        try:
            return decode(data[: len(data) - cut], str(path))[:characters]
        except BadInput:
            if len(data) < 4 * characters:
                break
    return ""


def forget_text() -> None:
    """Let go of the beginning of the last file."""
    _beginning.cache_clear()


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The file as one JSON document.

    Raises:
        BadInput: as `read_text`, or it is not JSON (says where), or nested deeper than 64 levels.
    """
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str, name: str) -> Any:
    """Text as one JSON document of bounded depth; `name` is what errors call it."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(name) from error
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20].replace("\n", " ")
        raise BadInput(
            f"{name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}, near {near!r}.",
            "The file may be cut off or edited by hand; export it again.",
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise BadInput(f"{name} is not usable JSON: {error}.", "Export it again.") from error
    if _deeper_than(value, MAX_DEPTH):
        raise _too_deep(name)
    return _without_surrogates(value) if _ESCAPED_SURROGATE.search(text) else value


def _without_surrogates(value: Any) -> Any:
    """Half a character, which JSON can spell but no file or tokenizer can take, becomes U+FFFD."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _without_surrogates(item) for key, item in value.items()}
    return value


def _too_deep(name: str) -> BadInput:
    return BadInput(f"{name} is nested deeper than {MAX_DEPTH} levels.", "No card or dataset is; export it again.")


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        if not level:
            return False
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


# --- values --------------------------------------------------------------------------------------


def json_type(value: Any) -> str:
    """What people call the type of a JSON value."""
    names = {dict: "object", list: "list", str: "text", bool: "true/false", int: "number", float: "number"}
    return names.get(type(value), "null")


def clean(text: str) -> str:
    """Text that any tokenizer takes: `\\n` line ends, no control characters, stripped."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def split_of(value: Any) -> Split | None:
    """A split's name in a file (`train`, `val`, `dev`, `test`, ...) as ours; None when it is none of them."""
    return _SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
