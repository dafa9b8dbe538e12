"""What a sentence of a card says of its character, as questions with answers. Precise, not complete.

Each rule is one pattern over what follows the sentence's subject; `<NAME>` in a pattern stands for a fragment. Patterns
are linear: no nested repetition, and every run of words is short and bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from persona_lab.personas import fact_answers as lists
from persona_lab.personas import fact_questions as ask
from persona_lab.personas.card_sentences import USER, Sentence
from persona_lab.personas.fact_questions import Asks

Read = tuple[str, Asks, str, tuple[str, ...]]
"""What a rule makes of a match: key, questions, answer, wrong answers to draw from."""


@dataclass(frozen=True)
class Found:
    """A fact that was read. `key` names what it answers: two answers to one key contradict each other."""

    kind: str
    key: str
    questions: Asks
    answer: str
    wrong: tuple[str, ...]
    sentence: str


def any_of(words: Iterable[str]) -> str:
    """A regular expression of any of the words, longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))


def is_user(text: str) -> bool:
    """Whether a name is the user's, or no name."""
    return USER in re.findall(r"\w+", text) or text in ("God", "Earth", "I", "He", "She", "They")


_RELATIONS = {
    "brother": lists.MEN, "sister": lists.WOMEN, "father": lists.MEN, "mother": lists.WOMEN, "son": lists.MEN,
    "daughter": lists.WOMEN, "husband": lists.MEN, "wife": lists.WOMEN, "uncle": lists.MEN, "aunt": lists.WOMEN,
    "grandmother": lists.WOMEN, "grandfather": lists.MEN, "cousin": lists.NAMES, "niece": lists.WOMEN,
    "nephew": lists.MEN, "boyfriend": lists.MEN, "girlfriend": lists.WOMEN, "best friend": lists.NAMES,
}  # fmt: skip
_THINGS = {
    **dict.fromkeys(
        ("cat", "dog", "parrot", "tortoise", "horse", "rabbit", "hamster", "ferret", "raven", "owl", "pony", "fox",
         "kitten", "puppy", "turtle", "goldfish", "goat", "snake", "lizard", "crow", "falcon", "hound", "donkey"),
        lists.PETS,
    ),
    **dict.fromkeys(("ship", "boat", "starship", "spaceship", "tug", "airship"), lists.SHIPS),
    **dict.fromkeys(("sword", "axe", "bow", "dagger", "staff", "spear", "katana", "blade"), lists.WEAPONS),
    **dict.fromkeys(("bakery", "shop", "tavern", "inn", "café", "cafe", "restaurant", "bookshop", "bar"), lists.SHOPS),
}  # fmt: skip
_HEDGE = re.compile(
    r"\b(?:not|never|no longer|used to|pretend\w*|claim\w*|wish\w*|would|could|might|may|if|perhaps|maybe|looks?"
    r"|looking|appears?|seems?|as though|until|unless|rumou?red|allegedly|supposedly|believes?"
    r"|imagin\w*|thinks?|says?|dreams?|dreamt|dreamed|wants?|hopes?|aspiring|wannabe|would-be|self-proclaimed|future"
    r"|ex|role"
    r"|almost|nearly|about|around|approximately|over|under|like|likes to|disguis\w*|imposter|fake|amateur"
    r"|hobby\w*|failed|honorary|budding)\b|n't\b",
    re.IGNORECASE,
)
_PAST = re.compile(r"\b(?:was|were|had|once|former|formerly)\b", re.IGNORECASE)
"""Speaks against what follows in the same clause only: "was born in Rome and lives in Oslo" is plain."""
_AMBIGUOUS_JOBS = ("teacher", "professor", "student", "chef", "cook", "historian", "scholar")
"""A French teacher teaches French."""
_KNOWN_PLACES = (place.removeprefix("the ") for place in (*lists.CITIES, *lists.COUNTRIES, *lists.REGIONS))
_FRAGMENTS = {
    "BE": r"(?:'s| is|'m| am|'re| are)(?: (?:currently|now|only|just|really|also|still))?",
    # words before a noun, such as "tall, red-haired": no prepositions, so that the noun is the character's own
    "WORDS": r"(?:(?!of |to |for |with |who |and |in |at |by |like |from )[\w'-]+,? ){0,6}?",
    "A": r"^(?:<BE> (?:an? |the )?|, (?:an? |the )?|An? )<WORDS>",
    "STOP": r"(?! (?:at heart|by night|in (?:disguise|training|spirit|name|shining)))"
    r"(?=$|[.,;:!?)]| (?:who|from|at|in|for|with|by|on|living|working|and|based|that|whose|named|called)\b)",
    "AGE": rf"(\d{{1,4}}|(?!one\b){lists.NUMBER_WORD})",
    "NUMBER": rf"(?P<n>{lists.NUMBER_WORD}|\d{{1,2}})",
    "CAP": r"[A-Z][\w'&.-]*[\w]",
    "PLACE": r"((?:the )?<CAP>(?: (?:(?:of |the |de )?<CAP>)){0,3})",
    "KNOWN_PLACE": rf"((?:the )?(?:{any_of(_KNOWN_PLACES)}))",
    "NAME": r"(?P<name>(?:the )?[A-Z][a-z'-]+[a-z](?: [A-Z][a-z'-]+[a-z]){0,3})(?!'s|\w|-| [A-Z])",
    "JOB": any_of(lists.JOBS),
    "PLAIN_JOB": any_of(job for job in lists.JOBS if job not in _AMBIGUOUS_JOBS),
    "SPECIES": any_of(lists.SPECIES),
    "NATION": any_of(lists.NATIONALITIES),
    "MONTH": any_of(lists.MONTHS),
    "SUBJECT": any_of(lists.SUBJECTS),
    "HOBBY": any_of(lists.HOBBIES),
    "INSTRUMENT": any_of(lists.INSTRUMENTS),
    "HAIR": any_of(lists.HAIR),
    "EYES": any_of(lists.EYES),
    "RELATION": any_of(_RELATIONS),
    "THING": any_of(_THINGS),
    "HIS": r"(?:\b[Hh]er|\b[Hh]is|\b[Tt]heir|\b[Mm]y)",
    "ADJ": r"(?:(?:[a-z-]+,? )(?!of ))",
    # a name before the match: "her" may then be somebody else's
    "AHEAD": r"(?P<ahead>(?:[^A-Z]{0,200}[A-Z]\w*(?<!\bI))?)[^A-Z]{0,200}?",
    "NAMED": r"(?:,? (?:named|called) |<CLOSED>|,? whose name is | )",
    "IS_NAMED": r"(?:<CLOSED>|'s name is | is (?:named|called) | )",
    # ", Tom," is a name; ", Tom says" begins something else
    "CLOSED": r", (?=[A-Z][\w'-]*(?: [A-Z][\w'-]*){0,3}(?:[,.;)]|$))",
    "LOVES": r"(?:loves?|enjoys?|adores?|likes?|(?:is|am|are|'s|'m) (?:passionate about|fond of))",
    "HATES": r"(?:hates?|despises?|loathes?|detests?|dislikes?|cannot abide|cannot stand)",
    "FEARS": r"(?:fears?|(?:is|am|are|'s|'m) (?:terribly |secretly |deathly )?(?:afraid|scared|terrified) of)",
    "OBJECT": (
        r"((?!h(?:er|is|im)\b|their|my|your|it\b|its\b|that|when|to\b|how|what|being|for|the fact|anyone|people"
        r"|everyone|us\b|them|me\b|you\b|most|all\b|both|nothing)[a-z][\w'-]*"
        r"(?: (?!and |or |when |that |who |but |because |in |on )[a-z][\w'-]*){0,2})(?=$|[.,;!]| and | or | but )"
    ),
}


def pattern_of(text: str, flags: int = 0) -> re.Pattern[str]:
    """The pattern with its `<FRAGMENTS>` put in."""
    while (filled := re.sub(r"<([A-Z_]+)>", lambda match: _FRAGMENTS[match[1]], text)) != text:
        text = filled
    return re.compile(text, flags)


@dataclass(frozen=True)
class _Rule:
    kind: str
    pattern: re.Pattern[str]
    make: Callable[[re.Match[str]], Read | None]
    about: tuple[str, ...] = ("subject", "implied")
    hedged: bool = True
    """Whether a doubtful word before the end of the match speaks against it."""


def _rule(kind: str, pattern: str, make: Callable[[re.Match[str]], Read | None], **more: Any) -> _Rule:
    return _Rule(kind, pattern_of(pattern), make, **more)


def _simple(
    kind: str,
    pattern: str,
    questions: Asks,
    wrong: Callable[[str], tuple[str, ...]] | tuple[str, ...],
    hedged: bool = True,
) -> _Rule:
    """A rule whose first group is the answer."""

    def make(match: re.Match[str]) -> Read | None:
        answer = match[1].strip(" .,")
        others = wrong(answer) if callable(wrong) else wrong
        return (kind, questions, answer, others) if answer and not is_user(answer) else None

    return _Rule(kind, pattern_of(pattern), make, hedged=hedged)


def _job(match: re.Match[str]) -> Read:
    retired = re.search(r"\bretired\b", match[0]) is not None
    return "job", ask.RETIRED if retired else ask.JOB, match[1], lists.JOBS_WRONG


def _relation(match: re.Match[str]) -> Read | None:
    who, name = match["who"], match["name"]
    be = "was" if "late " in match[0] else "is"
    questions = (
        f"What {be} your {who}'s name?",
        f"What {be} your {who} called?",
        f"What {be} the name of your {who}?",
    )
    wrong = _RELATIONS[who]
    if " " in name:
        wrong = tuple(f"{first} {last}" for first, last in zip(wrong, lists.SURNAMES, strict=False))
    return None if is_user(name) or match["ahead"] else (f"{who}_name", questions, name, wrong)


def _relation_job(match: re.Match[str]) -> Read:
    who = match["who"]
    be, does = ("is", "does") if match["be"] == "is" else ("was", "did")
    questions = (
        f"What {be} your {who}'s job?",
        f"What {does} your {who} do for a living?",
        f"What {be} your {who}'s occupation?",
    )
    return f"{who}_job", questions, match["job"], lists.JOBS_WRONG


def _thing(match: re.Match[str]) -> Read | None:
    what, name = match["what"], match["name"]
    questions = (f"What is your {what} called?", f"What is your {what}'s name?", f"What is the name of your {what}?")
    the = name[:4] if name.lower().startswith("the ") else ""
    wrong = tuple(the + other.removeprefix("The ") for other in _THINGS[what])
    return None if is_user(name) or match["ahead"] else (f"{what}_name", questions, name, wrong)


def _count(match: re.Match[str]) -> Read:
    what = match.groupdict().get("what") or "children"
    questions = (
        f"How many {what} do you have?",
        f"How many {what} have you got?",
        f"What is the number of your {what}?",
    )
    return f"{what}_count", questions, match["n"], lists.other_numbers(match["n"], least=2)


RULES = (
    _simple(
        "age",
        r"^<BE> <AGE>(?: years? old| years of age)?(?=$|[.,;)]| and | years| with )",
        ask.AGE,
        lists.other_numbers,
    ),
    _simple("age", r"^<BE> <AGE> years? old\b", ask.AGE, lists.other_numbers),
    _simple("age", r"^(?:<BE> an? |, an? |An? )<WORDS><AGE>[- ]years?[- ]old\b", ask.AGE, lists.other_numbers),
    _simple("age", r"^, (?:aged? |age )?<AGE>,", ask.AGE, lists.other_numbers),
    _rule("job", r"<A>(<JOB>)<STOP>", _job),
    _rule("job", r"^ (?:works?|working) (?:\w+ )?as (?:an? |the )<WORDS>(<JOB>)<STOP>", _job),
    _rule("job", r"^An? [^.;]{3,100}, (?:working|who works) as an? <WORDS>(<JOB>)<STOP>", _job),
    _simple("species", r"<A>(<SPECIES>)<STOP>", ask.SPECIES, lists.SPECIES_WRONG),
    _simple(
        "nationality",
        r"<A>(?<!-)(<NATION>)(?=$|[.,;]| (?:man|woman|boy|girl|lady|gentleman|teenager|mother|father|citizen|immigrant"
        r"|<PLAIN_JOB>)\b)",
        ask.NATION,
        lists.NATIONALITIES[:20],
    ),
    _simple(
        "origin",
        r"^(?:<BE>| comes?| hails?) (?:originally )?from <PLACE>(?=$|[.,;]| and| but| where)",
        ask.ORIGIN,
        lists.other_places,
    ),
    _simple(
        "origin",
        r"^(?:<BE> an? |, an? |An? )(?:(?!of |to |for |with |who |and |in |at )[\w'-]+,? ){1,9}?from <KNOWN_PLACE>"
        r"(?=$|[.,;]| who| and| with)",
        ask.ORIGIN,
        lists.other_places,
    ),
    _simple(
        "birth_year",
        r"^(?: was| were|, who was)? born (?:[^.;]{0,60} )?in (\d{4})\b(?!s)",
        ask.YEAR,
        lists.other_years,
        hedged=False,
    ),
    _simple(
        "born",
        r"^(?: was| were|, who was)? born (?:and raised |in \d{4} )?(?:in|at) (?!<MONTH>)<PLACE>"
        r"(?=$|[.,;]| in | and | to | on )",
        ask.BORN,
        lists.other_places,
        hedged=False,
    ),
    _simple(
        "raised",
        r"^ (?:grew up|was raised|were raised) in <PLACE>(?=$|[.,;]| and | with )",
        ask.RAISED,
        lists.other_places,
        hedged=False,
    ),
    _simple(
        "home",
        r"(?:^(?:, who)?|,? and) (?:lives?|resides?|dwells?) (?:(?:alone|together|happily|now|currently|quietly) )?"
        r"in (?:an? [a-z -]{1,40} in |the (?:[a-z]+ )?(?:city|town|village|kingdom|port) of )?<PLACE>"
        r"(?=$|[.,;]| and | with | where )",
        ask.HOME,
        lists.other_places,
    ),
    _simple(
        "employer",
        r"(?:^(?:, who)?|,? and) works? (?:as (?:an? |the )[\w -]{2,40}? )?(?:at|for) <PLACE>"
        r"(?=$|[.,;]| and | as | in )",
        ask.WORK,
        lists.COMPANIES,
    ),
    _simple(
        "school",
        r"^(?: studies| study|<BE> studying|<BE> a (?:\w+ )?student| attends?)(?: [a-z]+)?(?: at)? <PLACE>"
        r"(?=$|[.,;]| and | in )",
        ask.SCHOOL,
        lists.SCHOOLS,
    ),
    _simple(
        "study",
        r"^(?: studies| study|<BE> studying| majors? in|<BE> majoring in|An? [^.;]{3,80}, studying) (<SUBJECT>)<STOP>",
        ask.STUDY,
        lists.SUBJECTS,
    ),
    _simple(
        "creator",
        r"^(?:<BE>| was| were) (?:an? [\w -]{1,40}? )?(?:created|built|developed) by <PLACE>(?=$|[.,;]| to | and )",
        ask.MADE,
        lists.COMPANIES,
        hedged=False,
    ),
    _simple("married", r"^<BE> married to <NAME>", ask.MARRIED, lists.other_people),
    _simple(
        "hobby", r"^(?: (?:also |really )?|[^.;]{3,90} who )<LOVES> (<HOBBY>)<STOP>", ask.HOBBY, lists.HOBBIES_WRONG
    ),
    _simple(
        "dislike",
        r"(?:^| and|, and|, but|;) (?:also |really |absolutely )?<HATES> <OBJECT>",
        ask.HATE,
        lists.DISLIKES,
    ),
    _simple("fear", r"(?:^(?: \w+)?| and|, and|, but|;) ?<FEARS> <OBJECT>", ask.FEAR, lists.FEARS),
    _simple(
        "instrument", r"(?:^|,| and) (?:also )?plays? (?:the )?(<INSTRUMENT>)\b", ask.PLAY, lists.INSTRUMENTS_WRONG
    ),
    _simple(
        "collection",
        r"(?:^|^[^.;]{3,90} who|,| and) collects? ((?!and )[a-z-]+(?: [a-z-]+){0,2}?s)(?=$|[.,;]| and )",
        ask.COLLECT,
        lists.COLLECTED,
    ),
    _rule("family", r"^<AHEAD><HIS> <ADJ>{0,2}(?P<who><RELATION>)<NAMED><NAME>", _relation),
    _rule("family", r"^(?P<ahead>) (?:has|have) an? <ADJ>{0,2}(?P<who><RELATION>)<NAMED><NAME>", _relation),
    _rule("family", r"^(?P<ahead>)<ADJ>{0,2}?(?P<who><RELATION>)<IS_NAMED><NAME>", _relation, about=("owns",)),
    _rule(
        "family",
        r"^<ADJ>{0,2}?(?P<who><RELATION>),? (?P<be>is|was) an? <WORDS>(?P<job><JOB>)<STOP>",
        _relation_job,
        about=("owns",),
        hedged=False,
    ),
    _rule("possession", r"^<AHEAD><HIS> <ADJ>{0,3}(?P<what><THING>)<NAMED><NAME>", _thing),
    _rule(
        "possession",
        r"^(?P<ahead>) (?:has|have|owns?|keeps?|runs?|flies|fly|captains?|rides?|wields?) an? <ADJ>{0,3}"
        r"(?P<what><THING>)<NAMED><NAME>",
        _thing,
    ),
    _rule("possession", r"^(?P<ahead>)<ADJ>{0,3}?(?P<what><THING>)<IS_NAMED><NAME>", _thing, about=("owns",)),
    _rule(
        "family",
        r"^ (?:has|have) <NUMBER> (?:[a-z-]+ )?(?P<what>brothers|sisters|children|siblings|sons|daughters|cats|dogs)"
        r"<STOP>",
        _count,
    ),
    _rule("family", r"<A>(?:mother|father|mom|dad|parent) of <NUMBER>(?=$|[.,;]| from| who| and| living)", _count),
    _simple(
        "height",
        r"(?:\b(?:[Ss]tands?|[Ss]tanding|is|am|height of)|'s|'m)(?: at)? (\d ?' ?\d{1,2}(?:\"|'')?|\d{3} ?cm)",
        ask.HEIGHT,
        lists.other_heights,
    ),
)
_NOT_ALWAYS = r"(?! (?:when|if|while|in|at)\b)"
_LENGTH = r"(?:,? (?:long|short|curly|wavy|straight|messy|wild|braided|shoulder-length)){0,2}"
_HAIR = pattern_of(rf"\b(<HAIR>){_LENGTH} hair\b{_NOT_ALWAYS}", re.I)
_EYES = pattern_of(rf"\b(<EYES>)(?:,? (?:almond-shaped|wide|narrow|bright|round)){{0,2}} eyes\b{_NOT_ALWAYS}", re.I)
_HAIR_IS = pattern_of(r"^(?:[a-z-]+,? ){0,2}hair is (?:[a-z-]+ ){0,1}?(<HAIR>)\b", re.I)
_EYES_ARE = pattern_of(r"^(?:[a-z-]+,? ){0,2}eyes are (?:[a-z-]+ ){0,2}?(<EYES>)\b", re.I)
_OTHER_NAME = pattern_of(r"\b(?!<NATION>)[A-Z]\w+")
_PEOPLE = pattern_of(
    r"\b(?:<RELATION>|mothers?|fathers?|parents?|friends?|sisters|brothers|someone|people|customers?|master|love|loves"
    r"|likes?|hates?|User|boss|rival|lover|wig|dyed?|contacts?|streaks?|tips|highlights)\b"
)


def read_sentence(sentence: Sentence) -> Iterator[Found]:
    """Everything that a sentence says of the character."""
    for rule in RULES:
        if sentence.about not in rule.about:
            continue
        match = rule.pattern.search(sentence.rest)
        if match is None or (rule.hedged and _doubtful(sentence.rest, match)):
            continue
        made = rule.make(match)
        if made:
            yield Found(rule.kind, made[0], made[1], made[2], made[3], sentence.text)
    yield from _colours(sentence)


def _doubtful(rest: str, match: re.Match[str]) -> bool:
    return bool(_HEDGE.search(rest[: match.end()]) or _PAST.search(rest[match.start() : match.end()]))


def _colours(sentence: Sentence) -> Iterator[Found]:
    for key, pattern, is_pattern, asks, wrong in (
        ("hair", _HAIR, _HAIR_IS, ask.HAIR, lists.HAIR_WRONG),
        ("eyes", _EYES, _EYES_ARE, ask.EYES, lists.EYES_WRONG),
    ):
        match = is_pattern.search(sentence.rest) if sentence.about == "owns" else pattern.search(sentence.rest)
        if match is None and sentence.about == "owns":
            match = pattern.match(re.sub(r"^(?:[a-z-]+,? ){0,2}?(?=\w+ (?:hair|eyes))", "", sentence.rest))
        before = sentence.rest[: match.end()] if match else ""
        if (
            match
            and not _PEOPLE.search(before)
            and not _HEDGE.search(before)
            and _OTHER_NAME.search(before[1:]) is None
        ):
            yield Found("looks", key, asks, match[1].lower(), wrong, sentence.text)
