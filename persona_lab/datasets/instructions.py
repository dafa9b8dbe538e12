"""Prompts for passages of a document, written by a base model: what it is asked, which of its answers can be used.

The templates of `documents` name what a passage is about; a model can ask as people do ("Why did she keep the ring?").
Only prompts that we made are ever replaced, and each row says who made its own. Instruction back-translation: Li et
al., "Self-Alignment with Instruction Backtranslation", 2023, https://arxiv.org/abs/2308.06259. Runs no model
(backtranslation.py does).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from persona_lab.datasets.documents import INSTRUCTION
from persona_lab.types import Conversation, Message

BY_MODEL = "instruction by a model"
"""How `made` begins in rows whose prompt a model wrote; the model's name follows."""
FEWEST_WORDS, MOST_WORDS = 4, 40
COPIED_WORDS = 7
"""So many words in a row, taken from the passage, give the reply away."""
KEYWORD_LETTERS = 5
_SHOWN = (
    (
        "The bakery on the corner had closed before I was born, but my aunt still walked us past it every Sunday. She "
        "would stop, breathe in, and swear that the bricks had kept the smell of the bread.",
        "Why did your aunt take you past the old bakery every Sunday?",
    ),
    (
        "I do not sail in October. The wind comes round the headland twice as strong, the harbour lights go out one "
        "after another, and whoever is out there learns what the other word for brave is.",
        "Would you sail with me in October?",
    ),
)
_ASK = "Write the question that was asked before this was said. Write one short question and nothing else.\n\n{passage}"
_LABEL = re.compile(
    r"^(?:[-*•]|\d{1,2}[.)]|(?:question|prompt|instruction|q|answer|user|here is (?:a|the) question)\s{0,2}:)\s{0,4}",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’*_` "
_ASKS = re.compile(
    r"^(?:describe|tell|explain|write|say|give|talk|share|recall|show|speak|imagine|let)\b", re.IGNORECASE
)
_ABOUT_THE_TEXT = re.compile(
    r"\b(?:this|the|that|following|above|given) (?:text|passage|excerpt|paragraph|sentence|quote|quotation|statement|"
    r"author|narrator|speaker|question|conversation)\b|\b(?:an|helpful) ai\b|\blanguage model\b|\bwas (?:this )?said\b",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"(?<!\b(?:Mr|Dr|St))(?<!\bMrs)[.!;:…]\s+\S")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

_EXAMPLES_OWN = frozenset({"aunt", "bakery", "sunday", "sail", "sailing", "october"})
"""Words of the examples above, which small models repeat."""


def asks_for(passage: str) -> list[Message]:
    """The conversation after which a model writes a prompt for the passage."""
    turns: list[Message] = []
    for text, question in _SHOWN:
        turns += [_asked(text), Message(role="assistant", content=question)]
    return [*turns, _asked(passage)]


def _asked(passage: str) -> Message:
    return Message(role="user", content=_ASK.format(passage=passage))


def askable(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The rows whose prompt a template or an earlier model made; others are not ours to change."""
    return [c for c in conversations if c.made == INSTRUCTION or c.made.startswith(BY_MODEL)]


def usable_prompt(written: str, passage: str) -> str:
    """What a model wrote as a prompt for the passage, tidied; empty where it is none.

    It must be one sentence, a question or a request, name something of the passage, and neither repeat it nor talk
    about "the text".
    """
    line = next((line.strip() for line in written.strip().splitlines() if line.strip()), "")
    for _ in range(3):
        line = _LABEL.sub("", line.strip(_QUOTES))
    line = " ".join(line.strip(_QUOTES).split())
    if "?" in line:
        line = line[: line.index("?") + 1]
    elif not _ASKS.match(line):
        return ""
    if _SENTENCES.search(line):
        return ""
    words = [word.casefold() for word in _WORD.findall(line)]
    if not FEWEST_WORDS <= len(words) <= MOST_WORDS or _ABOUT_THE_TEXT.search(line):
        return ""
    told = [word.casefold() for word in _WORD.findall(passage)]
    if not any(len(word) >= KEYWORD_LETTERS and word in told for word in words) or _copies(words, told):
        return ""
    if any(word in _EXAMPLES_OWN and word not in told for word in words):
        return ""
    return line


def _copies(words: Sequence[str], told: Sequence[str]) -> bool:
    runs = {tuple(told[i : i + COPIED_WORDS]) for i in range(len(told) - COPIED_WORDS + 1)}
    return any(tuple(words[i : i + COPIED_WORDS]) in runs for i in range(len(words) - COPIED_WORDS + 1))


def with_prompts(
    conversations: Sequence[Conversation], prompts: Mapping[str, str], model: str
) -> tuple[Conversation, ...]:
    """The rows with other prompts.

    Args:
        prompts: a prompt by a row's id; only rows of `askable` are changed.
        model: its name, for `made`.
    """
    ours = {conversation.id for conversation in askable(conversations)}
    return tuple(
        _with_prompt(conversation, prompts[conversation.id], model)
        if conversation.id in ours and conversation.id in prompts
        else conversation
        for conversation in conversations
    )


def _with_prompt(conversation: Conversation, prompt: str, model: str) -> Conversation:
    place = next(i for i, message in enumerate(conversation.messages) if message.role == "user")
    messages = list(conversation.messages)
    messages[place] = Message(role="user", content=prompt)
    return conversation.model_copy(update={"messages": tuple(messages), "made": f"{BY_MODEL} ({model})"})
