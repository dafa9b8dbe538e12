"""Film scripts: a name in capitals on its own line, what is said below it, then a blank line. Fountain too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult

_NAME = re.compile(
    r"^\s{0,60}@?([A-Z][A-Z0-9 .'’-]{0,38}[A-Z0-9.])\s*(?:\((?:[A-Z. ,'’]{1,30}|[a-z. ,']{1,30})\)\s*){0,2}\^?$"
)
_SCENE = re.compile(
    r"^\s*(?:INT|EXT|EST|INT\.?/EXT|I/E)[. ]|^\s*(?:FADE|CUT|DISSOLVE|SMASH)\b.{0,40}|^\s*(?:THE )?END\.?$|^\.[A-Z]"
)
_ASIDE = re.compile(r"\([^()\n]{0,200}\)")
_LONGEST_LINE = 2_000
_PEEKED = 1_500


def _name(lines: Sequence[str], at: int) -> str:
    """The speaker whose cue stands in line `at`: it follows a blank line, and something is said right below."""
    line = lines[at][:_LONGEST_LINE]
    if not line.strip() or (at and lines[at - 1].strip()) or _SCENE.match(line):
        return ""
    below = lines[at + 1].strip() if at + 1 < len(lines) else ""
    found = _NAME.match(line)
    return found[1].strip() if found and below and not below.isupper() else ""


def _scenes(text: str) -> list[list[tuple[str, str]]]:
    lines = text.split("\n")
    scenes: list[list[tuple[str, str]]] = [[]]
    at = 0
    while at < len(lines):
        if _SCENE.match(lines[at][:_LONGEST_LINE]):
            scenes.append([])
        elif speaker := _name(lines, at):
            said: list[str] = []
            while at + 1 < len(lines) and lines[at + 1].strip():
                at += 1
                said.append(lines[at].strip())
            spoken = " ".join(_ASIDE.sub(" ", " ".join(said)).split())
            if spoken:
                scenes[-1].append((speaker, spoken))
        at += 1
    return [scene for scene in scenes if scene]


class ScreenplayReader(DatasetReader):
    """Cues in capitals above the words; (asides), action and scene headings are left out."""

    id = "screenplay"
    title = "Film script"
    summary = "A screenplay: a NAME on its own line, the words below it. Also Fountain."
    rank = 51

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_text

        lines = peek_text(path).split("\n")[:_PEEKED]
        cues = Counter(name for at in range(len(lines)) if (name := _name(lines, at)))
        scenes = sum(_SCENE.match(line[:_LONGEST_LINE]) is not None for line in lines)
        again = sum(count for count in cues.values() if count > 1)
        if len(cues) < 2 or again < 4:
            return Detection(score=0)
        told = ", ".join(name for name, _ in cues.most_common(3))
        return Detection(
            score=min(0.9, 0.35 + 3 * again / len(lines) + (0.3 if scenes else 0.0)),
            why=f"{sum(cues.values())} times a name in capitals stands above what is said ({told})",
        )

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        from persona_lab.api import read_text

        counts = Counter(speaker for scene in _scenes(read_text(path)) for speaker, _ in scene)
        return {"assistant": [name for name, _ in counts.most_common(50)]}

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import read_text, script_result

        scenes = _scenes(read_text(path))
        if not scenes:
            raise BadInput(f"{path} has no name in capitals above what is said.", "Choose another format.")
        return script_result(scenes, persona, mapping, path.name)
