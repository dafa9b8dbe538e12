"""Many talks at once, told apart: whom each line of the character is said to, and what it answers.

A line that begins (or ends) with a name is said to that speaker. Of lines that name nobody, the partner is guessed: by
how near, how related and how asked the lines before it are. These rules are heuristics, measured on hand-labelled
exchanges in tests/unit/test_chat_readers.py.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from persona_lab.datasets.progress import ticking
from persona_lab.datasets.talks import EVERYBODY, MOST_EXCHANGES, Said, Talk, close
from persona_lab.types import Conversation

_LOOK_BACK = 40
_LOOK_BACK_SECONDS = 360.0
_BURST_SECONDS = 240.0
_BURST_LINES = 4
_OLDEST_SECONDS = 1200.0
_ADDRESS = re.compile(r"^@?([^\s:,;>]{2,40})\s?[:,;>]\s+(?=\S)")
_WORD = re.compile(r"[\w.]{3,}")
_ASKING = re.compile(
    r"\?|^(?:what|how|why|where|who|which|when|can|could|does|do|is|are|should|would|will|anyone|any|help)\b", re.I
)
_COMMON = frozenset(
    ("the", "and", "you", "that", "this", "with", "for", "have", "but",
     "not", "are", "was", "can", "from", "just", "they", "what", "there", "about")
)  # fmt: skip


def with_addressees(lines: Sequence[Said], counts: Counter[str]) -> list[Said]:
    """Lines with the name they begin (or end) with taken off and noted as the addressee."""
    known = _Names(counts)
    result = []
    for line in ticking(lines, len(lines), "telling who answers whom"):
        to, text = line.to if line.to in counts else "", line.text
        if not to:
            to, text = known.addressee(line.text)
        result.append(Said(line.number, line.speaker, text, line.seconds, "" if to == line.speaker else to))
    return result


class _Names:
    """Which speaker a word means: the name, its beginning, or a misspelling of it."""

    def __init__(self, counts: Counter[str]) -> None:
        self._exact = {name.casefold(): name for name in counts}
        self._plain: dict[str, str] = {}
        for name in counts:
            self._plain.setdefault(_letters(name), name)
        self._seen: dict[str, str] = {}

    def addressee(self, text: str) -> tuple[str, str]:
        """(the speaker a line is said to, the line without that name); ("", text) where it names nobody."""
        start = _ADDRESS.match(text)
        if start and (name := self._meant(start[1])):
            return name, text[start.end() :]
        words = text.split()
        if len(words) > 1:
            for word in (words[0], re.split(r"[\s@]", text.rstrip())[-1]):
                exact = self._exact.get(word.casefold().strip("@"))
                if exact and len(exact) > 3:
                    return exact, text
        return "", text

    def _meant(self, word: str) -> str:
        if word not in self._seen:
            self._seen[word] = self._look_up(word)
        return self._seen[word]

    def _look_up(self, word: str) -> str:
        exact = self._exact.get(word.casefold())
        plain = _letters(word)
        if exact or not plain:
            return exact or ""
        if plain in self._plain:
            return self._plain[plain]
        longer = [name for letters, name in self._plain.items() if letters.startswith(plain)]
        if len(plain) >= 4 and len(longer) == 1:
            return longer[0]
        near = difflib.get_close_matches(plain, list(self._plain), n=1, cutoff=0.87) if len(plain) >= 5 else []
        return self._plain[near[0]] if near else ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def of_room(lines: Sequence[Said], character: str, partner: str, gap: float, source: str) -> list[Conversation]:
    """Each of the character's lines given to one partner; a conversation a partner, cut at long silences."""
    found: list[Conversation] = []
    talks: dict[str, Talk] = {}
    of: dict[str, list[int]] = defaultdict(list)
    last = _Last()
    for i, line in enumerate(ticking(lines, len(lines), "telling who answers whom")):
        if line.speaker != character:
            of[line.speaker].append(i)
            continue
        whom = line.to or _answered(lines, i, character, last)
        if not whom or (partner != EVERYBODY and whom != partner):
            last = _Last(whom, i)
            continue
        talk = talks.get(whom)
        asked = _turn(lines, i, of[whom], character, talk.last if talk else -1)
        if talk and _silent(lines, talk.last, asked[0] if asked else i, gap):
            close(talk, found, source)
            talk = None
        if talk and asked and talk.replies >= MOST_EXCHANGES:
            close(talk, found, source)
            talk = None
        if talk is None:
            talk = talks[whom] = Talk(number=lines[asked[0]].number if asked else line.number)
        talk.turns += [("user", lines[j].text) for j in asked]
        talk.replies += bool(asked)
        talk.turns.append(("assistant", line.text))
        talk.last = i
        last = _Last(whom, i)
    for talk in talks.values():
        close(talk, found, source)
    return sorted(found, key=lambda conversation: int(conversation.id.rsplit(":", 1)[1]))


@dataclass(frozen=True)
class _Last:
    """Whom the character spoke to last, and in which line."""

    whom: str = ""
    at: int = -1


def _answered(lines: Sequence[Said], i: int, character: str, last: _Last) -> str:
    """Whom a line that names nobody answers: the best of the lines before it, or the partner it goes on talking to."""
    line = lines[i]
    if last.whom and last.at == i - 1 and _near(lines, last.at, i, _BURST_SECONDS):
        return last.whom  # nobody came between
    words = _content(line.text)
    best, best_score = "", 0.0
    for j in range(i - 1, max(i - _LOOK_BACK, 0) - 1, -1):
        other = lines[j]
        if other.speaker == character or not _near(lines, j, i, _LOOK_BACK_SECONDS):
            continue
        score = 0.6 * min(len(words & _content(other.text)), 2) + 0.7 * bool(_ASKING.search(other.text))
        score += 0.9 if other.to == character else -0.8 if other.to else 0.0
        score += 1.0 if other.speaker == last.whom and _near(lines, last.at, i, 90) else 0.0
        score += 0.5 - 0.05 * (i - j)
        if score > best_score:
            best, best_score = other.speaker, score
    return best


def _turn(lines: Sequence[Said], i: int, theirs: Sequence[int], character: str, since: int) -> list[int]:
    """The partner's lines that line `i` answers: since the character's last one to them, a burst at most."""
    fresh = [j for j in theirs[bisect_right(theirs, since) :] if _near(lines, j, i, _OLDEST_SECONDS)]
    said = [j for j in fresh if lines[j].to in ("", character)]
    if not said:
        return fresh[-1:]  # said to somebody else, and answered all the same
    burst = [j for j in said if _near(lines, j, i, _BURST_SECONDS)]
    return (burst or said)[-_BURST_LINES:]


def _silent(lines: Sequence[Said], before: int, after: int, gap: float) -> bool:
    return not _near(lines, before, after, gap)


def _near(lines: Sequence[Said], before: int, after: int, seconds: float) -> bool:
    """Whether two lines are within so many seconds; without times, within two lines a minute."""
    a, b = lines[before].seconds, lines[after].seconds
    apart = b - a if a is not None and b is not None else 10.0 * (after - before)
    return abs(apart) <= seconds


def _content(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if word not in _COMMON}
