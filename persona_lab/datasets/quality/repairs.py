"""Rows to be repaired rather than left out: too long, with personal data, with placeholders, with damaged letters."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from persona_lab.datasets.quality.checks import Check, Context, changed, excerpt, with_texts
from persona_lab.types import Conversation, Message

_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+")


class OverLong(Check):
    """Rows longer than a training reads."""

    kind = "over_long"
    title = "Over-long rows"
    why = "What is longer than a training reads is cut off: the oldest turns first, then the reply itself."
    fix = "Cut conversations into several between exchanges, and long replies at a sentence."

    def look(self, conversation: Conversation, context: Context) -> str:
        words = _size(conversation.messages)
        return (
            f"about {words:,} words: {excerpt(conversation.messages[0].content)}" if words > context.most_words else ""
        )

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        system = conversation.messages[:1] if conversation.messages[0].role == "system" else ()
        room = max(context.most_words - _size(system), context.most_words // 4)
        parts: list[list[Message]] = [[]]
        for exchange in _exchanges(conversation.messages[len(system) :]):
            short = _shortened(exchange, room)
            if parts[-1] and _size([*parts[-1], *short]) > room:
                parts.append([])
            parts[-1] += short
        made = []
        for number, part in enumerate(parts, 1):
            if any(message.role == "assistant" for message in part):
                name = conversation.id if len(parts) == 1 else f"{conversation.id}.{number}"
                together = conversation.group or (conversation.id if len(parts) > 1 else "")
                update = {"messages": (*system, *part), "id": name, "group": together}
                made.append(conversation.model_copy(update=update))
        return made


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)


def _exchanges(messages: Sequence[Message]) -> list[list[Message]]:
    """Turns up to and with each reply."""
    found: list[list[Message]] = [[]]
    for message in messages:
        found[-1].append(message)
        if message.role == "assistant":
            found.append([])
    return [exchange for exchange in found if exchange]


def _shortened(exchange: Sequence[Message], room: int) -> list[Message]:
    """An exchange within `room` words: the end of the question, the beginning of the reply."""
    if _size(exchange) <= room:
        return list(exchange)
    made = []
    for message in exchange:
        share = room // 4 if message.role == "user" else room - room // 4
        words = message.content.split()
        if len(words) <= share:
            made.append(message)
        elif message.role == "user":
            made.append(Message(role="user", content=" ".join(words[-share:])))
        else:
            made.append(Message(role=message.role, content=_beginning(message.content, share)))
    return made


def _beginning(text: str, words: int) -> str:
    """The first sentences of a text that have at most so many words; of one endless sentence, its first words."""
    kept, size = "", 0
    for sentence in _SENTENCE.split(text):
        size += len(sentence.split())
        if size > words:
            break
        kept = f"{kept} {sentence}" if kept else sentence
    return kept or " ".join(text.split()[:words])


# --- personal data --------------------------------------------------------------------------------

_PERSONAL = (
    ("[email]", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}(?![\w@])")),
    (
        "[address]",
        re.compile(
            r"\b\d{1,5}[A-Za-z]?,?\s(?:[A-Z][\w'’.-]{1,20}\s){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|"
            r"Square|Sq|Court|Ct|Place|Pl|Terrace|Way|Close|Crescent)\b\.?"
        ),
    ),
    (
        "[address]",
        re.compile(r"\b[A-ZÄÖÜ][\wäöüß-]{2,30}(?:straße|strasse|str\.|weg|platz|allee|gasse)\s\d{1,4}\s?[a-z]?\b"),
    ),
    ("[account]", re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){3,7}(?:\s?[A-Z0-9]{1,3})?\b")),
    ("[address]", re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b(?!\.?\d)")),
)
_DIGITS = re.compile(r"(?<![\w.,:/#=-])\+?\(?\d(?:[\d\s().-]{5,22})\d(?![\w:/]|[.,]\d)")
_DATE = re.compile(r"^\d{1,4}[.\-/ ]\d{1,2}[.\-/ ]\d{1,4}(?:\s\d{1,2})?$|^(?:19|20)\d\d\s?-\s?(?:19|20)\d\d$")


def personal(text: str) -> list[tuple[int, int, str]]:
    """(start, end, what to write instead) of what looks like an e-mail, a phone number, an address or an account."""
    found = [(m.start(), m.end(), instead) for instead, pattern in _PERSONAL for m in pattern.finditer(text)]
    for match in _DIGITS.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if 13 <= len(digits) <= 19 and _luhn(digits):
            found.append((match.start(), match.end(), "[account]"))
        elif _is_phone(match[0], digits):
            found.append((match.start(), match.end(), "[phone]"))
    apart: list[tuple[int, int, str]] = []
    for span in sorted(found):
        if not apart or span[0] >= apart[-1][1]:
            apart.append(span)
    return apart


def _is_phone(text: str, digits: str) -> bool:
    """Seven to fifteen digits (ITU-T E.164) that are written as one writes a phone number, and no date or range."""
    if not 7 <= len(digits) <= 15 or _DATE.match(text.strip()):
        return False
    groups = len(re.findall(r"\d+", text))
    return (
        text.startswith(("+", "(", "0"))
        or (groups >= 3 and len(digits) >= 9)
        or bool(re.fullmatch(r"\d{3}-\d{4}", text))
    )


def _luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    doubled = (int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


class PersonalData(Check):
    """E-mail and street addresses, phone and account numbers."""

    kind = "personal_data"
    title = "Personal data"
    why = "What is learnt can be said again to anybody: private addresses and numbers do not belong in it."
    fix = "Write [email], [phone], [address] or [account] instead."

    def look(self, conversation: Conversation, context: Context) -> str:
        for message in conversation.messages:
            for start, end, instead in personal(message.content):
                return f"{instead[1:-1]}: {excerpt(message.content, start, end)}"
        return ""

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        return changed(conversation, [redacted(message.content) for message in conversation.messages])


def redacted(text: str) -> str:
    """The text with what looks personal written over."""
    result, at = "", 0
    for start, end, instead in personal(text):
        result += text[at:start] + instead
        at = end
    return result + text[at:]


# --- placeholders ---------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(
    r"\{\{\s?[\w .:-]{1,40}\s?\}\}|<(?:user|bot|char|name|your name|assistant)>|"
    r"\[(?:your name|name|insert [\w ]{1,30}|user)\]|"
    r"(?<![\w{])\{(?:name|user|char|character|author|company)\}",
    re.I,
)
_CHARACTER = ("char", "bot", "name", "character", "assistant", "assistant name", "bot name", "char name")
_OTHER_SIDE = ("user", "your name", "user name", "username")


class Placeholders(Check):
    """`{{char}}`, `{{name}}`, `[your name]`: blanks that nobody filled in."""

    kind = "placeholders"
    title = "Placeholders"
    why = "The character would say them literally."
    fix = "Write the character's name for {{char}} and {{name}}, “my friend” for {{user}}; take rows with others out."

    def look(self, conversation: Conversation, context: Context) -> str:
        for message in conversation.messages:
            found = _PLACEHOLDER.search(message.content)
            if found:
                return excerpt(message.content, found.start(), found.end())
        return ""

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        def filled(match: re.Match[str]) -> str:
            word = match[0].strip("{}<>[] ").casefold()
            if word in _CHARACTER:
                return context.persona.name
            if word in ("author", "company", "creator"):
                return context.persona.field("creator") or match[0]
            return "my friend" if word in _OTHER_SIDE else match[0]

        texts = [_PLACEHOLDER.sub(filled, message.content) for message in conversation.messages]
        if any(_PLACEHOLDER.search(text) for text in texts):
            return ()
        return changed(conversation, texts)


# --- damaged letters ------------------------------------------------------------------------------

_APOSTROPHE = re.compile(
    r"\b(don|doesn|didn|can|won|isn|aren|wasn|weren|couldn|wouldn|shouldn|haven|hasn|hadn|ain) (t)\b|"
    r"\b(i|you|we|they) (ll|ve|re)\b|\b(i) (m)\b|\b(it|that|there|what|he|she|let|who) (s)\b",
    re.I,
)
_ENTITY = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|hellip|mdash|ndash|rsquo|lsquo|ldquo|rdquo|#\d{2,6}|#x[0-9a-f]{2,5});", re.I
)
_SUSPECT = re.compile("\ufffd|[ÃÂâåæçéèðÐÑ][\u0080-\u00bf\u2013-\u203a€™œžŸŠ˜¢£¥§©«®°±²³µ·¹º»¼½¾¿ ]")


def repaired(text: str) -> str:
    """Letters that were decoded wrongly, HTML entities and lost apostrophes put right; else the same text."""
    import ftfy

    made = html.unescape(text) if _ENTITY.search(text) else text
    if _SUSPECT.search(made):
        made = ftfy.fix_encoding(made)
    return _APOSTROPHE.sub(lambda match: "'".join(part for part in match.groups() if part), made.replace("\xa0", " "))


class EncodingDamage(Check):
    """`donâ€™t`, `&amp;`, `don t`, and letters that are gone for good."""

    kind = "encoding_damage"
    title = "Damaged letters"
    why = "The character learns to write them like that."
    fix = "Put back what can be told (apostrophes, accents, &amp;); take rows with lost letters out."

    def look(self, conversation: Conversation, context: Context) -> str:
        for message in conversation.messages:
            text = message.content
            lost = text.find("\ufffd")
            if lost >= 0:
                return excerpt(text, lost)
            made = repaired(text)
            if made != text.replace("\xa0", " "):
                at = next((i for i, (a, b) in enumerate(zip(text, made, strict=False)) if a != b), 0)
                return excerpt(text, at)
        return ""

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        made = with_texts(conversation, [repaired(message.content) for message in conversation.messages])
        return () if made is None or any("\ufffd" in m.content for m in made.messages) else (made,)
