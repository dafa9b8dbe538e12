"""Plain prose and Markdown: what somebody wrote, as passages to learn the voice from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from persona_lab.api import DatasetReader, Detection, Persona, ReadResult

_MARKDOWN = re.compile(r"^(?:#{1,6} \S|[-*] \S|> \S|```|\[.+\]\(.+\))", re.MULTILINE)
_SUFFIXES = (".md", ".markdown")
_FEWEST_WORDS = 60


class ProseReader(DatasetReader):
    """Text without speakers: each passage becomes a reply, with a made prompt in front (see the guide)."""

    id = "prose"
    title = "Prose or Markdown"
    summary = "An article, notes, a book: passages become replies in the author's voice, with made prompts."
    rank = 90

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_text

        text = peek_text(path)
        if text.lstrip()[:1] in ("{", "[") and path.suffix.lower() not in _SUFFIXES:
            return Detection(score=0)
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".html", ".htm", ".xml"):
            return Detection(score=0)
        words = text.split()
        if len(words) < _FEWEST_WORDS:
            return Detection(score=0.05, why=f"it is plain text of {len(words)} words without `Name: ...` lines")
        sentences = len(re.findall(r"[.!?][\"'”’]?(?:\s|$)", text))
        if sentences < len(words) / 80:
            return Detection(score=0.1, why="it is plain text, but neither sentences nor lines of speakers")
        kind = "Markdown" if path.suffix.lower() in _SUFFIXES else "prose"
        return Detection(score=0.45, why=f"it is {kind}: {sentences} sentences, and no lines that begin with a speaker")

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import document_result, read_text, text_blocks

        text = read_text(path)
        markdown = path.suffix.lower() in _SUFFIXES or len(_MARKDOWN.findall(text[:100_000])) > 5
        return document_result(text_blocks(text, markdown), persona, path.name)
