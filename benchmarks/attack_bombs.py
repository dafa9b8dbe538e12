"""Files that unfold to far more than they weigh: a card in a zip, pictures. Built in memory."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib


def zip_bomb(size: int) -> bytes:
    """A card in a zip, of `size` bytes when it is unpacked (a whole number of MB)."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("card.json", "w", force_zip64=True) as file,
    ):
        piece = b"0" * 2**20
        for _ in range(size >> 20):
            file.write(piece)
    return out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A picture that claims `side` times `side` pixels."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(b"\0" * 2**20)) + _chunk(b"IEND", b"")


def png_text_bomb(size: int) -> bytes:
    """A picture whose card has `size` bytes when it is unpacked (a whole number of MB)."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"A" * 2**20) for _ in range(size >> 20)) + packer.flush()
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    text = _chunk(b"zTXt", b"chara\0\0" + packed)
    return b"\x89PNG\r\n\x1a\n" + head + text + _chunk(b"IDAT", zlib.compress(b"\0\0")) + _chunk(b"IEND", b"")
