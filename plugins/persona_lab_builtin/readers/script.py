"""Scripts and chat logs: `Name: text`, `NAME. text` and `[hh:mm] <nick> text`, one speech after another.

The persona's lines are the assistant's; what others say before each is the user's. Lines without a name go on with the
speech before them; stage directions in [square brackets] are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult

_COLON = re.compile(
    r"^\s{0,8}[*_]{0,2}([^\W\d_][\w .,'’&-]{0,39}?)[*_]{0,2}\s*(?:\([^()]{0,80}\))?\s*:[*_]{0,2}(?:\s+(.*)|$)"
)
_CAPITALS = re.compile(r"^\s{0,8}([A-Z][A-Z .'’-]{1,38}[A-Z])\.(?:\s+(.*)|$)")
_NICK = re.compile(r"^\s*(?:\[[\d:. -]{3,20}\]\s*)?<[@+ ]?([^<>\s]{1,40})>\s?(.*)$")
_STAGE = re.compile(r"\[[^\[\]]{0,2000}\]")
_SCENE = re.compile(
    r"^\s*(?:(?:ACT|SCENE|CHAPTER)\b.{0,60}|[*=#~-]{3,}\s*|(?:\* ){2,}\*?\s*|#{1,6} .{0,80})$", re.IGNORECASE
)
_MOST_WORDS_IN_A_NAME = 4
_LONGEST_LINE = 20_000

Scene = list[tuple[str, str]]


def _speech(line: str, pattern: re.Pattern[str]) -> tuple[str, str] | None:
    match = pattern.match(line[:_LONGEST_LINE])
    if not match or len(match[1].split()) > _MOST_WORDS_IN_A_NAME:
        return None
    return match[1].strip(), match[2] or ""


def _pattern(lines: list[str]) -> tuple[re.Pattern[str] | None, int]:
    """The style that most lines are in, and how many."""
    hits = {
        pattern: sum(_speech(line, pattern) is not None for line in lines) for pattern in (_COLON, _CAPITALS, _NICK)
    }
    best = max(hits, key=lambda pattern: hits[pattern])
    return (best, hits[best]) if hits[best] else (None, 0)


def _scenes(text: str, pattern: re.Pattern[str]) -> list[Scene]:
    """Speeches in order, cut where the script marks a new act, scene or section."""
    scenes: list[Scene] = [[]]
    for line in text.split("\n"):
        if _SCENE.match(line):
            scenes.append([])
        elif (speech := _speech(line, pattern)) is not None:
            scenes[-1].append(speech)
        elif line.strip() and scenes[-1]:
            speaker, spoken = scenes[-1][-1]
            scenes[-1][-1] = (speaker, f"{spoken} {line.strip()}")
    return [[(speaker, _STAGE.sub(" ", spoken).strip()) for speaker, spoken in scene] for scene in scenes if scene]


class ScriptReader(DatasetReader):
    """Plain text with a name before each speech."""

    id = "script"
    title = "Script or chat log"
    summary = "Plain text, `Name: what they say` on each line; plays (`NAME. text`) and IRC logs too."
    rank = 50

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import read_text

        try:
            text = read_text(path)[:100_000]
        except BadInput:
            return Detection(score=0)
        if text.lstrip().startswith(("{", '["', "[{")) or path.suffix.lower() in (".csv", ".tsv"):
            return Detection(score=0)
        lines = [line for line in text.split("\n") if line.strip()][:400]
        pattern, hits = _pattern(lines)
        if pattern is None:
            return Detection(score=0, why="it is plain text without `Name: ...` lines")
        names = Counter(speech[0].casefold() for line in lines if (speech := _speech(line, pattern)))
        told = ", ".join(name for name, _ in names.most_common(3))
        score = min(0.85, 0.2 + hits / len(lines)) if len(names) > 1 and hits >= 2 else 0.1
        return Detection(score=score, why=f"{hits} of the first {len(lines)} lines begin with a speaker ({told})")

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        """`mapping` may have `assistant`: the name of the persona in the script."""
        from persona_lab.api import dialogue, match_speaker, read_text

        text = read_text(path)
        pattern, _ = _pattern(text.split("\n"))
        if pattern is None:
            raise BadInput(
                f"{path} has no line that begins with a speaker.", "Write `Name: what they say` on each line."
            )
        scenes = _scenes(text, pattern)
        counts = Counter(speaker.casefold() for scene in scenes for speaker, _ in scene)
        names = [mapping["assistant"]] if mapping.get("assistant") else [persona.name, persona.field("nickname")]
        speaker = match_speaker(counts, names)
        if speaker is None:
            told = ", ".join(f"{name} ({count})" for name, count in counts.most_common(15))
            raise BadInput(
                f"{path} has no lines of {names[0]!r}. Its speakers, with their number of lines: {told}.",
                "Say who is the character with --map assistant=NAME.",
            )
        found = dialogue(scenes, speaker, path.name)
        notes = (
            ()
            if speaker in [name.casefold() for name in names]
            else (f"Lines of {speaker!r} were taken as {names[0]}'s.",)
        )
        return ReadResult(conversations=tuple(found.conversations), others=tuple(found.others), warnings=notes)
