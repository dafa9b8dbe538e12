"""What a sentence or an attribute of a card says of its character, as questions with answers. Precise, not complete.

Each rule is one pattern over what follows the subject. Patterns are linear: no nested repetition, and every run of
words is short and bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from persona_lab.personas import fact_answers as lists
from persona_lab.personas.card_sentences import USER, Attribute, Sentence


@dataclass(frozen=True)
class Found:
    """A fact that was read. `key` names what it answers: two answers to one key contradict each other."""

    kind: str
    key: str
    questions: tuple[str, str, str]
    answer: str
    wrong: tuple[str, ...]
    sentence: str


def _any(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))


_BE = r"(?:'s| is|'m| am|'re| are)(?: (?:currently|now|only|just|really|also|still))?"
_WORDS = r"(?:(?!of |to |for |with |who |and |in |at |by |like |from )[\w'-]+,? ){0,6}?"
"""Words before a noun, such as "tall, red-haired": no prepositions, so that the noun is the character's own."""
_A = rf"^(?:{_BE} (?:an? |the )?|, (?:an? |the )?|An? ){_WORDS}"
_STOP = r"(?=$|[.,;:!?)]| (?:who|from|at|in|for|with|by|on|living|working|and|based|that|whose|named|called)\b)"
_AGE = rf"(\d{{1,4}}|{lists.NUMBER_WORD})"
_CAP = r"[A-Z][\w'&.-]*[\w]"
_PLACE = rf"((?:the )?{_CAP}(?: (?:(?:of |the |de )?{_CAP})){{0,3}})"
_FIRST_NAME = r"([A-Z][a-z'-]+[a-z](?: [A-Z][a-z'-]+[a-z])?)(?!'s|\w)"
_KNOWN_PLACE = (
    rf"((?:the )?(?:{_any(tuple(p.removeprefix('the ') for p in (*lists.CITIES, *lists.COUNTRIES, *lists.REGIONS)))}))"
)
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
_POSSESSIVE = r"(?:\b[Hh]er|\b[Hh]is|\b[Tt]heir|\b[Mm]y)"
_ADJECTIVES = r"(?:(?:[a-z-]+,? )(?!of ))"
_HEDGE = re.compile(
    r"\b(?:not|never|no longer|used to|pretend\w*|claim\w*|wish\w*|would|could|might|may|if|perhaps|maybe|looks?"
    r"|looking|appears?|seems?|as though|former|formerly|once|until|unless|rumou?red|allegedly|supposedly|believes?"
    r"|imagin\w*|thinks?|says?|dreams?|dreamt|dreamed|wants?|hopes?|aspiring|wannabe|would-be|self-proclaimed|future|ex|role"
    r"|almost|nearly|about|around|approximately|over|under|like|likes to|disguis\w*|imposter|fake|was|were|had)\b|n't\b",
    re.IGNORECASE,
)
_PAST = frozenset({"born", "birth_year", "raised", "creator"})
"""Rules that are about the past, where "was" is no doubt."""
_LOVES = r"(?:loves|love|enjoys|enjoy|adores|adore|likes|like|(?:is|am|are|'s|'m) (?:passionate about|fond of))"
_HATES = r"(?:hates|hate|despises|despise|loathes|loathe|detests|detest|dislikes|dislike|cannot abide|cannot stand)"
_FEARS = r"(?:fears|fear|(?:is|am|are|'s|'m) (?:terribly |secretly |deathly )?(?:afraid|scared|terrified) of)"
_OBJECT = (
    r"((?!h(?:er|is|im)\b|their|my|your|it\b|its\b|that|when|to\b|how|what|being|for|the fact|anyone|people|everyone"
    r"|us\b|them|me\b|you\b|most|all\b|both|nothing|User)[a-z][\w'-]*(?: (?!and |or |when |that |who |but |because |in |on )"
    r"[a-z][\w'-]*){0,2})(?=$|[.,;!]| and | or | but )"
)

Make = Callable[[re.Match[str]], "tuple[str, tuple[str, str, str], str, tuple[str, ...]] | None"]


@dataclass(frozen=True)
class _Rule:
    kind: str
    pattern: re.Pattern[str]
    make: Make
    about: tuple[str, ...] = ("subject", "implied")
    hedged: bool = True
    """Whether a doubtful word before the end of the match speaks against it."""


def _simple(
    kind: str, pattern: str, questions: tuple[str, str, str], wrong: Callable[[str], tuple[str, ...]], **more: bool
) -> _Rule:
    """A rule whose first group is the answer."""

    def make(match: re.Match[str]) -> tuple[str, tuple[str, str, str], str, tuple[str, ...]] | None:
        answer = match[1].strip(" .,")
        return (kind, questions, answer, wrong(answer)) if answer and not _is_user(answer) else None

    return _Rule(kind, re.compile(pattern), make, **more)


def _is_user(text: str) -> bool:
    return USER in re.findall(r"\w+", text) or text in ("God", "Earth", "I", "He", "She", "They")


AGE_Q = ("How old are you?", "What is your age?", "How many years have you lived?")
JOB_Q = ("What is your occupation?", "What do you do for a living?", "What kind of work do you do?")
RETIRED_Q = (
    "What was your occupation before you retired?",
    "What did you do for a living?",
    "From what work did you retire?",
)
SPECIES_Q = ("What species are you?", "What kind of being are you?", "To which species do you belong?")
NATION_Q = ("What is your nationality?", "Which nationality do you have?", "What nationality are you?")
ORIGIN_Q = ("Where are you from?", "Where do you come from?", "What place do you come from originally?")
BORN_Q = ("Where were you born?", "What is your birthplace?", "In which place did you come into the world?")
YEAR_Q = ("In which year were you born?", "What is your year of birth?", "What year were you born in?")
RAISED_Q = ("Where did you grow up?", "Where did you spend your childhood?", "In which place were you raised?")
HOME_Q = ("Where do you live?", "Where is your home?", "In which place do you live?")
WORK_Q = ("Where do you work?", "Who is your employer?", "Which place employs you?")
SCHOOL_Q = ("Where do you study?", "Which school do you attend?", "At which place are you a student?")
STUDY_Q = ("What do you study?", "Which subject are you studying?", "What is your field of study?")
HAIR_Q = ("What colour is your hair?", "What is your hair colour?", "Which colour of hair do you have?")
EYES_Q = ("What colour are your eyes?", "What is your eye colour?", "Which colour of eyes do you have?")
HEIGHT_Q = ("How tall are you?", "What is your height?", "What do you measure from head to foot?")
BIRTHDAY_Q = ("When is your birthday?", "On what date were you born?", "Which day do you get a year older?")
HOBBY_Q = ("What is a hobby of yours?", "What do you like to do in your free time?", "What pastime do you enjoy?")
HATE_Q = ("What do you hate?", "What do you dislike?", "What can you not stand?")
FEAR_Q = ("What are you afraid of?", "What do you fear?", "What frightens you?")
PLAY_Q = ("Which instrument do you play?", "What instrument can you play?", "What do you make music on?")
COLLECT_Q = ("What do you collect?", "What is in your collection?", "Which things do you gather as a collector?")
MARRIED_Q = ("Who are you married to?", "What is the name of your spouse?", "Whom did you marry?")
MADE_Q = ("Who created you?", "Who made you?", "Whose creation are you?")
SIGN_Q = ("What is your star sign?", "What is your zodiac sign?", "Under which sign were you born?")
NICK_Q = ("What is your nickname?", "What do your friends call you?", "By what nickname do you go?")
_COLLECTED = (
    "stamps",
    "old coins",
    "postcards",
    "seashells",
    "teapots",
    "buttons",
    "comic books",
    "vinyl records",
    "keys",
)


def _job(match: re.Match[str]) -> tuple[str, tuple[str, str, str], str, tuple[str, ...]]:
    retired = re.search(r"\bretired\b", match[0]) is not None
    return "job", RETIRED_Q if retired else JOB_Q, match[1], lists.JOBS_WRONG


def _relation(match: re.Match[str]) -> tuple[str, tuple[str, str, str], str, tuple[str, ...]] | None:
    who, name = match["who"], match["name"]
    if _is_user(name) or match["ahead"]:
        return None
    be = "was" if "late " in match[0] else "is"
    asks = (f"What {be} your {who}'s name?", f"What {be} your {who} called?", f"What {be} the name of your {who}?")
    return f"{who}_name", asks, name, _RELATIONS[who]


def _relation_job(match: re.Match[str]) -> tuple[str, tuple[str, str, str], str, tuple[str, ...]]:
    who = match["who"]
    asks = (
        f"What was your {who}'s job?",
        f"What did your {who} do for a living?",
        f"What was your {who}'s occupation?",
    )
    if match["be"] == "is":
        asks = (
            f"What is your {who}'s job?",
            f"What does your {who} do for a living?",
            f"What is your {who}'s occupation?",
        )
    return f"{who}_job", asks, match["job"], lists.JOBS_WRONG


def _thing(match: re.Match[str]) -> tuple[str, tuple[str, str, str], str, tuple[str, ...]] | None:
    what, name = match["what"], match["name"]
    if _is_user(name) or match["ahead"]:
        return None
    asks = (f"What is your {what} called?", f"What is your {what}'s name?", f"What is the name of your {what}?")
    return f"{what}_name", asks, name, _THINGS[what]


def _count(match: re.Match[str]) -> tuple[str, tuple[str, str, str], str, tuple[str, ...]] | None:
    what = match["what"]
    wrong = tuple(w for w in lists.other_numbers(match["n"], least=2))
    asks = (f"How many {what} do you have?", f"How many {what} have you got?", f"What is the number of your {what}?")
    return f"{what}_count", asks, match["n"], wrong


def _children(match: re.Match[str]) -> tuple[str, tuple[str, str, str], str, tuple[str, ...]] | None:
    asks = ("How many children do you have?", "How many children have you got?", "What is the number of your children?")
    return "children_count", asks, match["n"], lists.other_numbers(match["n"], least=2)


_AHEAD = r"(?P<ahead>(?:[^A-Z]{0,200}[A-Z]\w*(?<!\bI))?)"
"""A name before the match: "her" may then be somebody else's."""
_NAMED = r"(?:,? (?:named|called) |, |,? whose name is | )"
RULES = (
    _simple("age", rf"^{_BE} {_AGE}(?: years? old| years of age)?(?=$|[.,;)]| and | years| with )", AGE_Q, lists.other_numbers),
    _simple("age", rf"^{_BE} {_AGE} years? old\b", AGE_Q, lists.other_numbers),
    _simple("age", rf"^(?:{_BE} an? |, an? |An? ){_WORDS}{_AGE}[- ]years?[- ]old\b", AGE_Q, lists.other_numbers),
    _simple("age", rf"^, (?:aged? |age )?{_AGE},", AGE_Q, lists.other_numbers),
    _Rule("job", re.compile(rf"{_A}({_any(lists.JOBS)}){_STOP}"), _job),
    _Rule("job", re.compile(rf"^ (?:works?|working) (?:\w+ )?as (?:an? |the ){_WORDS}({_any(lists.JOBS)}){_STOP}"), _job),
    _Rule("job", re.compile(rf"^An? [^.;]{{3,100}}, (?:working|who works) as an? {_WORDS}({_any(lists.JOBS)}){_STOP}"), _job),
    _simple("species", rf"{_A}({_any(lists.SPECIES)}){_STOP}", SPECIES_Q, lambda a: lists.SPECIES_WRONG),
    _simple(
        "nationality",
        rf"{_A}(?<!-)({_any(lists.NATIONALITIES)})(?=$|[.,;]| (?:man|woman|boy|girl|lady|gentleman|teenager|mother|father"
        rf"|citizen|immigrant|{_any(tuple(j for j in lists.JOBS if j not in ('teacher', 'professor', 'student', 'chef', 'cook', 'historian', 'scholar')))})\b)",
        NATION_Q,
        lambda a: lists.NATIONALITIES[:20],
    ),
    _simple("origin", rf"^(?:{_BE}| comes?| hails?) (?:originally )?from {_PLACE}(?=$|[.,;]| and| but| where)", ORIGIN_Q, lists.other_places),
    _simple("origin", rf"^(?:{_BE} an? |, an? |An? )(?:(?!of |to |for |with |who |and |in |at )[\w'-]+,? ){{1,9}}?from {_KNOWN_PLACE}(?=$|[.,;]| who| and| with)", ORIGIN_Q, lists.other_places),
    _simple("birth_year", r"^(?: was| were|, who was)? born (?:[^.;]{0,60} )?in (\d{4})\b(?!s)", YEAR_Q, lists.other_numbers, hedged=False),
    _simple("born", rf"^(?: was| were|, who was)? born (?:and raised |in \d{{4}} )?(?:in|at) (?!{_any(lists.MONTHS)}){_PLACE}(?=$|[.,;]| in | and | to | on )", BORN_Q, lists.other_places, hedged=False),
    _simple("raised", rf"^ (?:grew up|was raised|were raised) in {_PLACE}(?=$|[.,;]| and | with )", RAISED_Q, lists.other_places, hedged=False),
    _simple(
        "home",
        rf"(?:^(?:, who)?|,? and) (?:lives?|resides?|dwells?) (?:(?:alone|together|happily|now|currently|quietly|peacefully) )?"
        rf"in (?:an? [a-z -]{{1,40}} in |the (?:[a-z]+ )?(?:city|town|village|kingdom|port) of )?{_PLACE}(?=$|[.,;]| and | with | where )",
        HOME_Q,
        lists.other_places,
    ),
    _simple("employer", rf"(?:^(?:, who)?|,? and) works? (?:as (?:an? |the )[\w -]{{2,40}}? )?(?:at|for) {_PLACE}(?=$|[.,;]| and | as | in )", WORK_Q, lambda a: lists.COMPANIES),
    _simple("school", rf"^(?: studies| study|{_BE} studying|{_BE} a (?:\w+ )?student| attends?)(?: [a-z]+)?(?: at)? {_PLACE}(?=$|[.,;]| and | in )", SCHOOL_Q, lambda a: lists.SCHOOLS),
    _simple("study", rf"^(?: studies| study|{_BE} studying| majors? in|{_BE} majoring in|An? [^.;]{{3,80}}, studying) ({_any(lists.SUBJECTS)}){_STOP}", STUDY_Q, lambda a: lists.SUBJECTS),
    _simple("creator", rf"^(?:{_BE}| was| were) (?:an? [\w -]{{1,40}}? )?(?:created|built|developed) by {_PLACE}(?=$|[.,;]| to | and )", MADE_Q, lambda a: lists.COMPANIES, hedged=False),
    _simple("married", rf"^{_BE} married to {_FIRST_NAME}", MARRIED_Q, lambda a: lists.other_people(a)),
    _simple("hobby", rf"^(?: (?:also |really )?|[^.;]{{3,90}} who ){_LOVES} ({_any(lists.HOBBIES)}){_STOP}", HOBBY_Q, lambda a: lists.HOBBIES_WRONG),
    _simple("dislike", rf"(?:^| and|, and|, but|;) (?:also |really |absolutely )?{_HATES} {_OBJECT}", HATE_Q, lambda a: lists.DISLIKES),
    _simple("fear", rf"(?:^|^ (?:\w+ )| and |, and |, but |; ?) ?{_FEARS} {_OBJECT}", FEAR_Q, lambda a: lists.FEARS),
    _simple("instrument", rf"(?:^|,| and) (?:also )?plays? (?:the )?({_any(lists.INSTRUMENTS)})\b", PLAY_Q, lambda a: lists.INSTRUMENTS_WRONG),
    _simple("collection", r"(?:^|[^.;]{3,90} who|,| and) collects? ((?!and )[a-z-]+(?: [a-z-]+){0,2}?s)(?=$|[.,;]| and )", COLLECT_Q, lambda a: _COLLECTED),
    _Rule("family", re.compile(rf"^{_AHEAD}[^A-Z]{{0,200}}?{_POSSESSIVE} {_ADJECTIVES}{{0,2}}(?P<who>{_any(tuple(_RELATIONS))}){_NAMED}(?P<name>{_FIRST_NAME})"), _relation),
    _Rule("family", re.compile(rf"^(?P<ahead>) (?:has|have) an? {_ADJECTIVES}{{0,2}}(?P<who>{_any(tuple(_RELATIONS))}){_NAMED}(?P<name>{_FIRST_NAME})"), _relation),
    _Rule("family", re.compile(rf"^(?P<ahead>){_ADJECTIVES}{{0,2}}?(?P<who>{_any(tuple(_RELATIONS))})(?:,|'s name is| is (?:named|called)|) (?P<name>{_FIRST_NAME})"), _relation, ("owns",)),
    _Rule("family", re.compile(rf"^{_ADJECTIVES}{{0,2}}?(?P<who>{_any(tuple(_RELATIONS))}),? (?P<be>is|was) an? {_WORDS}(?P<job>{_any(lists.JOBS)}){_STOP}"), _relation_job, ("owns",), False),
    _Rule("possession", re.compile(rf"^{_AHEAD}[^A-Z]{{0,200}}?{_POSSESSIVE} {_ADJECTIVES}{{0,3}}(?P<what>{_any(tuple(_THINGS))}){_NAMED}(?P<name>{_FIRST_NAME})"), _thing),
    _Rule("possession", re.compile(rf"^(?P<ahead>) (?:has|have|owns?|keeps?|runs?|flies|fly|captains?|rides?|wields?) an? {_ADJECTIVES}{{0,3}}(?P<what>{_any(tuple(_THINGS))}){_NAMED}(?P<name>{_FIRST_NAME})"), _thing),
    _Rule("possession", re.compile(rf"^(?P<ahead>){_ADJECTIVES}{{0,3}}?(?P<what>{_any(tuple(_THINGS))})(?:,|'s name is| is (?:named|called)|) (?P<name>{_FIRST_NAME})"), _thing, ("owns",)),
    _Rule("family", re.compile(rf"^ (?:has|have) (?P<n>{lists.NUMBER_WORD}|\d{{1,2}}) (?:[a-z-]+ )?(?P<what>brothers|sisters|children|siblings|sons|daughters|cats|dogs){_STOP}"), _count),
    _Rule("family", re.compile(rf"{_A}(?:mother|father|mom|dad|parent) of (?P<n>{lists.NUMBER_WORD}|\d{{1,2}})(?=$|[.,;]| from| who| and| living)"), _children),
    _simple("height", r"(?:\b(?:[Ss]tands?|[Ss]tanding|is|am|height of)|'s|'m)(?: at)? (\d ?' ?\d{1,2}(?:\"|'')?|\d{3} ?cm)", HEIGHT_Q, lists.other_heights),
)  # fmt: skip
_HAIR = re.compile(
    rf"\b({_any(lists.HAIR)})(?:,? (?:long|short|curly|wavy|straight|messy|wild|braided|shoulder-length)){{0,2}} hair\b(?! (?:when|if|while|in|at)\b)",
    re.I,
)
_EYES = re.compile(
    rf"\b({_any(lists.EYES)})(?:,? (?:almond-shaped|wide|narrow|bright|round)){{0,2}} eyes\b(?! (?:when|if|while|in|at)\b)",
    re.I,
)
_HAIR_IS = re.compile(rf"^(?:[a-z-]+,? ){{0,2}}hair is (?:[a-z-]+ ){{0,1}}?({_any(lists.HAIR)})\b", re.I)
_EYES_ARE = re.compile(rf"^(?:[a-z-]+,? ){{0,2}}eyes are (?:[a-z-]+ ){{0,1}}?({_any(lists.EYES)})\b", re.I)
_PEOPLE = re.compile(
    rf"\b(?:{_any(tuple(_RELATIONS))}|mothers?|fathers?|parents?|friends?|sisters|brothers|someone|people|customers?|master|"
    rf"love|loves|likes?|hates?|User|boss|rival|lover|wig|dyed?|contacts?|streaks?|tips|highlights)\b"
)


def read_sentence(sentence: Sentence) -> Iterator[Found]:
    """Everything that a sentence says of the character."""
    for rule in RULES:
        if sentence.about not in rule.about:
            continue
        match = rule.pattern.search(sentence.rest)
        if match is None or (rule.hedged and _HEDGE.search(sentence.rest[: match.end()])):
            continue
        made = rule.make(match)
        if made:
            yield Found(rule.kind, made[0], made[1], made[2], made[3], sentence.text)
    yield from _colours(sentence)


def _colours(sentence: Sentence) -> Iterator[Found]:
    for key, pattern, is_pattern, asks, wrong in (
        ("hair", _HAIR, _HAIR_IS, HAIR_Q, lists.HAIR_WRONG),
        ("eyes", _EYES, _EYES_ARE, EYES_Q, lists.EYES_WRONG),
    ):
        match = is_pattern.search(sentence.rest) if sentence.about == "owns" else pattern.search(sentence.rest)
        if match is None and sentence.about == "owns":
            match = pattern.match(re.sub(r"^(?:[a-z-]+,? ){0,2}?(?=\w+ (?:hair|eyes))", "", sentence.rest))
        before = sentence.rest[: match.end()] if match else ""
        if (
            match
            and not _PEOPLE.search(before)
            and not _HEDGE.search(before)
            and not re.search(r"[A-Z]\w+", before[1:])
        ):
            yield Found("looks", key, asks, match[1].lower(), wrong, sentence.text)


# --- attributes -----------------------------------------------------------------------------------


def read_attribute(attribute: Attribute) -> Iterator[Found]:
    """What a "key: value" says; nothing for keys and values that are not plain."""
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
            yield Found("likes", f"favourite_{what}", asks, parts[0], wrong, attribute.text)
    elif read and parts:
        for kind, key, asks, answer, wrong in read(value, parts):
            yield Found(kind, key, asks, answer, wrong, attribute.text)


Row = tuple[str, str, tuple[str, str, str], str, tuple[str, ...]]


def _short(text: str, words: int = 4) -> bool:
    return (
        len(text) <= 40
        and len(text.split()) <= words
        and not _is_user(text)
        and not re.search(
            r"[.:;?!\[\]{}<>=]|\b(?:unknown|none|n/a|unspecified|secret|classified|varies|any|not|no|tbd)\b", text, re.I
        )
    )


def _read_age(value: str, parts: list[str]) -> Iterator[Row]:
    if re.match(r"\d+\+", value):
        return
    match = re.fullmatch(rf"{_AGE}(?:[ -]?(?:years?[ -]old|years?|y/?o|yrs?(?: old)?))?", parts[0], re.I)
    if (match and "-" not in value.replace("-year", "").replace("-old", "")) or (match and match[1].count("-")):
        yield "age", "age", AGE_Q, match[1], lists.other_numbers(match[1])


def _one(
    kind: str, key: str, asks: tuple[str, str, str], wrong: Callable[[str], tuple[str, ...]], words: int = 4
) -> Callable[[str, list[str]], Iterator[Row]]:
    def read(value: str, parts: list[str]) -> Iterator[Row]:
        if len(parts) == 1 and _short(parts[0], words):
            yield kind, key, asks, parts[0], wrong(parts[0])

    return read


def _place(kind: str, asks: tuple[str, str, str]) -> Callable[[str, list[str]], Iterator[Row]]:
    def read(value: str, parts: list[str]) -> Iterator[Row]:
        if re.fullmatch(_PLACE, parts[0]) and not _is_user(parts[0]):
            yield kind, kind, asks, parts[0], lists.other_places(parts[0])

    return read


def _colour(
    key: str, colours: tuple[str, ...], asks: tuple[str, str, str], wrong: tuple[str, ...]
) -> Callable[[str, list[str]], Iterator[Row]]:
    def read(value: str, parts: list[str]) -> Iterator[Row]:
        found = set(re.findall(rf"\b(?:{_any(colours)})\b", value.lower()))
        if len(found) == 1 and not re.search(r"\b(?:streaks?|tips|dyed|highlights|one|left|right)\b", value.lower()):
            yield "looks", key, asks, found.pop(), wrong

    return read


def _each(
    kind: str, asks: tuple[str, str, str], wrong: tuple[str, ...], known: tuple[str, ...] = ()
) -> Callable[[str, list[str]], Iterator[Row]]:
    def read(value: str, parts: list[str]) -> Iterator[Row]:
        for part in parts[:1] if not known else parts[:6]:
            if _short(part, 3) and (
                part.lower() in known
                if known
                else part[0].isalpha() and not re.match(r"(?:h(?:er|is)|their|my|being|when|the way)\b", part, re.I)
            ):
                yield kind, f"{kind}", asks, part.lower() if known else part, wrong
                return

    return read


def _date(value: str, parts: list[str]) -> Iterator[Row]:
    month = _any(lists.MONTHS)
    match = re.match(
        rf"(?:(?:{month}) \d{{1,2}}(?:st|nd|rd|th)?\b|\d{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{month}))(?!\w)", value, re.I
    )
    if match:
        yield "birthday", "birthday", BIRTHDAY_Q, match[0], lists.other_dates(match[0])


def _height(value: str, parts: list[str]) -> Iterator[Row]:
    match = re.match(r"\d ?['’] ?\d{1,2}(?:\"|'')?|\d{3} ?cm", value)
    if match and lists.other_heights(match[0]):
        yield "height", "height", HEIGHT_Q, match[0], lists.other_heights(match[0])


_job_key = _one("job", "job", JOB_Q, lambda a: lists.JOBS_WRONG)
_species_key = _one("species", "species", SPECIES_Q, lambda a: lists.SPECIES_WRONG, 3)
_hair_key = _colour("hair", lists.HAIR, HAIR_Q, lists.HAIR_WRONG)
_eyes_key = _colour("eyes", lists.EYES, EYES_Q, lists.EYES_WRONG)
_dislike_key = _each("dislike", HATE_Q, lists.DISLIKES)
_fear_key = _each("fear", FEAR_Q, lists.FEARS)
_hobby_key = _each("hobby", HOBBY_Q, lists.HOBBIES_WRONG, lists.HOBBIES)
_home_key = _place("home", HOME_Q)
_KEYS: dict[str, Callable[[str, list[str]], Iterator[Row]]] = {
    "age": _read_age,
    **dict.fromkeys(("occupation", "job", "profession"), _job_key),
    **dict.fromkeys(("species", "race"), _species_key),
    "nationality": _one("nationality", "nationality", NATION_Q, lambda a: lists.NATIONALITIES[:20], 2),
    **dict.fromkeys(("birthplace", "place of birth", "born in"), _place("born", BORN_Q)),
    **dict.fromkeys(("hometown", "origin", "from"), _place("origin", ORIGIN_Q)),
    **dict.fromkeys(("residence", "home", "lives in", "location"), _home_key),
    **dict.fromkeys(("hair", "hair color", "hair colour"), _hair_key),
    **dict.fromkeys(("eyes", "eye color", "eye colour"), _eyes_key),
    "height": _height,
    **dict.fromkeys(("birthday", "date of birth", "birth date"), _date),
    **dict.fromkeys(("dislikes", "hates"), _dislike_key),
    **dict.fromkeys(("fears", "fear", "phobia"), _fear_key),
    **dict.fromkeys(("hobbies", "hobby", "likes", "loves"), _hobby_key),
    **dict.fromkeys(
        ("employer", "workplace", "works at"), _one("employer", "employer", WORK_Q, lambda a: lists.COMPANIES)
    ),
    **dict.fromkeys(
        ("zodiac", "zodiac sign", "star sign"),
        _each("sign", SIGN_Q, lists.SIGNS, tuple(s.lower() for s in lists.SIGNS)),
    ),
    "nickname": _one("name", "nickname", NICK_Q, lambda a: lists.NAMES, 2),
    "instrument": _each("instrument", PLAY_Q, lists.INSTRUMENTS_WRONG, lists.INSTRUMENTS),
}
