"""The one door for files that bring a character: a card of any kind, a lorebook, or a bundle of Persona Lab."""

from __future__ import annotations

from pathlib import Path

from persona_lab.datasets.toolkit import read_bytes
from persona_lab.errors import BadInput
from persona_lab.personas.bounded import is_zip, unzip
from persona_lab.personas.bundle import MANIFEST, Bundle, is_bundle, read_bundle
from persona_lab.personas.cards import MAX_CARD_BYTES, CardFile, card_of, charx_of, document, of_document
from persona_lab.personas.charx import CARD
from persona_lab.personas.world_info import WorldInfo, is_world_info, read_world_info

YAML = (".yaml", ".yml")


def read_persona_file(path: Path) -> CardFile | WorldInfo | Bundle:
    """Whatever of these the file holds, whatever it is called.

    Raises:
        BadInput: it is none of them, damaged, or too large; in a sentence for people.
    """
    return persona_file_of(read_bytes(path, MAX_CARD_BYTES), str(path), path.suffix.lower() in YAML)


def persona_file_of(data: bytes, name: str, yaml: bool = False) -> CardFile | WorldInfo | Bundle:
    """As `read_persona_file`, of a file's content."""
    if is_zip(data):
        files = unzip(data, name)
        if is_bundle(files):
            return read_bundle(files, name)
        if MANIFEST in files and CARD not in files:
            raise BadInput(f"{name} is a bundle without its checksums.", "Ask for it again, or export it again.")
        return charx_of(files, name)
    if data[:4] in (b"\x89PNG", b"GIF8", b"RIFF") or data[:3] == b"\xff\xd8\xff":
        return card_of(data, name)
    raw = document(data, name, yaml)
    return read_world_info(raw, name) if is_world_info(raw) else of_document(raw, name)
