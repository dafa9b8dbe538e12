"""A card's text as sentences about the character, and as "key: value" attributes. Bounded; knows no facts.

Who a sentence is about is decided by its first words; after a sentence about somebody else, a pronoun may mean that
other person, so such sentences are left out until the character is named again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from persona_lab.personas.prompt import substitute
from persona_lab.types import Persona

MAX_TEXT = 60_000
MAX_SENTENCE = 600
USER = "User"
_FIELDS = ("description", "personality", "scenario")
_GROUP = re.compile(r"&|,|/|\band\b|\bnarrator\b|\bsimulator\b|\brpg\b|\bassistant\b", re.IGNORECASE)
_END = re.compile(r"(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bSt)(?<!\b[A-Z])[.!?]+[\"”’)*]*\s+(?=[\"“(*]?[A-Z])")
_MARKUP = re.compile(r"\*+|_{2,}|`+|^\s*(?:[-•>#+]+|\d+[.)])\s+", re.MULTILINE)
_QUOTE = re.compile(r"[\"“][^\"“”\n]{25,600}[\"”]")
_PRONOUN = re.compile(r"(?:He|She|They|I)(?=\b)(?!-)")
_GENDER = {"she": "she", "her": "she", "he": "he", "his": "he"}
_LEAD = re.compile(
    r"(?:At|In|On|With|Despite|By|From|Born|Standing|Working|Living|Now|Currently|Today|Although|Originally)\b"
    r"[^,;:]{0,60}, (?=\w)"
)
_SHE = re.compile(
    r"\b(?:sister|mother|daughter|wife|aunt|grandmother|granddaughter|niece|mistress|queen|princess|mom|mum|mrs|ms|miss"
    r"|girlfriend|fianc\w+|woman|girl|lady)\b",
    re.IGNORECASE,
)
_HE = re.compile(
    r"\b(?:brother|father|son|husband|uncle|grandfather|grandson|nephew|master|king|prince|dad|mr|boyfriend|fianc\w+)\b"
    r"|\b(?:man|boy|gentleman)\b",
    re.IGNORECASE,
)
_EITHER = re.compile(
    r"\b(?:child|cousin|\w*friend|rival|boss|partner|mentor|lover|enemy|teacher|tutor|colleague|employer|roommate"
    r"|neighbou?r|twin|pet|cat|dog|horse|married|engaged)\b"
    r"|\b(?-i:(?:with|to|and|loves|knows|met|meets) [A-Z][a-z])",
    re.IGNORECASE,
)
_POSSESSIVE = re.compile(r"(?:His|Her|Their|My)\b")
_IMPLICIT = re.compile(r"An? (?=[\w'-]+[ ,-])")
_KEY = re.compile(
    r"(?:^|[\n;,|\[({})+•>*-])[ \t]*[\"*_]*(?:(?P<owner>[\w'’. -]{1,40})['’]s )?"
    r"(?P<key>[A-Za-z][A-Za-z' ]{1,24}?)[\"*_]*[ \t]*(?:[:=]|\()[ \t\"*_]*(?=\S)"
)
_VALUE_END = re.compile(r"[\n;\]})|]")


@dataclass(frozen=True)
class Sentence:
    """`text` is whole, for people; `rest` is what follows the subject.

    about: `subject` (the character does or is something), `owns` (the character's something is or does), `implied`
    (no subject: "A 30-year-old baker who ...").
    """

    text: str
    rest: str
    about: Literal["subject", "owns", "implied"]


@dataclass(frozen=True)
class Attribute:
    """One "key: value" of the character; the key in lower case."""

    key: str
    value: str
    text: str


def own_names(persona: Persona) -> tuple[str, ...]:
    """What the character goes by, longest first: the whole name, its parts, the nickname."""
    whole = persona.name.strip()
    parts = [part for part in re.findall(r"[\w'’.-]+", whole) if len(part) > 2 and part[0].isupper()]
    titles = {"the", "dr.", "dr", "mr.", "mrs.", "ms.", "sir", "lady", "lord", "captain", "professor", "of"}
    named = [whole, persona.field("nickname")[:200].strip(), *(part for part in parts if part.lower() not in titles)]
    return tuple(sorted({name for name in named if name}, key=lambda name: (-len(name), name)))


def card_texts(persona: Persona) -> list[str]:
    """The fields that say who the character is, macros filled in; empty for cards of several people."""
    if _GROUP.search(persona.name):
        return []
    texts, left = [], MAX_TEXT
    for field in _FIELDS:
        text = substitute(persona.field(field)[:left], persona, USER)[:left]
        texts.append(text)
        left -= len(text)
    return texts


def sentences(texts: Sequence[str], persona: Persona) -> Iterator[Sentence]:
    """Those about the character, in order."""
    names = "|".join(re.escape(name) for name in own_names(persona))
    subject = re.compile(rf"(?:{names})(?: \"[^\"]{{1,20}}\")?(?: (?:{names}))*(?!\w|-)")
    one_gender = any(re.search(r"\b(?:She|He)\b", text) for text in texts)  # then "they" are several people
    for text in texts:
        others: frozenset[str] = frozenset()  # the pronouns that may mean somebody else
        you = re.match(rf"\s*You(?: are|['’]re) (?:{names}|an? )", text) is not None
        for index, sentence in enumerate(_split(text)):
            pronoun = re.match(r"\w*", sentence)[0].lower()  # type: ignore[index]
            own = _GENDER.get(pronoun, "they") not in others and not (pronoun in ("they", "their") and one_gender)
            found = _about(sentence, subject, own, you, first=index == 0)
            others = _others(sentence, found)
            if found:
                rest = re.sub(rf"^(?: am|'m| are|'re| is) (?:{names})(?=,)", "", found.rest)
                is_named = re.match(r" is ", rest)
                if is_named and (full := _full_name(rest[4:], subject)):
                    rest = rest[4 + full.end() :]
                yield Sentence(found.text, rest, found.about)


def attributes(texts: Iterable[str], persona: Persona) -> Iterator[Attribute]:
    """Every "key: value", "key = value" and `key("value" + "value")` up to where somebody else is introduced."""
    own = {word.lower() for name in own_names(persona) for word in name.split()}
    for text in texts:
        for match in _KEY.finditer(text):
            value = text[match.end() : match.end() + 240]
            value = value[: end.start()] if (end := _VALUE_END.search(value)) else value
            value = value.replace("*", "").strip(" \t\"'_[")
            key = re.sub(r"^(?:the|her|his|their|my) ", "", match["key"].strip().lower())
            if key in ("name", "full name", "character") and not own & set(re.findall(r"[\w'’.-]+", value.lower())):
                return
            owner = (match["owner"] or "").lower().split()
            if value and (not owner or set(owner) <= own):
                yield Attribute(key, value, f"{match['key'].strip()}: {value}")


def _split(text: str) -> Iterator[str]:
    plain = _QUOTE.sub("...", _MARKUP.sub("", text.replace("’", "'")))
    for line in plain.split("\n"):
        if line.startswith(f"{USER}:"):
            continue
        for sentence in _END.split(line.strip()):
            if 3 < len(sentence) <= MAX_SENTENCE:
                yield sentence.strip()


def _about(sentence: str, subject: re.Pattern[str], own: bool, you: bool, first: bool) -> Sentence | None:
    named = subject.match(sentence) or (_full_name(sentence, subject) if first else None)
    if named:
        rest = sentence[named.end() :]
        return Sentence(sentence, rest[3:], "owns") if _owned(rest) else _plain(sentence, rest)
    lead = _LEAD.match(sentence)
    if lead and not any(people.search(lead[0]) for people in (_SHE, _HE, _EITHER)):
        after = sentence[lead.end() :]
        later = subject.match(after) or (re.match(r"(?:s?he|I)\b", after) if own else None)
        return _plain(sentence, f"{after[later.end() :]} ({lead[0].strip(', ')})") if later else None
    if (match := _PRONOUN.match(sentence)) and (own or match[0] == "I"):
        return _plain(sentence, sentence[match.end() :])
    if (match := _POSSESSIVE.match(sentence)) and (own or match[0] == "My"):
        return Sentence(sentence, sentence[match.end() :].lstrip(), "owns")
    if you and (match := re.match(r"You(r)?\b", sentence)):
        rest = sentence[match.end() :]
        return Sentence(sentence, rest.lstrip(), "owns") if match[1] else _plain(sentence, rest)
    if first and own and _IMPLICIT.match(sentence):
        return Sentence(sentence, sentence, "implied")
    return None


def _full_name(sentence: str, subject: re.Pattern[str]) -> re.Match[str] | None:
    """A longer name that the card begins with, such as `Teodora "Teo" Marchetti`, if it has one of ours in it."""
    match = re.match(r"[A-Z][\w'.-]+(?: (?:[A-Z][\w'.-]+|\"[A-Z][\w'. -]{0,20}\")){1,4}(?=,| is )", sentence)
    words = re.findall(r"[\w'.-]+", match[0]) if match else []
    return match if any(subject.fullmatch(word) for word in words) else None


def _others(sentence: str, found: Sentence | None) -> frozenset[str]:
    """Which pronouns of the next sentence may mean somebody of this one."""
    if found is None or _EITHER.search(sentence):
        return frozenset(("she", "he", "they"))
    # "is a tall woman" is the character itself
    rest = re.sub(
        r"\b(?:is|'s|was|am|are) an? (?:[\w-]+,? ){0,5}?(?:wo)?(?:man|girl|boy|lady|gentleman)\b", "", sentence
    )
    rest = re.sub(r"^An? (?:[\w-]+,? ){0,5}?(?:(?:wo)?man|girl|boy|lady|gentleman|mother|father)\b", "", rest)
    mentioned = {pronoun for pronoun, people in (("she", _SHE), ("he", _HE)) if people.search(rest)}
    return frozenset(mentioned | ({"they"} if mentioned else set()))


def _plain(sentence: str, rest: str) -> Sentence:
    return Sentence(sentence, rest, "subject")


def _owned(rest: str) -> bool:
    """Whether "'s" is a possessive: "Luna's hair is", not "Luna's a mage" or "Luna's 24"."""
    return re.match(r"'s (?!an? |the |\d|been |got |from |not |currently |now |always |just )", rest) is not None
