"""Which reader takes a file, and the files of a folder joined.

Readers come from plugins; this module only chooses between them, explains the choice and refuses what gives nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from persona_lab.api import DatasetReader, Detection, ReadResult
from persona_lab.datasets.rows import forget_rows, read_rows
from persona_lab.datasets.toolkit import head_bytes, is_text, peek_text, read_text
from persona_lab.datasets.turns import match_speaker
from persona_lab.errors import BadInput, Cancelled, PersonaLabError, UnknownName
from persona_lab.types import Persona

THRESHOLD = 0.3
MOST_FILES = 200
DATA_SUFFIXES = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".md", ".markdown", ".log", ".fountain"),
    *(".epub", ".pdf", ".docx"),
)
_LIST_OF_TEXTS = re.compile(r'\s*\[\s*"')
SURE = 0.55
"""A detection below this is worth a look at what else it may be."""
_NOT_DATA = ("origin", "readme", "license", "licence", "notice", "changelog", "citation")


@dataclass(frozen=True)
class Candidate:
    """One reader's opinion of a file."""

    id: str
    title: str
    score: float
    why: str


@dataclass(frozen=True)
class Look:
    """What a file seems to be, before it is read.

    `format` is empty if no reader takes it; `roles`: what a mapping may name (see `DatasetReader.roles`); `assistant`:
    the speaker or column that would be the character's, empty if that has to be said.
    """

    format: str
    why: str
    sure: bool
    candidates: tuple[Candidate, ...]
    roles: Mapping[str, tuple[str, ...]]
    assistant: str = ""


@dataclass(frozen=True)
class Reading:
    """What was read, as which format, and why that format."""

    result: ReadResult
    format: str
    why: str


def read_dataset(
    path: Path,
    readers: Sequence[DatasetReader],
    persona: Persona,
    format: str = "auto",
    mapping: Mapping[str, str] | None = None,
) -> Reading:
    """Read a file, or every data file of a folder (each by its own best reader), as the persona's conversations.

    Args:
        format: a reader's id, or `auto`.
        mapping: `--map role=column,...`; see the readers.

    Raises:
        BadInput: missing, unreadable, of no known format, or without a single usable row.
        UnknownName: no reader has the id `format`.
    """
    known = {reader.id: reader for reader in readers}
    if format != "auto" and format not in known:
        raise UnknownName("dataset format", format, [*known, "auto"])
    chosen = dict(mapping or {})
    try:
        read = _read_folder if path.is_dir() else _read_file
        reading = read(path, known, persona, format, chosen)
    finally:
        forget_rows()
    if not reading.result.conversations:
        raise _nothing_usable(path, reading, persona)
    return reading


def look_at(path: Path, readers: Sequence[DatasetReader], persona: Persona | None = None, format: str = "auto") -> Look:
    """What a file seems to be and what can be chosen in it, for a form; reads no conversations.

    Raises:
        BadInput: missing, empty, or unreadable. UnknownName: no reader has the id `format`.
    """
    known = {reader.id: reader for reader in readers}
    if format != "auto" and format not in known:
        raise UnknownName("dataset format", format, [*known, "auto"])
    try:
        asked = _asked(path, known)
        ranked = _ranked(path, asked)
        best = ranked[0] if ranked and ranked[0].score >= THRESHOLD else None
        chosen = format if format != "auto" else best.id if best else ""
        roles = _roles(known[chosen], path) if chosen else {}
    finally:
        forget_rows()
    why = "you chose it" if format != "auto" else best.why if best else "no reader knows it"
    names = [persona.name, persona.field("nickname")] if persona else []
    return Look(
        format=chosen,
        why=f"{known[chosen].title}, because {why}" if chosen else why,
        sure=bool(best and best.score >= SURE),
        candidates=tuple(candidate for candidate in ranked if candidate.score > 0),
        roles=roles,
        assistant=match_speaker(roles.get("assistant", ()), names) or "",
    )


def _asked(path: Path, readers: Mapping[str, DatasetReader]) -> Mapping[str, DatasetReader]:
    """The readers that may know the file: all of a text; of others those that read what is no text.

    Missing, empty, binary and badly encoded files are told apart here, before any reader guesses.
    """
    head = head_bytes(path, 4096)
    if is_text(head):
        read_text(path)
        return readers
    if path.suffix.lower() in (".parquet", ".pq") or head.startswith(b"PAR1"):
        read_rows(path)  # says what is missing or damaged
        return readers  # rows, as those of a text
    taking = {name: reader for name, reader in readers.items() if reader.binary}
    if not any(_detect(reader, path).score >= THRESHOLD for reader in taking.values()):
        read_text(path)  # says what it is instead
    return taking


def _read_file(
    path: Path, readers: Mapping[str, DatasetReader], persona: Persona, format: str, mapping: Mapping[str, str]
) -> Reading:
    asked = _asked(path, readers)
    if format == "auto":
        format, why = _best(path, asked, mapping)
    else:
        why = "you chose it"
    reader = readers[format]
    try:
        result = reader.read(path, persona, mapping)
    except PersonaLabError:
        raise
    except Exception as error:
        raise _reader_failed(reader, path, error) from error
    return Reading(result, format, f"{reader.title}, because {why}")


def _best(path: Path, readers: Mapping[str, DatasetReader], mapping: Mapping[str, str]) -> tuple[str, str]:
    ranked = _ranked(path, readers)
    best = ranked[0] if ranked else None
    columns = next((candidate.score for candidate in ranked if candidate.id == "columns"), 0.0)
    if mapping and columns > 0 and best and not (best.score > columns + 0.3 and _has_roles(readers[best.id], path)):
        return "columns", "you named its columns"
    if best is None or best.score < THRESHOLD:
        if _is_card(path):
            raise BadInput(
                f"{path} is a character card: who somebody is, not what they say.",
                f"Import it as a character: persona-lab personas import {path.name}.",
            )
        if _LIST_OF_TEXTS.match(peek_text(path)):
            raise BadInput(
                f"{path} is a JSON list of texts: nobody asks and nobody answers in it.",
                'If somebody said them, put each into a row: {"text": "..."}. A text that says who somebody is belongs '
                "into a character's card.",
            )
        seen = next((candidate.why for candidate in ranked if candidate.why), "nothing that any reader knows")
        raise BadInput(
            f"{path} is of no format that can be told: {seen}.",
            f"Name its columns, for example --map user=QUESTION,assistant=ANSWER, or a format with --format: "
            f"{', '.join(sorted(readers))}.",
        )
    return best.id, best.why


def _ranked(path: Path, readers: Mapping[str, DatasetReader]) -> list[Candidate]:
    """Every reader's opinion, the surest first."""
    found = {name: _detect(reader, path) for name, reader in readers.items()}
    order = sorted(found, key=lambda name: (-found[name].score, readers[name].rank))
    return [Candidate(name, readers[name].title, found[name].score, found[name].why) for name in order]


def _is_card(path: Path) -> bool:
    text = peek_text(path)
    return text.lstrip().startswith("{") and ('"chara_card_v' in text or '"first_mes"' in text)


def _detect(reader: DatasetReader, path: Path) -> Detection:
    try:
        return reader.detect(path)
    except Cancelled:
        raise
    except Exception as error:  # noqa: BLE001 - the plugin border: one reader's trouble must not stop the others
        return Detection(score=0, why=f"{reader.title} failed to look at it: {type(error).__name__}: {error}")


def _roles(reader: DatasetReader, path: Path) -> dict[str, tuple[str, ...]]:
    """What a mapping may name.

    Raises:
        BadInput: the file cannot be read so, or the reader fails on it.
    """
    try:
        return {role: tuple(names) for role, names in reader.roles(path).items()}
    except PersonaLabError:
        raise
    except Exception as error:  # the plugin border
        raise _reader_failed(reader, path, error) from error


def _has_roles(reader: DatasetReader, path: Path) -> bool:
    """Whether the reader has anything to choose; one that cannot say has not."""
    try:
        return bool(_roles(reader, path))
    except BadInput:
        return False


def _reader_failed(reader: DatasetReader, path: Path, error: Exception) -> BadInput:
    return BadInput(
        f"The reader {reader.title!r} failed on {path}: {type(error).__name__}: {error}.",
        "Choose another with --format, or report it to the reader's author.",
    )


def _read_folder(
    folder: Path, readers: Mapping[str, DatasetReader], persona: Persona, format: str, mapping: Mapping[str, str]
) -> Reading:
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and _is_data(file)]
    if not files or len(files) > MOST_FILES:
        raise BadInput(
            f"{folder} has {len(files)} data files ({', '.join(DATA_SUFFIXES)}); from 1 to {MOST_FILES} are read.",
            "Name a single file, or another folder.",
        )
    readings: list[tuple[Path, Reading]] = []
    notes: list[str] = []
    for file in files:
        try:
            readings.append((file, _read_mapped(file, readers, persona, format, mapping)))
        except BadInput as error:
            notes.append(f"{file.name} was left out: {error.message}")
    if not readings:
        raise BadInput(f"No file in {folder} can be read. {notes[0]}", "Name a single file to see more.")
    return _joined(readings, notes)


def _read_mapped(
    file: Path, readers: Mapping[str, DatasetReader], persona: Persona, format: str, mapping: Mapping[str, str]
) -> Reading:
    """One file of a folder: columns named for one file need not be in the others, which is told."""
    try:
        return _read_file(file, readers, persona, format, mapping)
    except BadInput as error:
        if not mapping:
            raise
        found = _read_file(file, readers, persona, format, {})
        named = ", ".join(f"{role}={name}" for role, name in mapping.items())
        note = f"It was read without the mapping {named}, which does not fit it: {error.message}"
        return replace(found, result=found.result.model_copy(update={"warnings": (*found.result.warnings, note)}))


def _is_data(file: Path) -> bool:
    stem = file.stem.lower()
    return (
        not file.name.startswith(".")
        and file.suffix.lower() in DATA_SUFFIXES
        and not stem.startswith(_NOT_DATA)
        and file.name not in ("card.json", "probes.jsonl")  # a persona's folder: who it is, and what it is asked
    )


def _joined(readings: Sequence[tuple[Path, Reading]], notes: Sequence[str]) -> Reading:
    results = [(file, reading.result) for file, reading in readings]
    joined = ReadResult(
        conversations=tuple(conversation for _, result in results for conversation in result.conversations),
        others=tuple(text for _, result in results for text in result.others),
        skipped=tuple((row, f"{file.name}: {reason}") for file, result in results for row, reason in result.skipped),
        warnings=(*(f"{file.name}: {text}" for file, result in results for text in result.warnings), *notes),
    )
    formats = dict.fromkeys(reading.format for _, reading in readings)
    return Reading(joined, "+".join(formats), "; ".join(f"{file.name}: {reading.why}" for file, reading in readings))


def _nothing_usable(path: Path, reading: Reading, persona: Persona) -> BadInput:
    result = reading.result
    reasons = Counter(reason for _, reason in result.skipped).most_common(3)
    told = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    parts = [f"{path} has no usable conversation (read as {reading.why})."]
    if told:
        parts.append(f"Skipped rows: {told}.")
    if result.others:
        parts.append(f"It has {len(result.others)} lines of other speakers, but none of {persona.name}.")
    parts += result.warnings[:2]
    return BadInput(
        " ".join(parts), "Check the format, or name the columns: --map user=QUESTION_COLUMN,assistant=ANSWER_COLUMN."
    )
