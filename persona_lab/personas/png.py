"""PNG chunks: reading and replacing the text chunks that carry a character card. Bounded; never decodes pixels.

Source: PNG specification (third edition), chunk layout and the tEXt, zTXt and iTXt chunks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from persona_lab.errors import BadInput

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 20_000
MAX_TEXT = 16 * 2**20
MAX_CHUNK = 64 * 2**20
_TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class Chunk:
    """One chunk: its four-letter kind and its data."""

    kind: bytes
    data: bytes

    @property
    def keyword(self) -> str:
        """Of a text chunk, in lower case; else empty."""
        if self.kind not in _TEXT_KINDS:
            return ""
        return self.data.split(b"\0", 1)[0][:80].decode("latin-1").lower()


def read_chunks(data: bytes, name: str) -> list[Chunk]:
    """All chunks up to IEND.

    Args:
        name: what errors call the file.

    Raises:
        BadInput: no PNG, cut off, a checksum that does not match, or a chunk that is too large.
    """
    if not data.startswith(SIGNATURE):
        raise BadInput(f"{name} is not a PNG image.", "Choose the card's original PNG or its JSON.")
    chunks = list(_chunks(data, name))
    if chunks[0].kind != b"IHDR":
        raise BadInput(f"{name} is damaged: it does not begin with an image header.", "Download the card again.")
    return chunks


def _chunks(data: bytes, name: str) -> Iterator[Chunk]:
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            raise _truncated(name, len(data))
        length, kind = struct.unpack_from(">I4s", data, position)
        if length > MAX_CHUNK:
            raise BadInput(
                f"{name} is damaged: its chunk at byte {position} claims {length:,} bytes (at most {MAX_CHUNK:,}).",
                "Download the card again.",
            )
        end = position + 8 + length
        if end + 4 > len(data):
            raise _truncated(name, len(data))
        body = data[position + 8 : end]
        if zlib.crc32(kind + body) != struct.unpack_from(">I", data, end)[0]:
            label = kind.decode("latin-1")
            raise BadInput(
                f"{name} is damaged: the checksum of its {label!r} chunk at byte {position} does not match.",
                "Download the card again.",
            )
        yield Chunk(kind, body)
        if kind == b"IEND":
            return
        position = end + 4
    raise BadInput(f"{name} has more than {MAX_CHUNKS:,} chunks.", "It is not a usual PNG; save it again.")


def _truncated(name: str, size: int) -> BadInput:
    return BadInput(
        f"{name} is cut off: the PNG ends after {size:,} bytes, before its end marker.", "Download the card again."
    )


def text_of(chunk: Chunk, name: str) -> bytes:
    """What a text chunk holds, decompressed, at most 16 MiB.

    Raises:
        BadInput: it cannot be decompressed, or is larger.
    """
    _, _, rest = chunk.data.partition(b"\0")
    if chunk.kind == b"zTXt":
        return _decompressed(rest[1:], name)
    if chunk.kind == b"iTXt":
        compressed, fields = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
        text = fields[2] if len(fields) == 3 else b""
        return _decompressed(text, name) if compressed else text
    if len(rest) > MAX_TEXT:
        raise BadInput(f"{name} holds a text of {len(rest):,} bytes; at most {MAX_TEXT:,} are read.", "It is no card.")
    return rest


def _decompressed(data: bytes, name: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_TEXT)
    except zlib.error as error:
        raise BadInput(
            f"{name} holds a text that cannot be decompressed: {error}.", "Download the card again."
        ) from error
    if inflater.unconsumed_tail:
        raise BadInput(f"{name} holds a text larger than {MAX_TEXT:,} bytes.", "It is no usual card.")
    return text


def write_chunks(chunks: list[Chunk], texts: Mapping[str, bytes]) -> bytes:
    """A PNG of `chunks` (from `read_chunks`), with these texts as its only tEXt chunks of these keywords."""
    kept = [chunk for chunk in chunks if chunk.keyword not in texts]
    added = [Chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text) for keyword, text in texts.items() if text]
    return SIGNATURE + b"".join(_packed(chunk) for chunk in [*kept[:-1], *added, kept[-1]])


def _packed(chunk: Chunk) -> bytes:
    checksum = zlib.crc32(chunk.kind + chunk.data)
    return struct.pack(">I", len(chunk.data)) + chunk.kind + chunk.data + struct.pack(">I", checksum)
