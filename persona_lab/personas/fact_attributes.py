"""What a card's "key: value" says of its character; nothing for keys and values that are not plain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from persona_lab.personas import fact_answers as lists
from persona_lab.personas import fact_questions as ask
from persona_lab.personas.card_sentences import Attribute
from persona_lab.personas.fact_patterns import Found, any_of, is_user, pattern_of
from persona_lab.personas.fact_questions import Asks

Row = tuple[str, str, Asks, str, tuple[str, ...]]
"""Kind, key, questions, answer, wrong answers to draw from."""
Read = Callable[[str, list[str]], Iterator[Row]]
"""Reads a value, whole and in its parts."""
_WHOLE_AGE = pattern_of(r"<AGE>(?:[ -]?(?:years?[ -]old|years?|y/?o|yrs?(?: old)?))?", re.IGNORECASE)
_WHOLE_PLACE = pattern_of("<PLACE>")
_NO_THING = re.compile(r"(?:h(?:er|is)|their|my|being|when|the way)\b", re.IGNORECASE)
_BUILDING = re.compile(r"\b(?:apartment|house|cottage|mansion|castle|dorm\w*|flat|forest|library|room|school)\b", re.I)


def read_attribute(attribute: Attribute) -> Iterator[Found]:
    """What a "key: value" says; nothing for keys and values that are not plain."""
    if re.search(r"\((?:[^)]*\b)?(?:former\w*|once|was|used|claims?|pretend\w*|fake)\b", attribute.value):
        return
    read = _KEYS.get(attribute.key)
    value = re.sub(r"\s*\([^)]*\)?", "", attribute.value).strip(" .\"'")
    parts = [part.strip(" .\"'") for part in re.split(r"[,+/|•]| and |\"", value)]
    parts = [part for part in parts if part]
    if attribute.key.startswith(("favorite ", "favourite ")):
        what = attribute.key.split(" ", 1)[1]
        wrong = lists.FAVOURITES.get(what)
        if wrong and len(parts) == 1 and _short(parts[0]):
            asks = (
                f"What is your favourite {what}?",
                f"Which {what} do you like best?",
                f"What {what} do you prefer to all others?",
            )
            yield Found("likes", f"favourite_{what}", asks, _uncapitalised(parts[0]), wrong, attribute.text)
    elif read and parts:
        for kind, key, asks, answer, wrong in read(value, parts):
            yield Found(kind, key, asks, answer, wrong, attribute.text)


def _short(text: str, words: int = 4) -> bool:
    return (
        len(text) <= 40
        and len(text.split()) <= words
        and not is_user(text)
        and not re.search(
            r"[.:;?!\[\]{}<>=]|\b(?:unknown|none|n/a|unspecified|secret|classified|varies|any|not|no|tbd)\b", text, re.I
        )
    )


def _read_age(value: str, parts: list[str]) -> Iterator[Row]:
    if re.match(r"\d+\+", value):
        return
    match = _WHOLE_AGE.fullmatch(parts[0])
    if match:
        yield "age", "age", ask.AGE, match[1], lists.other_numbers(match[1])


def _one(kind: str, key: str, asks: Asks, wrong: Callable[[str], tuple[str, ...]], words: int = 4) -> Read:
    def read(value: str, parts: list[str]) -> Iterator[Row]:
        if len(parts) == 1 and _short(parts[0], words):
            yield kind, key, asks, _uncapitalised(parts[0]) if kind == "job" else parts[0], wrong(parts[0])

    return read


def _uncapitalised(text: str) -> str:
    """ "Ghost Hunter" as "ghost hunter", like the answers beside it; names and abbreviations stay."""
    return text.lower() if all(word.istitle() for word in text.split()) else text


def _place(kind: str, asks: Asks) -> Read:
    def read(value: str, parts: list[str]) -> Iterator[Row]:
        if _WHOLE_PLACE.fullmatch(parts[0]) and _short(parts[0]) and not _BUILDING.search(parts[0]):
            yield kind, kind, asks, parts[0], lists.other_places(parts[0])

    return read


def _colour(key: str, colours: tuple[str, ...], asks: Asks, wrong: tuple[str, ...]) -> Read:
    def read(value: str, parts: list[str]) -> Iterator[Row]:
        found = set(re.findall(rf"\b(?:{any_of(colours)})\b", value.lower()))
        if len(found) == 1 and not re.search(r"\b(?:streaks?|tips|dyed|highlights|one|left|right)\b", value.lower()):
            yield "looks", key, asks, found.pop(), wrong

    return read


def _each(kind: str, asks: Asks, wrong: tuple[str, ...], known: tuple[str, ...] = ()) -> Read:
    """The first part that is known; the first part of all, if it is plain, where any answer will do."""

    def read(value: str, parts: list[str]) -> Iterator[Row]:
        for part in parts[:6] if known else parts[:1]:
            plain = _short(part, 3) and part[0].isalpha() and not _NO_THING.match(part)
            spelled = next((name for name in known if name.lower() == part.lower()), None)
            if spelled or (plain and not known):
                yield kind, kind, asks, spelled or _uncapitalised(part), wrong
                return

    return read


def _date(value: str, parts: list[str]) -> Iterator[Row]:
    month = any_of(lists.MONTHS)
    match = re.match(
        rf"(?:(?:{month}) \d{{1,2}}(?:st|nd|rd|th)?\b|\d{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{month}))(?!\w)", value, re.I
    )
    if match:
        yield "birthday", "birthday", ask.BIRTHDAY, match[0], lists.other_dates(match[0])


def _height(value: str, parts: list[str]) -> Iterator[Row]:
    match = re.match(r"\d ?['’] ?\d{1,2}(?:\"|'')?|\d{3} ?cm", value)
    if match and lists.other_heights(match[0]):
        yield "height", "height", ask.HEIGHT, match[0], lists.other_heights(match[0])


_job_key = _one("job", "job", ask.JOB, lambda a: lists.JOBS_WRONG)
_species_key = _each("species", ask.SPECIES, lists.SPECIES_WRONG, lists.SPECIES)  # a "race" may be something else
_hair_key = _colour("hair", lists.HAIR, ask.HAIR, lists.HAIR_WRONG)
_eyes_key = _colour("eyes", lists.EYES, ask.EYES, lists.EYES_WRONG)
_dislike_key = _each("dislike", ask.HATE, lists.DISLIKES)
_fear_key = _each("fear", ask.FEAR, lists.FEARS)
_hobby_key = _each("hobby", ask.HOBBY, lists.HOBBIES_WRONG, lists.HOBBIES)
_home_key = _place("home", ask.HOME)
_KEYS: dict[str, Read] = {
    "age": _read_age,
    **dict.fromkeys(("occupation", "job", "profession"), _job_key),
    **dict.fromkeys(("species", "race"), _species_key),
    "nationality": _one("nationality", "nationality", ask.NATION, lambda a: lists.NATIONALITIES[:20], 2),
    **dict.fromkeys(("birthplace", "place of birth", "born in"), _place("born", ask.BORN)),
    **dict.fromkeys(("hometown", "home town"), _place("origin", ask.ORIGIN)),
    **dict.fromkeys(("residence", "home", "lives in"), _home_key),
    **dict.fromkeys(("hair", "hair color", "hair colour"), _hair_key),
    **dict.fromkeys(("eyes", "eye color", "eye colour"), _eyes_key),
    "height": _height,
    **dict.fromkeys(("birthday", "date of birth", "birth date"), _date),
    **dict.fromkeys(("dislikes", "hates"), _dislike_key),
    **dict.fromkeys(("fears", "fear", "phobia"), _fear_key),
    **dict.fromkeys(("hobbies", "hobby", "likes", "loves"), _hobby_key),
    **dict.fromkeys(
        ("employer", "workplace", "works at"), _one("employer", "employer", ask.WORK, lambda a: lists.COMPANIES)
    ),
    **dict.fromkeys(
        ("zodiac", "zodiac sign", "star sign"),
        _each("sign", ask.SIGN, lists.SIGNS, lists.SIGNS),
    ),
    "nickname": _one("name", "nickname", ask.NICK, lambda a: lists.NAMES, 2),
    "instrument": _each("instrument", ask.PLAY, lists.INSTRUMENTS_WRONG, lists.INSTRUMENTS),
}
