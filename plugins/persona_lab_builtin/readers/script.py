"""Plays and dialogues: `NAME. text` or `Name: text`, one speech after another.

The persona's lines are the assistant's; what others say before each is the user's. Lines without a name go on with the
speech before them; stage directions in [square brackets] are left out, and _emphasis_ loses its marks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult

_COLON = re.compile(
    r"^\s{0,8}[*_]{0,2}([^\W\d_][\w .,'’&-]{0,39}?)[*_]{0,2}\s{0,3}(?:\([^()]{0,80}\)\s{0,3})?:[*_]{0,2}(?:\s(.*)|$)"
)
# a full stop after the name, or, as printers forget it, a stage direction
_CAPITALS = re.compile(r"^\s{0,8}([A-Z][A-Z .'’-]{1,38}[A-Z])(?:\.|\s{0,2}(?=\[))(?:(?=\s{0,3}\[)|\s|$)(.*)$")
_STAGE = re.compile(r"\[[^\[\]]{0,2000}\]")
_EMPHASIS = re.compile(r"(?<![\w_])_([^_\n]{1,400})_(?![\w_])")
_DOTS = re.compile(r"\s?\. \. \.(?: \.)?")
_SCENE = re.compile(
    r"^\s*(?:(?:ACT|SCENE|CHAPTER|PROLOGUE|EPILOGUE)\b.{0,60}|(?:THE )?(?:FIRST|SECOND|THIRD|FOURTH|FIFTH|LAST) "
    r"(?:ACT|SCENE)\b.{0,20}|(?:ACT DROP|CURTAIN|TABLEAU|THE END|END OF .{0,40})\.?|"
    r"[*=#~-]{3,}\s*|(?:\* ){2,}\*?\s*|#{1,6} .{0,80})$",
    re.IGNORECASE,
)
_MOST_WORDS_IN_A_NAME = 4
_LONGEST_LINE = 20_000

Scene = list[tuple[str, str]]


def _speech(line: str, pattern: re.Pattern[str]) -> tuple[str, str] | None:
    match = pattern.match(line[:_LONGEST_LINE])
    if not match or len(match[1].split()) > _MOST_WORDS_IN_A_NAME:
        return None
    return match[1].strip(), match[2] or ""


def _pattern(lines: Sequence[str]) -> tuple[re.Pattern[str] | None, int]:
    """The style that most lines are in, and how many."""
    hits = {pattern: sum(_speech(line, pattern) is not None for line in lines) for pattern in (_COLON, _CAPITALS)}
    best = max(hits, key=lambda pattern: hits[pattern])
    return (best, hits[best]) if hits[best] else (None, 0)


def _scenes(text: str, pattern: re.Pattern[str]) -> list[Scene]:
    """Speeches in order, cut where the script marks a new act, scene or section."""
    from persona_lab.api import without_licence

    scenes: list[list[tuple[str, list[str]]]] = [[]]
    for line in without_licence(text).split("\n"):
        if _SCENE.match(line[:_LONGEST_LINE]):
            scenes.append([])
        elif (speech := _speech(line, pattern)) is not None:
            scenes[-1].append((speech[0], [speech[1]]))
        elif line.strip() and scenes[-1]:
            scenes[-1][-1][1].append(line.strip())
    spoken = [[(speaker, _words(" ".join(parts))) for speaker, parts in scene] for scene in scenes]
    return [[(speaker, words) for speaker, words in scene if words] for scene in spoken if scene]


def _words(text: str) -> str:
    """What is said, without stage directions, marks of emphasis and line wraps."""
    return " ".join(_DOTS.sub("...", _EMPHASIS.sub(r"\1", _STAGE.sub(" ", text))).split())


class ScriptReader(DatasetReader):
    """Plain text with a name before each speech."""

    id = "script"
    title = "Play or dialogue"
    summary = "Plain text, `Name: what they say` on each line; plays (`NAME. text`) too."
    rank = 50

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_text, without_licence

        text = peek_text(path)
        if text.lstrip().startswith(("{", '["', "[{")) or path.suffix.lower() in (".csv", ".tsv"):
            return Detection(score=0)
        lines = [line for line in without_licence(text).split("\n") if line.strip()][:400]
        pattern, hits = _pattern(lines)
        if pattern is None:
            return Detection(score=0, why="it is plain text without `Name: ...` lines")
        names = Counter(speech[0].casefold() for line in lines if (speech := _speech(line, pattern)))
        told = ", ".join(name for name, _ in names.most_common(3))
        again = sum(count for count in names.values() if count > 1)
        enough = len(names) > 1 and hits >= 2 and (again >= hits / 3 or hits < 6)
        score = min(0.85, 0.2 + hits / len(lines)) if enough else 0.1
        if enough and again >= 20:  # long speeches, many lines each: the names come back all the same
            score = max(score, 0.6)
        return Detection(score=score, why=f"{hits} of the first {len(lines)} lines begin with a speaker ({told})")

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        counts = Counter(speaker for scene in self._scenes(path) for speaker, _ in scene)
        return {"assistant": [name for name, _ in counts.most_common(50)]}

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        """`mapping` may have `assistant`: the name of the persona in the script."""
        from persona_lab.api import script_result

        return script_result(self._scenes(path), persona, mapping, path.name)

    def _scenes(self, path: Path) -> list[Scene]:
        from persona_lab.api import read_text

        text = read_text(path)
        pattern, _ = _pattern(text.split("\n"))
        if pattern is None:
            raise BadInput(
                f"{path} has no line that begins with a speaker.", "Write `Name: what they say` on each line."
            )
        return _scenes(text, pattern)
