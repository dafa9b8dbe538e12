"""EPUB books: the chapters in reading order, as passages to learn the voice from."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult

_CONTAINER = "META-INF/container.xml"


class EpubReader(DatasetReader):
    """A zip with a list of its pages; only their text is looked at."""

    id = "epub"
    title = "EPUB book"
    summary = "A book in EPUB: passages become replies in the author's voice, with made prompts."
    rank = 70
    binary = True

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import zip_member

        return zip_member(path, _CONTAINER, f"it is a zip archive with {_CONTAINER}, as EPUB books are")

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import Zip, document_result, html_blocks

        book = Zip(path)
        known = set(book.names)
        pages = [name for name in dict.fromkeys(self._pages(book)) if name in known]
        blocks = [block for name in pages for block in html_blocks(book.read(name))]
        return document_result(blocks, persona, path.name)

    def _pages(self, book) -> list[str]:
        """Names of the pages in reading order (EPUB 3.3, section 5: package document, spine)."""
        from persona_lab.api import xml_root

        container = xml_root(book.read(_CONTAINER), _CONTAINER)
        found = next(
            (element.get("full-path") for element in container.iter() if element.tag.endswith("rootfile")), None
        )
        if not found:
            raise BadInput(f"{book.path} does not say where its pages are.", "Convert it to EPUB again.")
        package = xml_root(book.read(found), found)
        items = {e.get("id"): e.get("href") for e in package.iter() if e.tag.endswith("}item") and e.get("href")}
        order = [e.get("idref") for e in package.iter() if e.tag.endswith("}itemref") and e.get("linear") != "no"]
        folder = posixpath.dirname(found)
        return [posixpath.normpath(posixpath.join(folder, unquote(items[key]))) for key in order if items.get(key)]
