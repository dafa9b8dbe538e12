"""Logs of chats to conversations of one speaker: who answers whom, where a talk ends, what is only noise.

A log is lines (`Said`). In a talk of two, turns follow each other. In a room of many, talks run through each other:
each line of the character is given to one partner (whom it names, else by how near, how related and how asked the
lines before it are), and the partner's lines since the character's last one to them are the user's turn.

It knows no file format (the readers do). The rules for lines that name nobody are heuristics, measured on hand-labelled
exchanges in tests/unit/test_chat_readers.py.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from persona_lab.api import ReadResult
from persona_lab.datasets.progress import ticking
from persona_lab.datasets.toolkit import clean
from persona_lab.datasets.turns import UnusableRow, dialogue, make_conversation, match_speaker
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Persona, Role

EVERYBODY = "*"
MOST_EXCHANGES = 6
ROOM_GAP_MINUTES = 30.0
TALK_GAP_MINUTES = 180.0
NAMED_SPEAKERS = 15
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
    [
        "the",
        "and",
        "you",
        "that",
        "this",
        "with",
        "for",
        "have",
        "but",
        "not",
        "are",
        "was",
        "can",
        "from",
        "just",
        "they",
        "what",
        "there",
        "about",
    ]
)


@dataclass(frozen=True)
class Said:
    """One line of a log.

    `number`: of its line or row in the file; `seconds`: when, on any clock that only goes forwards, or None; `to`: the
    speaker it is said to, where the log itself tells (a reply, an @mention).
    """

    number: int
    speaker: str
    text: str
    seconds: float | None = None
    to: str = ""


@dataclass
class _Talk:
    """What the character and one partner said to each other so far, and where it stands."""

    turns: list[tuple[Role, str]] = field(default_factory=list)
    number: int = 0
    last: int = -1
    replies: int = 0


def chat_result(
    said: Sequence[Said], persona: Persona, mapping: Mapping[str, str], source: str, room: bool | None = None
) -> ReadResult:
    """A log as what a reader gives: conversations of the character, and lines of the others.

    Args:
        mapping: `assistant` (the speaker who is the character; default: the persona's name or nickname), `user` (one
            speaker, or `*` for everybody), `gap` (minutes of silence that end a conversation).
        source: the file's name, for ids.
        room: True: many talks at once, to be told apart; False: one talk; None: a room if more than two speak.

    Raises:
        BadInput: the mapping names nobody, or nobody in the log is the persona; the speakers are listed.
    """
    lines = [line for line in said if clean(line.text)]
    counts = Counter(line.speaker for line in lines)
    character = _speaker(mapping.get("assistant", ""), counts, persona, source)
    partner = mapping.get("user", EVERYBODY)
    if partner != EVERYBODY:
        partner = _speaker(partner, counts, None, source, role="user")
    many = len(counts) > 2 if room is None else room
    gap = _gap(mapping.get("gap", ""), ROOM_GAP_MINUTES if many else TALK_GAP_MINUTES)
    addressed = _with_addressees(lines, counts) if many else list(lines)
    make = _of_room if many else _of_talk
    conversations = make(addressed, character, partner, gap, source)
    others = [clean(line.text) for line in addressed if line.speaker != character]
    told = f"{character!r} is the character ({counts[character]} lines)"
    with_whom = "everybody else" if partner == EVERYBODY else repr(partner)
    notes = [f"{told}; the other side is {with_whom}."]
    if many:
        notes.append("Lines of a room are shared out to talks by whom they name, else by what they seem to answer.")
    return ReadResult(conversations=tuple(conversations), others=tuple(others), warnings=tuple(notes))


def speakers(said: Sequence[Said], most: int = 50) -> list[str]:
    """Who speaks, most lines first."""
    return [name for name, _ in Counter(line.speaker for line in said).most_common(most)]


def _speaker(wanted: str, counts: Counter[str], persona: Persona | None, source: str, role: str = "assistant") -> str:
    names = [wanted] if wanted else [persona.name, persona.field("nickname")] if persona else []
    found = match_speaker(counts, names)
    if found is not None:
        return found
    told = ", ".join(f"{name} ({count})" for name, count in counts.most_common(NAMED_SPEAKERS))
    near = difflib.get_close_matches(wanted, list(counts), n=1) if wanted else []
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise BadInput(
        f"{source} has no lines of {names[0]!r}. Its speakers, with their number of lines: {told or 'nobody'}.",
        f"{hint}Say who is {'the character' if role == 'assistant' else 'the other side'} with --map {role}=NAME.",
    )


def _gap(text: str, default: float) -> float:
    if not text:
        return default * 60
    try:
        minutes = float(text)
    except ValueError as error:
        raise BadInput(f"--map gap={text!r} is no number.", "Give minutes, for example --map gap=30.") from error
    if not 0 < minutes <= 60 * 24 * 365:
        raise BadInput(f"--map gap={text} is out of range.", "Give minutes of silence, for example --map gap=30.")
    return minutes * 60


# --- one talk -------------------------------------------------------------------------------------


def _of_talk(lines: Sequence[Said], character: str, partner: str, gap: float, source: str) -> list[Conversation]:
    """Turn after turn, cut at long silences."""
    found: list[Conversation] = []
    talk = _Talk()
    before: float | None = None
    for line in ticking(lines, len(lines), "telling who answers whom"):
        if partner != EVERYBODY and line.speaker not in (character, partner):
            continue
        role: Role = "assistant" if line.speaker == character else "user"
        silent = before is not None and line.seconds is not None and line.seconds - before > gap
        full = role == "user" and talk.replies >= MOST_EXCHANGES and talk.turns[-1][0] == "assistant"
        if silent or full:
            _close(talk, found, source)
            talk = _Talk()
        talk.number = talk.number or line.number
        talk.replies += role == "assistant" and (not talk.turns or talk.turns[-1][0] == "user")
        talk.turns.append((role, line.text))
        before = line.seconds if line.seconds is not None else before
    _close(talk, found, source)
    return found


def _close(talk: _Talk, found: list[Conversation], source: str) -> None:
    if not talk.turns or not any(role == "user" for role, _ in talk.turns):
        return  # the character alone: nobody asked
    try:
        found.append(make_conversation(talk.turns, f"{source}:{talk.number}"))
    except UnusableRow:
        return  # only the others spoke: counted as theirs


# --- a room ---------------------------------------------------------------------------------------


def _with_addressees(lines: Sequence[Said], counts: Counter[str]) -> list[Said]:
    """Lines with the name they begin (or end) with taken off and noted as the addressee."""
    known = _Names(counts)
    result = []
    for line in lines:
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


def _of_room(lines: Sequence[Said], character: str, partner: str, gap: float, source: str) -> list[Conversation]:
    """Each of the character's lines given to one partner; a conversation a partner, cut at long silences."""
    found: list[Conversation] = []
    talks: dict[str, _Talk] = {}
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
            _close(talk, found, source)
            talk = None
        if talk and asked and talk.replies >= MOST_EXCHANGES:
            _close(talk, found, source)
            talk = None
        if talk is None:
            talk = talks[whom] = _Talk(number=lines[asked[0]].number if asked else line.number)
        talk.turns += [("user", lines[j].text) for j in asked]
        talk.replies += bool(asked)
        talk.turns.append(("assistant", line.text))
        talk.last = i
        last = _Last(whom, i)
    for talk in talks.values():
        _close(talk, found, source)
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
    fresh = [j for j in theirs if j > since and _near(lines, j, i, _OLDEST_SECONDS)]
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


def chats_result(
    chats: Sequence[Sequence[Said]], persona: Persona, mapping: Mapping[str, str], source: str
) -> ReadResult:
    """As `chat_result`, of several chats of one file: the character's own name is looked for in each.

    Raises:
        BadInput: in none of them.
    """
    every = [line for chat in chats for line in chat]
    counts = Counter(line.speaker for line in every)
    _speaker(mapping.get("assistant", ""), counts, persona, source)  # says who there is, if nobody fits
    results = []
    for chat in chats:
        try:
            results.append(chat_result(chat, persona, mapping, source))
        except BadInput:
            continue  # a chat without the character
    return ReadResult(
        conversations=tuple(c for result in results for c in result.conversations),
        others=tuple(text for result in results for text in result.others),
        warnings=tuple(dict.fromkeys(text for result in results for text in result.warnings)),
    )


# --- scripts --------------------------------------------------------------------------------------


def script_result(
    scenes: Sequence[Sequence[tuple[str, str]]], persona: Persona, mapping: Mapping[str, str], source: str
) -> ReadResult:
    """Speeches of a play or a film as what a reader gives. `mapping` may have `assistant`, the name in the script.

    Raises:
        BadInput: nobody in it is the persona; the speakers are listed.
    """
    counts = Counter(speaker.casefold() for scene in scenes for speaker, _ in scene)
    speaker = _speaker(mapping.get("assistant", ""), counts, persona, source)
    found = dialogue(scenes, speaker, source)
    name = mapping.get("assistant") or persona.name
    same = speaker in (name.casefold(), persona.field("nickname").casefold())
    notes = () if same else (f"Lines of {speaker!r} were taken as {name}'s.",)
    return ReadResult(conversations=tuple(found.conversations), others=tuple(found.others), warnings=notes)
