"""WhatsApp's Export chat: `31/12/23, 21:15 - Name: text` (Android) and `[31/12/23, 21:15:03] Name: text` (iOS)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult

_HEAD = re.compile(
    r"^\[?(?P<a>\d{1,4})[/.\-](?P<b>\d{1,2})[/.\-](?P<c>\d{1,4}),?\s{1,2}"
    r"(?P<hour>\d{1,2})[:.](?P<minute>\d\d)(?:[:.](?P<second>\d\d))?\s?(?P<half>[AaPp]\.?\s?[Mm]\.?)?\]?\s?(?:[-–]\s)?"
)
_SPEAKER = re.compile(r"^~?\s?([^:\n]{1,60}):\s(.*)$", re.S)
_INVISIBLE = re.compile(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_NOTICE = re.compile(
    r"^(?:<media omitted>|<medien ausgeschlossen>|<.{1,40}omitted>|"
    r".{0,20}(?:image|video|audio|sticker|gif|document|contact card) "
    r"omitted|this message was deleted\.?|you deleted this message\.?|missed (?:voice|video) call.*|null|"
    r"messages and calls are end-to-end encrypted.*|.{1,80}\(file attached\)|<attached: .{1,80}>)$",
    re.I,
)
_PEEKED = 300


class WhatsAppReader(DatasetReader):
    """One message a line, with date, time and name; what has no head goes on with the message before it."""

    id = "whatsapp"
    title = "WhatsApp chat"
    summary = "The text file of WhatsApp's Export chat: say who is the character with --map assistant=NAME."
    rank = 41

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_text

        lines = [line for line in _tidy(peek_text(path)).split("\n") if line.strip()][:_PEEKED]
        heads = sum(_HEAD.match(line[:200]) is not None for line in lines)
        spoken = sum(bool((m := _HEAD.match(line[:200])) and _SPEAKER.match(line[m.end() :])) for line in lines)
        if spoken < 2:
            return Detection(score=0)
        return Detection(
            score=min(0.95, 0.5 + heads / len(lines)),
            why=f"{spoken} of the first {len(lines)} lines are a date, a time, a name and a message",
        )

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        from persona_lab.api import EVERYBODY, speakers

        names = speakers(self._said(path)[0])
        return {"assistant": names, "user": [EVERYBODY, *names]}

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import chat_result

        said, notices = self._said(path)
        if not said:
            raise BadInput(f"{path} has no message of a WhatsApp chat.", "Choose another format.")
        result = chat_result(said, persona, mapping, path.name)
        told = (f"{notices} notices, calls and pictures were left out.",) if notices else ()
        return result.model_copy(update={"warnings": result.warnings + told})

    def _said(self, path: Path) -> tuple[list, int]:
        from persona_lab.api import Said, read_text

        said, notices = [], 0
        for number, when, body in _messages(_tidy(read_text(path))):
            spoken = _SPEAKER.match(body)
            text = spoken[2].strip() if spoken else ""
            if spoken is None or not text or _NOTICE.match(text):
                notices += 1
                continue
            said.append(Said(number, spoken[1].strip(), text.removesuffix("<This message was edited>").strip(), when))
        return said, notices


def _tidy(text: str) -> str:
    return _INVISIBLE.sub("", text).replace("\u202f", " ").replace("\xa0", " ")


def _messages(text: str) -> Iterable[tuple[int, float | None, str]]:
    """(line number, seconds, what follows the head) of each message; lines without a head go on with the one before."""
    found: list[tuple[int, re.Match[str], list[str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        head = _HEAD.match(line[:200])
        if head:
            found.append((number, head, [line[head.end() :]]))
        elif found:
            found[-1][2].append(line)
    day_first = _day_first([head for _, head, _ in found])
    for number, head, lines in found:
        yield number, _seconds(head, day_first), "\n".join(lines).rstrip()


def _day_first(heads: Sequence[re.Match[str]]) -> bool:
    """Whether 3/4 is the third of April: told by numbers over 12, else by the absence of am and pm."""
    if any(int(head["b"]) > 12 for head in heads):
        return False
    if any(12 < int(head["a"]) <= 31 for head in heads):
        return True
    return not any(head["half"] for head in heads)


def _seconds(head: re.Match[str], day_first: bool) -> float | None:
    a, b, c = int(head["a"]), int(head["b"]), int(head["c"])
    year, month, day = (a, b, c) if a > 31 else (c, b, a) if day_first else (c, a, b)
    hour = int(head["hour"])
    half = (head["half"] or "").lower()[:1]
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    try:
        moment = datetime.datetime(year + 2000 if year < 100 else year, month, day, hour, int(head["minute"]))
    except ValueError:
        return None
    return moment.toordinal() * 86_400.0 + hour * 3600 + moment.minute * 60 + int(head["second"] or 0)
