"""A broad corpus (a genre, a world, a brand) as short units of text: bounded reading of text, Markdown and JSONL.

A unit is a paragraph, a speech or a row: the smallest thing that is left out when it holds a held-out line
(corpus_filter.py). It makes no tokens; training/foundation.py makes passages.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lab.datasets.rows import Rows, read_rows
from persona_lab.datasets.toolkit import clean, read_text
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Dataset

SUFFIXES = (".txt", ".text", ".md", ".markdown", ".jsonl", ".ndjson")
MOST_FILES = 500
MOST_ENTRIES = 20_000
MOST_BYTES = 64 * 2**20
UNIT_WORDS = 200
"""Longer paragraphs are cut at the ends of sentences."""

_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]_*]*\s+")
_ENDED = re.compile(r"[.!?…:;][\"'”’)\]_*]*$")
_SPEAKER_KEYS = ("speaker", "name", "character", "author")
_TEXT_KEYS = ("text", "content", "body", "line", "mes", "value")
_PAIR_KEYS = (
    "instruction",
    "input",
    "user",
    "prompt",
    "question",
    "query",
    "assistant",
    "response",
    "completion",
    "answer",
    "output",
)
_LIST_KEYS = ("messages", "conversations", "conversation", "dialogue")


@dataclass(frozen=True)
class Unit:
    """A piece of text. `begins`: nothing stands before it in its document; `goes_on`: cut off the unit before it."""

    text: str
    begins: bool = False
    goes_on: bool = False


@dataclass(frozen=True)
class Corpus:
    """What was read, in order; `notes` say what was left out, for people."""

    units: tuple[Unit, ...]
    files: int
    notes: tuple[str, ...] = ()


def corpus_files(path: Path) -> list[Path]:
    """The files of a corpus, sorted; looks at names and sizes only.

    Raises:
        BadInput: there is nothing there, no file of a known kind, or too much of it.
    """
    if not path.exists():
        raise BadInput(f"There is no corpus at {path}.", "Name a text, Markdown or JSONL file, or a folder of them.")
    found = _below(path) if path.is_dir() else [path]
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise BadInput(
            f"{path} is no kind of file that a corpus is read from ({', '.join(SUFFIXES)}).",
            "Save it as plain text; a folder of such files will do as well.",
        )
    if not found or len(found) > MOST_FILES:
        fix = "Name one file, or another folder."
        raise BadInput(f"{path} holds {len(found)} corpus files; from 1 to {MOST_FILES} are read.", fix)
    size = sum(file.stat().st_size for file in found)
    if size > MOST_BYTES:
        told = f"{size / 2**20:,.0f} MiB; at most {MOST_BYTES / 2**20:,.0f} MiB are read"
        raise BadInput(f"The corpus at {path} has {told}.", "Use a part of it: a few MiB are hours of training.")
    return found


def _below(folder: Path) -> list[Path]:
    entries = list(itertools.islice(folder.rglob("*"), MOST_ENTRIES + 1))
    if len(entries) > MOST_ENTRIES:
        raise BadInput(f"{folder} holds more than {MOST_ENTRIES:,} entries.", "Name the folder of the texts alone.")
    hidden = (part for part in entries if not any(p.startswith(".") for p in part.relative_to(folder).parts))
    return sorted(file for file in hidden if file.suffix.lower() in SUFFIXES and file.is_file())


def read_corpus(path: Path) -> Corpus:
    """Every file of a corpus as units, each text once.

    Raises:
        BadInput: as `corpus_files`; a single file that is no readable text (says at which byte); nothing is readable.
    """
    files = corpus_files(path)
    units: list[Unit] = []
    notes: list[str] = []
    for file in files:
        try:
            found, skipped = _units_of_file(file)
        except BadInput as error:
            if len(files) == 1:
                raise
            notes.append(f"{file.name} was left out: {error.message}")
            continue
        units += found
        if skipped:
            notes.append(f"{file.name}: {skipped} rows without text were left out.")
    if not units:
        raise BadInput(f"The corpus at {path} has no text. {' '.join(notes[:3])}".strip(), "Use other files.")
    return Corpus(_each_once(units), len(files), tuple(notes))


def own_corpus(dataset: Dataset) -> Corpus:
    """The genre a dataset comes from: what the other speakers say, and its training conversations, as text."""
    units = [unit for text in dataset.others for unit in units_of_text(text)]
    if units:  # lines of one document, in the order they were imported
        units = [Unit(u.text, begins=i == 0, goes_on=u.goes_on) for i, u in enumerate(units)]
    for conversation in dataset.of("train"):
        units += _units_of(conversation)
    return Corpus(_each_once(units), 0)  # what a reply answers is often a line of another speaker, too


def _units_of(conversation: Conversation) -> list[Unit]:
    text = "\n\n".join(m.content for m in conversation.messages if m.role != "system")
    return list(units_of_text(text))


def _units_of_file(file: Path) -> tuple[list[Unit], int]:
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        return _units_of_rows(read_rows(file))
    return list(units_of_text(read_text(file))), 0


def _each_once(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """Without the repetitions of longer units: twice read is learned by heart."""
    seen: set[str] = set()
    kept = []
    for unit in units:
        if unit.text in seen and len(unit.text) > 40:
            continue
        seen.add(unit.text)
        kept.append(unit)
    return tuple(kept)


# --- text -----------------------------------------------------------------------------------------


def units_of_text(text: str) -> Iterator[Unit]:
    """A document's paragraphs; lines that are whole sentences each (a script, a log) are units of their own."""
    begins = True
    for paragraph in _PARAGRAPH.split(text):
        for part in _lines(clean(paragraph)):
            for number, piece in enumerate(_pieces(part)):
                yield Unit(piece, begins=begins, goes_on=number > 0)
                begins = False


def _lines(paragraph: str) -> list[str]:
    """One part of wrapped prose, which is joined; several of a script; verse stays as it is, in one part."""
    lines = [line.strip() for line in paragraph.split("\n") if line.strip()]
    if len(lines) < 2:
        return lines
    if all(50 <= len(line) <= 100 for line in lines[:-1]):
        return [" ".join(lines)]
    ended = sum(bool(_ENDED.search(line)) for line in lines)
    return lines if ended >= 0.6 * len(lines) else ["\n".join(lines)]


def _pieces(part: str) -> list[str]:
    """At most 200 words each, cut between sentences; a longer sentence is cut between words."""
    if len(part.split()) <= UNIT_WORDS:
        return [part]
    pieces: list[list[str]] = [[]]
    for sentence in sentences(part):
        words = sentence.split()
        for start in range(0, len(words), UNIT_WORDS):
            chunk = words[start : start + UNIT_WORDS]
            if pieces[-1] and len(pieces[-1]) + len(chunk) > UNIT_WORDS:
                pieces.append([])
            pieces[-1] += chunk
    return [" ".join(words) for words in pieces]


def sentences(text: str) -> list[str]:
    """The sentences of a text, roughly: cut after `.`, `!`, `?` and `…`, and any closing quotes."""
    return [part for part in _SENTENCE.split(text) if part.strip()]


# --- rows -----------------------------------------------------------------------------------------


def _units_of_rows(rows: Rows) -> tuple[list[Unit], int]:
    """Rows in order: of one speaker's line each they are one document, else each is a document of its own."""
    units: list[Unit] = []
    skipped = len(rows.skipped)
    in_dialogue = False
    for _, row in rows.rows:
        texts, is_line = _texts(row)
        skipped += not texts
        for number, text in enumerate(texts):
            begins = number == 0 and not (is_line and in_dialogue)
            units += [Unit(u.text, begins and u.begins, u.goes_on) for u in units_of_text(text)]
        in_dialogue = is_line
    return units, skipped


def _texts(row: Any) -> tuple[list[str], bool]:
    """The texts of a row, and whether it is a line of a speaker. Unknown shapes give none."""
    if isinstance(row, str):
        return [row], False
    if not isinstance(row, dict):
        return [], False
    turns = next((row[key] for key in _LIST_KEYS if isinstance(row.get(key), list)), None)
    if turns is not None:
        return [text for turn in turns for text in _texts(turn)[0]], False
    text = next((row[key] for key in _TEXT_KEYS if _says(row.get(key))), None)
    if text is None:
        return [row[key] for key in _PAIR_KEYS if _says(row.get(key))], False
    speaker = next((row[key] for key in _SPEAKER_KEYS if _says(row.get(key))), None)
    return [f"{speaker}: {text}" if speaker else text], speaker is not None


def _says(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
