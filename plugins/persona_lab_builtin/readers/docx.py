"""Word documents (.docx): their paragraphs as passages to learn the voice from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from persona_lab.api import DatasetReader, Detection, Persona, ReadResult

_DOCUMENT = "word/document.xml"
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


class DocxReader(DatasetReader):
    """Paragraphs and headings; pictures, comments and what was deleted with tracked changes are left out."""

    id = "docx"
    title = "Word document"
    summary = "A .docx: passages become replies in the author's voice, with made prompts."
    rank = 72
    binary = True

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import zip_member

        return zip_member(path, _DOCUMENT, f"it is a zip archive with {_DOCUMENT}")

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import Block, Zip, document_result, xml_root

        root = xml_root(Zip(path).read(_DOCUMENT), f"{_DOCUMENT} in {path.name}")
        blocks = []
        for paragraph in root.iter(f"{_W}p"):
            style = paragraph.find(f"{_W}pPr/{_W}pStyle")
            heading = style is not None and str(style.get(f"{_W}val", "")).lower().startswith(("heading", "title"))
            text = " ".join("".join(_text(element) for element in _own(paragraph)).split())
            if text:
                blocks.append(Block(text, heading))
        return document_result(blocks, persona, path.name)


def _own(paragraph):
    """Elements of a paragraph, without those of paragraphs in it (text boxes), which come by themselves."""
    waiting = list(reversed(paragraph))
    while waiting:
        element = waiting.pop()
        yield element
        if element.tag != f"{_W}p":
            waiting.extend(reversed(element))


def _text(element) -> str:
    """What an element of a run says (Office Open XML, WordprocessingML: t, tab, br)."""
    if element.tag == f"{_W}t":
        return element.text or ""
    return " " if element.tag in (f"{_W}tab", f"{_W}br") else ""
