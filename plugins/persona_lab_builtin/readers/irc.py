"""IRC logs: `[hh:mm] <nick> text` and its relatives (irssi, WeeChat, mIRC, dates in front). Many talks in one room.

`--map assistant=NICK,user=NICK|*,gap=MINUTES`. Joins, parts and other notices are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from persona_lab.api import BadInput, DatasetReader, Detection, Persona, ReadResult

_TIME = r"(?P<time>(?:\d{4}-\d\d-\d\d[T ])?\d{1,2}:\d\d(?::\d\d)?)"
_LINE = re.compile(rf"^\s{{0,4}}(?:\[?{_TIME}\]?\s{{1,4}})?<[@+%&~! ]?(?P<nick>[^<>\s]{{1,40}})>\s?(?P<text>.*)$")
_WEECHAT = re.compile(rf"^{_TIME}\t[@+%&~!]?(?P<nick>[^\s<>]{{1,40}})\t(?P<text>.*)$")
_COLOURS = re.compile(r"\x03\d{0,2}(?:,\d{1,2})?|[\x02\x0f\x16\x1d\x1f]")
_NOTICES = ("-->", "<--", "--", "*", "***", "=", "===", "-!-")
_LONGEST_LINE = 5_000
_DAY = 86_400.0
_PEEKED = 400


def _match(line: str) -> re.Match[str] | None:
    short = line[:_LONGEST_LINE]
    found = _LINE.match(short) or _WEECHAT.match(short)
    return None if found is None or found["nick"] in _NOTICES else found


class _Clock:
    """Times of day as seconds that only go forwards: after 23:59 comes the next day."""

    def __init__(self) -> None:
        self._day = 0.0
        self._last = 0.0

    def seconds(self, text: str | None) -> float | None:
        if not text:
            return None
        *date, time = re.split(r"[T ]", text)
        parts = [int(part) for part in time.split(":")]
        of_day = sum(part * scale for part, scale in zip(parts, (3600, 60, 1), strict=False))
        if date:
            import datetime

            try:
                return datetime.date.fromisoformat(date[0]).toordinal() * _DAY + of_day
            except ValueError:
                return None
        if of_day + self._day < self._last - 60:  # a minute back is a clock that was set, not a new day
            self._day += _DAY
        self._last = of_day + self._day
        return self._last


class IRCReader(DatasetReader):
    """Lines of `<nick> text`; who answers whom is told by the names in the lines, and by what stands near."""

    id = "irc"
    title = "IRC log"
    summary = "Lines of `[hh:mm] <nick> text`: say who is the character with --map assistant=NICK."
    rank = 40

    def detect(self, path: Path) -> Detection:
        from persona_lab.api import peek_text

        lines = [line for line in peek_text(path).split("\n") if line.strip()][:_PEEKED]
        nicks = [found["nick"] for line in lines if (found := _match(line))]
        if len(nicks) < 2 or len(set(nicks)) < 2:
            return Detection(score=0)
        return Detection(
            score=min(0.95, 0.4 + len(nicks) / len(lines)),
            why=f"{len(nicks)} of the first {len(lines)} lines are `<nick> text`, of {len(set(nicks))} nicks",
        )

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        from persona_lab.api import EVERYBODY, speakers

        names = speakers(self._said(path))
        return {"assistant": names, "user": [EVERYBODY, *names]}

    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        from persona_lab.api import chat_result

        said = self._said(path)
        if not said:
            raise BadInput(f"{path} has no line of the form `<nick> text`.", "Choose another format.")
        return chat_result(said, persona, mapping, path.name, room=len({line.speaker for line in said}) > 2)

    def _said(self, path: Path) -> list:
        from persona_lab.api import Said, read_text

        clock, said = _Clock(), []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            found = _match(line)
            if found:
                text = _COLOURS.sub("", found["text"]).strip()
                said.append(Said(number, found["nick"], text, clock.seconds(found["time"])))
        return said
