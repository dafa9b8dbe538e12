"""PDF documents, by pypdf: their text as passages to learn the voice from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from persona_lab.api import DatasetReader, Detection, Persona, ReadResult


class PdfReader(DatasetReader):
    """Text of the pages; running heads and page numbers are left out. Scanned pages are refused."""

    id = "pdf"
    title = "PDF document"
    summary = "A PDF with text: passages become replies in the author's voice, with made prompts."
    rank = 71
    binary = True

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import head_bytes

        is_pdf = b"%PDF-" in head_bytes(path, 1024)
        return Detection(score=0.97, why="it begins with %PDF") if is_pdf else Detection(score=0)

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import document_result, pdf_blocks

        return document_result(pdf_blocks(path), persona, path.name)
