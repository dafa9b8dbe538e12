"""Rules that call a reply broken: assistant phrases, speaking for the user (or as one), degenerate text, wrong facts.

They are plain patterns, so they miss things and can be wrong; that is why the same rules are always run over the
character's real lines as well. What the character itself is known to say is never held against it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from persona_lab.api import Dataset, Persona

_ASSISTANT = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"\bas an? (?:\w+ )?(?:ai|a\.i\.|artificial intelligence|assistant|chatbot)\b",
        r"\bas an? (?:language|digital|virtual) (?:model|assistant)\b",
        r"\bi(?:'m| am) (?:just |only |actually |really )?an? (?:\w+ ){0,2}"
        r"(?:ai|artificial intelligence|language model|chatbot|bot|assistant|computer program)\b",
        r"\b(?:large )?language model\b",
        r"\bai (?:assistant|model|chatbot|system)\b",
        r"\b(?:my|the) (?:training data|knowledge cutoff|programming|developers|creators at)\b",
        r"\b(?:chatgpt|openai|anthropic|smollm|hugging ?face|gpt-\d)\b",
        r"\b(?:how|what) (?:can|may) i (?:help|assist)(?: you)?(?: with)?(?: today)?\s*\?",
        r"\bi(?:'m| am) here to (?:help|assist|provide)\b",
        r"\bi(?:'d| would|'ll| will| can)? ?(?:be|am|'m)? ?(?:more than )?"
        r"(?:happy|glad|pleased|delighted|ready) to (?:help|assist|provide|continue the|answer (?:any|your))\b",
        r"\bi(?:'m| am) (?:not able|unable) to (?:provide|assist|access|browse|fulfil|generate)\b",
        r"\bi (?:can't|cannot|can not) (?:provide|assist|fulfil|browse|generate)\b",
        r"\bi (?:don't|do not) have (?:personal|feelings|emotions|opinions|a physical|access to real)\b",
        r"\b(?:let me know if you|feel free to (?:ask|reach)|if you have any (?:other|more|further) questions)\b",
        r"^\s*(?:certainly|sure|of course|absolutely)[!,.] (?:here|i can|i'd be|i would)\b",
        r"\b(?:is|here are) (?:the|some) (?:steps|key points|tips|bullet points)\b",
        r"\bhere(?:'s| is| are) (?:an?|the|some|my|your) (?:\w+ )?"
        r"(?:features|function|code|list|table|summary|translation|example|template|response|letter)\b",
        r"\bas (?:a|the|this) (?:fictional )?character\b",
        r"\b(?:my|this|the) (?:role-?play|fictional character)\b",
        r"```",
        r"^\s*\|.*\|\s*$",
        r"(?:^\s*(?:[-*•]|\d+[.)])\s+\S.*\n+){2}",
        r"^\s*(?:\d+[.)]\s+)?\*\*[^*\n]+\*\*",
    )
)
_TEMPLATE = re.compile(
    r"<\|\w+\|>|\[/?INST\]|^#{2,}\s*(?:instruction|response|input)|^(?:user|assistant|system)\s*$", re.I | re.M
)
_OTHER_TURN = re.compile(r"^\W*(?:user|human|you|me|visitor|guest|stranger|customer|interviewer)\W*:", re.I | re.M)
_PLACEHOLDER = re.compile(r"\{\{\s*(?:user|char)\s*\}\}|<(?:user|bot|char)>", re.I)
_NAME_CLAIM = re.compile(r"\b(?:[Mm]y (?:real )?name(?:'s| is)|I(?:'m| am) called|[Cc]all me)\s+([A-Z][\w'’-]+)")
_IDENTITY = re.compile(r"\bI(?:'m| am) ((?:[A-Z][\w'-]+ ?)+)(?=[,.!?;:]|$)")
_RECITAL = 10
"""Words in a row, taken from the system prompt, that make a reply a recital."""


@dataclass(frozen=True)
class CharacterRules:
    """What is known of one character, for judging replies. Build it with `CharacterRules.of`."""

    known_text: str
    """Everything the character is on record as saying, lower case."""
    names: frozenset[str]
    wrong: tuple[tuple[str, str], ...] = ()
    """(wrong answer, right answer) of facts, where the wrong one is distinctive enough to be recognised."""
    exempt: frozenset[int] = field(default_factory=frozenset)
    """Assistant patterns (by index) that the character's own lines match: part of the role."""
    addressed: re.Pattern[str] | None = None
    """The character spoken to by name; None where it speaks so of itself."""

    @classmethod
    def of(cls, persona: Persona, dataset: Dataset | None) -> CharacterRules:
        """Collect the character's lines (train split and card), names and checkable facts."""
        lines = [
            m.content for c in (dataset.of("train") if dataset else ()) for m in c.messages if m.role == "assistant"
        ]
        card = [persona.field(name) for name in ("description", "personality", "scenario", "first_mes", "mes_example")]
        known = "\n".join([*lines, *card])
        names = re.findall(r"\w+", f"{persona.name} {persona.field('name')} {persona.field('nickname')}".lower())
        lower = known.lower()
        wrong = tuple(
            (answer, fact.answer)
            for fact in persona.facts
            for answer in fact.wrong
            if _distinctive(answer) and answer.lower() not in lower
        )
        exempt = frozenset(i for i, pattern in enumerate(_ASSISTANT) if any(pattern.search(line) for line in lines))
        addressed = _addressed(persona.name)
        if addressed is not None and any(addressed.search(line) for line in lines):
            addressed = None
        return cls(lower, frozenset(names), wrong, exempt, addressed)

    def broken(self, text: str, prompt: str = "", system: str = "") -> str:
        """Why `text` is out of character, for people; empty if no rule speaks against it."""
        return self.no_speech(text, prompt, system) or self._address(text) or self._contradiction(text, prompt)

    def no_speech(self, text: str, prompt: str = "", system: str = "") -> str:
        """Why `text` is nothing that a character would say, whoever it is and whatever it knows; or an empty string."""
        return degenerate(text) or self._assistant(text) or speaks_for_user(text) or _echo(text, prompt, system)

    def _assistant(self, text: str) -> str:
        for index, pattern in enumerate(_ASSISTANT):
            found = pattern.search(text.replace("’", "'"))
            if found and index not in self.exempt:
                return f"assistant phrase: {found.group(0).strip()!r}"
        return ""

    def _address(self, text: str) -> str:
        found = self.addressed.search(text) if self.addressed else None
        return f"speaks for the user: to the character, {found.group(0).strip()!r}" if found else ""

    def _identity(self, text: str, prompt: str) -> str:
        """Whom the reply says it is, where that is nobody the character is: two names, or one that the prompt offers.

        One name alone may be a people or a trade ("I am English").
        """
        found = _IDENTITY.search(text.replace("’", "'"))
        words = found.group(1).lower().split() if found else []
        offered = any(word in re.findall(r"[\w'-]+", prompt.lower()) for word in words)
        strange = all(word not in self.names and word not in self.known_text for word in words)
        return " ".join(words).title() if words and strange and (offered or len(words) > 1) else ""

    def _contradiction(self, text: str, prompt: str) -> str:
        claimed = _NAME_CLAIM.search(text)
        if claimed and claimed.group(1).lower() not in self.names and claimed.group(1).lower() not in self.known_text:
            return f"contradicted fact: calls itself {claimed.group(1)!r}"
        if other := self._identity(text, prompt):
            return f"contradicted fact: calls itself {other!r}"
        for wrong, right in self.wrong:
            found = re.search(
                rf"(\b(?:not|never|no|isn't|wasn't)\b[^.!?]*)?\b{re.escape(wrong)}\b", text, re.IGNORECASE
            )
            mentioned = right.lower() in text.lower() or wrong.lower() in prompt.lower()
            if found and not found.group(1) and not mentioned:
                return f"contradicted fact: says {wrong!r}, not {right!r}"
        return ""


def _addressed(name: str) -> re.Pattern[str] | None:
    """The name as a sentence of its own, at its beginning ("Yes, Socrates, ...") or its end ("..., Socrates?")."""
    if not name.strip():
        return None
    called, before = re.escape(name.strip()), r"(?:oh|ah|well|yes|no|dear|my dear|hello|hi|greetings|indeed|but)"
    return re.compile(rf"(?:^|[.!?]\s+)(?:{before},? )?{called}[,!?]|(?<=[a-z]), {called}\s*[.!?]", re.I | re.M)


def degenerate(text: str) -> str:
    """Why the text is no speech at all (empty, no words, loops), or an empty string."""
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)?", text.lower())
    if not words:
        return "degenerate text: no words" if text.strip() else "degenerate text: empty"
    grams: dict[tuple[str, ...], int] = {}
    for start in range(len(words) - 3):
        gram = tuple(words[start : start + 4])
        grams[gram] = grams.get(gram, 0) + 1
    repeated = next((gram for gram, count in grams.items() if count >= 3), None)
    if repeated:
        return f"degenerate text: repeats {' '.join(repeated)!r}"
    if any(len(set(words[i : i + 5])) == 1 for i in range(len(words) - 4)):
        return "degenerate text: one word over and over"
    if len(words) >= 24 and len(set(words)) / len(words) < 0.35:
        return "degenerate text: few different words"
    data = text.encode()
    if len(data) >= 150 and len(zlib.compress(data)) / len(data) < 0.35:
        return "degenerate text: loops"
    return ""


def speaks_for_user(text: str) -> str:
    """Whether the reply writes other people's turns or pieces of the chat template."""
    if _TEMPLATE.search(text) or _PLACEHOLDER.search(text):
        return "speaks for the user: pieces of the chat template"
    found = _OTHER_TURN.search(text)
    return f"speaks for the user: {found.group(0).strip()!r}" if found else ""


def _echo(text: str, prompt: str, system: str) -> str:
    words = re.findall(r"\w+", text.lower())
    asked = re.findall(r"\w+", prompt.lower())
    if len(asked) >= 6 and " ".join(asked) in " ".join(words):
        return "degenerate text: echoes the prompt"
    instructions = " " + " ".join(re.findall(r"\w+", system.lower())) + " "
    recited: Sequence[list[str]] = [words[i : i + _RECITAL] for i in range(len(words) - _RECITAL + 1)]
    if any(f" {' '.join(run)} " in instructions for run in recited):
        return "assistant phrase: recites its instructions"
    return ""


def _distinctive(answer: str) -> bool:
    """Names and numbers can be recognised in free text; "tea" or "twelve" cannot."""
    return len(answer) >= 4 and (len(answer.split()) >= 2 or any(c.isupper() or c.isdigit() for c in answer))
