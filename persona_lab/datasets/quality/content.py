"""Rows that say the wrong thing: nothing, one word, somebody else's words, an assistant's phrases, another language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from persona_lab.datasets.quality.checks import Check, Context, changed, excerpt, replies
from persona_lab.types import Conversation, Dataset, Message

_SAYING = re.compile(r"\w")
_DELETED = re.compile(r"^\W*(?:deleted|removed|no text|empty|n/?a|null|none|nan|media omitted)\W*$", re.I)
_PHRASES = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|virtual assistant)\b|"
    r"\b(?:ai|large) language model\b|"
    r"\bI(?:'|’)?m (?:just |only )?an? (?:ai|artificial intelligence|virtual assistant|chat ?bot)\b|"
    r"\ban? (?:ai|artificial intelligence|virtual) (?:assistant|model|chat ?bot)\b|"
    r"\bI am (?:just |only )?an? (?:ai|artificial intelligence|language model|virtual assistant|chat ?bot)\b|"
    r"\b(?:openai|chatgpt|gpt-?[345]|anthropic|my training data|my knowledge cut-?off)\b|"
    r"\bI (?:cannot|can(?:'|’)t|am unable to|am not able to) (?:assist|help|fulfil|comply) (?:with|you)\b|"
    r"\bhow (?:can|may) I (?:assist|help) you(?: today)?\b|\bis there anything else I can (?:help|assist)\b",
    re.I,
)
_FOREIGN_TURN = re.compile(
    r"(?:^|\n)\s{0,4}(?:\*{0,2}(?:user|human|you|###\s?human|###\s?instruction|system)\*{0,2}\s?:|<\|(?:im_start|im_end|user|system|"
    r"assistant|endoftext|eot_id)\|>|\[/?INST\])",
    re.I,
)
_BOT_TURN = re.compile(r"(?:^|\n)\s{0,4}(?:\*{0,2}(?:assistant|bot|ai)\*{0,2}\s?:)", re.I)
_MIN_WORDS = 8
_KNOWN_WORDS = 150
_FEWEST_ROWS = 20
_MIN_SHARED = 0.12
_WORDS = re.compile(r"[^\W\d_]+")
_SCRIPTS = (
    ("Cyrillic", re.compile(r"[\u0400-\u04ff]")),
    ("Greek", re.compile(r"[\u0370-\u03ff]")),
    ("Arabic", re.compile(r"[\u0600-\u06ff]")),
    ("Hebrew", re.compile(r"[\u0590-\u05ff]")),
    ("Chinese or Japanese", re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")),
    ("Korean", re.compile(r"[\uac00-\ud7af]")),
    ("Devanagari", re.compile(r"[\u0900-\u097f]")),
    ("Thai", re.compile(r"[\u0e00-\u0e7f]")),
    ("Latin", re.compile(r"[A-Za-z\u00c0-\u024f]")),
)


class EmptyReplies(Check):
    """Replies that say nothing: dots, `[deleted]`, `null`."""

    kind = "empty_replies"
    title = "Empty replies"
    why = "The character would learn to say nothing."
    fix = "Take these replies out, with the questions they answer."

    def look(self, conversation: Conversation, context: Context) -> str:
        return next((excerpt(reply) or "(nothing)" for reply in replies(conversation) if _says_nothing(reply)), "")

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        return changed(
            conversation,
            ["" if m.role == "assistant" and _says_nothing(m.content) else m.content for m in conversation.messages],
        )


def _says_nothing(text: str) -> bool:
    return not _SAYING.search(text) or bool(_DELETED.match(text[:100]))


class OneWordReplies(Check):
    """Rows in which the character never says more than a word."""

    kind = "one_word_replies"
    title = "One-word replies"
    why = "They have no voice in them, and many of them make a character that only nods."
    fix = "Take these rows out."

    def look(self, conversation: Conversation, context: Context) -> str:
        said = [reply for reply in replies(conversation) if not _says_nothing(reply)]
        return excerpt(said[0]) if said and all(len(reply.split()) <= 1 for reply in said) else ""


class WrongRole(Check):
    """Turns that are in the wrong mouth: two in one text, two of one speaker in a row, a name in front."""

    kind = "wrong_role"
    title = "Turns of the wrong speaker"
    why = "The character would learn to speak for the other side, or to write its own name before each line."
    fix = "Cut replies where the other side begins to speak, take names off, and join turns of one speaker."

    def look(self, conversation: Conversation, context: Context) -> str:
        name = context.persona.name
        before = ""
        for message in conversation.messages:
            if message.role == before and message.role != "system":
                return f"two turns of {message.role!r} in a row: {excerpt(message.content)}"
            before = message.role
            if message.role == "assistant":
                found = _FOREIGN_TURN.search(message.content)
                if found:
                    return f"a reply holds the other side's turn: {excerpt(message.content, found.start())}"
                if _named(message.content, name):
                    return f"a reply begins with the character's own name: {excerpt(message.content)}"
            elif message.role == "user":
                found = _BOT_TURN.search(message.content)
                if found or _named(message.content, name):
                    return f"the character speaks in the other side's turn: {excerpt(message.content)}"
        return ""

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        texts = [self._mended(message, context.persona.name) for message in conversation.messages]
        return changed(conversation, texts)

    def _mended(self, message: Message, name: str) -> str:
        if message.role == "system":
            return message.content
        text = _unnamed(message.content, name) if message.role == "assistant" else message.content
        found = (_FOREIGN_TURN if message.role == "assistant" else _BOT_TURN).search(text)
        text = text[: found.start()] if found else text
        return "" if message.role == "user" and _named(text, name) else text


def _named(text: str, name: str) -> bool:
    return bool(name) and text[: len(name) + 6].lstrip("*_ ").casefold().startswith(f"{name.casefold()}:")


def _unnamed(text: str, name: str) -> str:
    return text.lstrip("*_ ")[len(name) + 1 :].lstrip("*_ ") if _named(text, name) else text


class AssistantPhrases(Check):
    """What machine assistants say of themselves."""

    kind = "assistant_phrases"
    title = "Assistant phrases"
    why = "A reply such as “As an AI …” teaches the character to fall out of its part."
    fix = "Take these replies out, with the questions they answer."

    def look(self, conversation: Conversation, context: Context) -> str:
        for reply in replies(conversation):
            found = _PHRASES.search(reply)
            if found:
                return excerpt(reply, found.start(), found.end())
        return ""

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        return changed(
            conversation,
            ["" if m.role == "assistant" and _PHRASES.search(m.content) else m.content for m in conversation.messages],
        )


class OtherLanguages(Check):
    """Replies in another writing, or with hardly a word of those that come in most replies."""

    kind = "other_languages"
    title = "Other languages"
    why = "A few replies in another language make the character change language when it should not."
    fix = "Take these rows out."

    def look(self, conversation: Conversation, context: Context) -> str:
        text = "\n".join(replies(conversation))
        script, usual = script_of(text), context.words.get("", 0)
        if usual and script and script != _SCRIPTS[usual - 1][0]:
            return f"{script}: {excerpt(text)}"
        words = [word.casefold() for word in _WORDS.findall(text)]
        known = sum(word in context.words for word in words)
        foreign = (
            len(context.words) > _KNOWN_WORDS // 2 and len(words) >= _MIN_WORDS and known < _MIN_SHARED * len(words)
        )
        return excerpt(text) if foreign else ""


def common_words(dataset: Dataset) -> dict[str, int]:
    """The words that come in most replies, with the number of rows; `""` gives the usual writing, by number (from 1).

    Empty where there are too few rows to know the language from.
    """
    rows = dataset.conversations
    if len(rows) < _FEWEST_ROWS:
        return {}
    spread: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    for conversation in rows:
        text = "\n".join(replies(conversation))
        spread.update({word.casefold() for word in _WORDS.findall(text)})
        scripts[script_of(text)] += 1
    usual = max(scripts, key=lambda script: scripts[script])
    names = [name for name, _ in _SCRIPTS]
    return dict(spread.most_common(_KNOWN_WORDS)) | {"": names.index(usual) + 1 if usual in names else 0}


def script_of(text: str) -> str:
    """The writing most letters of a text are in; empty where it has fewer than four letters."""
    counts = {name: len(pattern.findall(text[:5_000])) for name, pattern in _SCRIPTS}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= 4 else ""
