"""Whether a reply gives an answer: tolerant of case, articles, numbers as words and plurals; not of sense.

Weaknesses, on purpose: a synonym is not recognised, and an answer that is mentioned in passing counts as given. A
negated mention ("not Cardiff") does not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def _listed(words: str) -> list[str]:
    return words.split()


_TOKEN = re.compile(r"\d+(?:,\d{3})+|\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)?")
_WORD = re.compile(r"\d+(?:,\d{3})+|[\w'’-]+")
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")
_DROPPED = frozenset(["a", "an", "the", "my", "your", "his", "her", "our", "their", "its", "of"])
_TITLES = frozenset(["mr", "mrs", "ms", "miss", "dr", "doctor", "mayor", "captain", "sir", "lady", "lord", "professor"])
_MONTHS = frozenset(_listed("january february march april may june july august september october november december"))
_NEGATIONS = frozenset(
    ["not", "no", "never", "isn't", "wasn't", "aren't", "weren't", "don't", "didn't", "nor", "neither", "hardly"]
)
_BETWEEN = frozenset(["in", "at", "on", "from", "to", "by", "called", "named", "really", "quite"])
_UNITS = dict(
    zip(
        _listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
            " seventeen eighteen nineteen"
        ),
        range(20),
        strict=True,
    )
)
_TENS = dict(zip(_listed("twenty thirty forty fifty sixty seventy eighty ninety"), range(2, 10), strict=True))
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_NUMBERS = frozenset((*_UNITS, *_TENS, *_SCALES))
_LONGEST = 20_000
Span = tuple[int, int]


def tokens(text: str) -> list[str]:
    """Words and numbers as they are compared: lower case, no articles, digits for number words, no plurals."""
    text = unicodedata.normalize("NFKC", text[:_LONGEST]).replace("’", "'").lower()
    text = _ORDINAL.sub("", text)
    words = [match[0].replace(",", "") for match in _TOKEN.finditer(text)]
    return [_stem(word) for word in _digits(words) if word not in _DROPPED]


def contains(text: str, answer: str) -> bool:
    """Whether the answer stands in the text, word by word."""
    return bool(_spans(tokens(text), tokens(answer)))


def same(first: str, second: str) -> bool:
    """Whether two answers say the same."""
    return tokens(first) == tokens(second)


def given(reply: str, right: str, wrong: Sequence[str]) -> tuple[bool, str]:
    """Whether the reply gives the right answer and no wrong one.

    Returns:
        The verdict, and why not, for people ("says 'Cardiff'", "does not say 'Aberdeen'").
    """
    said = tokens(reply)
    found = {answer: _mentions(said, answer, wrong) for answer in [right]}
    found |= {answer: _mentions(said, answer, [right]) for answer in wrong}
    for answer, spans in found.items():  # "inspector" inside "bus inspector" is no mention of its own
        longer = [span for other, those in found.items() if other != answer for span in those]
        found[answer] = [span for span in spans if not any(_inside(span, other) for other in longer)]
    named = next((answer for answer in wrong if found[answer]), None)
    if named is not None:
        return False, f"says {named!r}"
    return (True, "") if found[right] else (False, f"does not say {right!r}")


def answer_kind(answer: str, question: str = "") -> str:
    """What type of thing an answer is: `number`, `place`, `name`, `job`, `colour`; empty where it is not plain."""
    ask = question.lower()
    words = tokens(answer)
    if any(word[0].isdigit() for word in words):
        return "year" if len(words) == 1 and re.fullmatch(r"\d{4}", words[0]) else "number"
    for kind, cue in _KINDS:
        if cue.search(ask):
            return kind
    return ""


_KINDS = (
    ("colour", re.compile(r"\bcolou?r\b")),
    ("job", re.compile(r"\b(?:job|trade|profession|occupation|for a living|do for work)\b")),
    (
        "place",
        re.compile(r"^(?:where|(?:in |at |on |from )?(?:which|what) (?:city|town|village|country|street|place)\b)"),
    ),
    ("name", re.compile(r"^who\b|\bname\b|\bcalled\b|\bdo you call\b")),
)


def _mentions(said: Sequence[str], answer: str, rivals: Sequence[str]) -> list[Span]:
    """Where the answer is said: whole, or by the part of it that tells it from its rivals."""
    spans = _spans(said, tokens(answer)) or _spans(said, _telling(answer, rivals))
    return [span for span in spans if not _negated(said, span)]


def _telling(answer: str, rivals: Sequence[str]) -> list[str]:
    """What is enough of an answer: the number of "nine seconds", the name of "Mayor Bunting" and "Plot 19"."""
    shared = _TITLES.union(*(tokens(rival) for rival in rivals))
    words = [word for word in _WORD.findall(answer) if word.lower() not in _DROPPED]
    named = all(word[0].isupper() or word[0].isdigit() for word in words[1:]) and len(words) > 1
    numbers = [word for word in tokens(answer) if word[0].isdigit()]
    if len(numbers) == 1 and numbers[0] != "1":
        rest = [word for word in words if tokens(word) != numbers]
        return numbers if all(word.islower() or set(tokens(word)) <= shared | {*numbers} for word in rest) else []
    return [word for word in tokens(answer) if word not in shared] if named else []


def _spans(said: Sequence[str], wanted: Sequence[str]) -> list[Span]:
    size = len(wanted)
    if not size:
        return []
    same_words = sorted if _MONTHS & {*wanted} else list  # "9 November" is "November 9"
    return [(i, i + size) for i in range(len(said) - size + 1) if same_words(said[i : i + size]) == same_words(wanted)]


def _negated(said: Sequence[str], span: Span) -> bool:
    """After "not", or after "not in" and the like."""
    before = list(said[max(0, span[0] - 2) : span[0]])
    if before and before[-1] in _BETWEEN:
        before.pop()
    return bool(before) and before[-1] in _NEGATIONS


def _inside(span: Span, other: Span) -> bool:
    return span != other and other[0] <= span[0] and span[1] <= other[1]


def _stem(word: str) -> str:
    """Without 's and the plural's s; "geese" and "mice" stay what they are."""
    word = word.removesuffix("'s").removesuffix("'")
    if word in _NEGATIONS or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]


def _digits(words: Sequence[str]) -> list[str]:
    """Runs of number words as one number in digits: "two hundred and twelve" is 212."""
    result: list[str] = []
    run: list[str] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        joins = word == "and" and bool(run) and run[-1] in _SCALES and following in _NUMBERS
        if joins:
            continue
        if word in _NUMBERS and _continues(run, word):
            run.append(word)
            continue
        if run:
            result.append(str(_value(run)))
            run = []
        if word in _NUMBERS:
            run = [word]
        else:
            result.append(word)
    return [*result, str(_value(run))] if run else result


def _continues(run: Sequence[str], word: str) -> bool:
    """Whether the word goes on with the number: "forty three" does, "three forty" does not."""
    if not run:
        return True
    last = run[-1]
    if word in _SCALES:
        return True
    if last in _SCALES:
        return True
    return last in _TENS and 0 < _UNITS.get(word, 0) < 10


def _value(run: Sequence[str]) -> int:
    total = part = 0
    for word in run:
        if word == "hundred":
            part = max(part, 1) * 100
        elif word in _SCALES:
            total, part = total + max(part, 1) * _SCALES[word], 0
        else:
            part += _UNITS[word] if word in _UNITS else _TENS[word] * 10
    return total + part
