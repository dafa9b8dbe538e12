"""Facts proposed from a card's text, for a person to accept: rules, no model. What is doubtful is not proposed.

Each proposal has three phrasings of its question, wrong answers of its type that the card does not mention, and the
sentence it was read from. Runs in the page's process; texts and proposals are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from persona_lab.personas import fact_answers as lists
from persona_lab.personas.card_sentences import attributes, card_texts, own_names, sentences
from persona_lab.personas.fact_attributes import read_attribute
from persona_lab.personas.fact_patterns import Found, read_sentence
from persona_lab.personas.fact_questions import NAME
from persona_lab.types import Fact, Frozen, Persona, slug

MAX_CARD = 200_000
"""Characters of a card that are searched for mentions of a wrong answer."""
_SEARCHED = ("description", "personality", "scenario", "first_mes", "mes_example", "creator_notes", "system_prompt")


class ProposedFact(Frozen):
    """A fact to accept or not. `kind`: what it is about, such as `age`, `job`, `family`."""

    fact: Fact
    sentence: str
    """The card's words that it was read from."""
    kind: str


def propose_facts(persona: Persona, limit: int = 40) -> list[ProposedFact]:
    """What the card plainly says of its character, as facts that `persona` does not have yet.

    Where a card answers a question in two ways, the question is not proposed.

    Args:
        limit: proposals at most.
    """
    mentioned = _mentions(persona)
    asked = {_plain(question) for fact in persona.facts for question in (fact.question, *fact.paraphrases)}
    ids = {fact.id for fact in persona.facts}
    proposals: list[ProposedFact] = []
    for found in _agreed(_read(persona)):
        wrong = lists.draw(found.answer, found.wrong, mentioned)
        told = any(_within(found.answer, question) for question in found.questions)
        if not wrong or told or asked & {_plain(question) for question in found.questions}:
            continue
        fact = Fact(
            id=_unused(slug(found.key), ids),
            question=found.questions[0],
            paraphrases=found.questions[1:],
            answer=found.answer,
            wrong=wrong,
        )
        proposals.append(ProposedFact(fact=fact, sentence=found.sentence, kind=found.kind))
        if len(proposals) >= limit:
            break
    return proposals


def _read(persona: Persona) -> Iterable[Found]:
    texts = card_texts(persona)
    name = persona.name.strip()
    nickname = persona.field("nickname").strip()
    if texts and name and len(name) <= 60 and nickname.lower() in name.lower():
        yield Found("name", "name", NAME, name, lists.other_people(name), f"Name: {name}")
    own = {word.lower() for given in own_names(persona) for word in given.split()}
    for found in _each(persona, texts):
        if found.answer.lower() not in own:
            yield found


def _each(persona: Persona, texts: list[str]) -> Iterable[Found]:
    for attribute in attributes(texts, persona):
        yield from read_attribute(attribute)
    for sentence in sentences(texts, persona):
        yield from read_sentence(sentence)


def _agreed(found: Iterable[Found]) -> list[Found]:
    """One reading a question, in order; none where readings differ in more than an article or in case."""
    by_key: dict[str, list[Found]] = {}
    for one in found:
        by_key.setdefault(one.key, []).append(one)
    return [several[0] for several in by_key.values() if len({_value(one.answer) for one in several}) == 1]


def _value(answer: str) -> str:
    number = lists.number_of(answer)
    return str(number) if number is not None else lists.bare(answer)


def _mentions(persona: Persona) -> Callable[[str], bool]:
    """Whether the card speaks of an answer anywhere, word by word."""
    greetings = persona.data.get("alternate_greetings")
    more = [text for text in greetings if isinstance(text, str)] if isinstance(greetings, list) else []
    facts = [fact.answer for fact in persona.facts]
    card = "\n".join([persona.name, *map(persona.field, _SEARCHED), *more, *facts])[:MAX_CARD].lower()
    return lambda answer: _within(answer, card)


def _within(answer: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(lists.bare(answer))}s?(?!\w)", text.lower()) is not None


def _unused(name: str, ids: set[str]) -> str:
    """The name as an id that no fact has; remembers it."""
    number, candidate = 2, name
    while candidate in ids:
        candidate, number = f"{name}_{number}", number + 1
    ids.add(candidate)
    return candidate


def _plain(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.lower()))
