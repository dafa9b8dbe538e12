"""The shape of a check: what it looks for in a row or a whole dataset, and how it is mended.

Checks are small and know nothing of disks, pages or versions. Regular expressions are bounded, so that a hostile row
costs no time.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from persona_lab.types import Conversation, Dataset, Message, Persona

EXCERPT = 160


@dataclass(frozen=True)
class Context:
    """What checks may know: the character, and how long a row may be (in words, a stand-in for tokens)."""

    persona: Persona
    most_words: int
    words: Mapping[str, int] = field(default_factory=dict)
    """In how many rows each common word of the replies occurs."""


@dataclass(frozen=True)
class Hit:
    """A row (index in the dataset) and what in it was found, for people."""

    row: int
    what: str


class Check(ABC):
    """One kind of trouble.

    Class attributes: `kind` (its id), `title` and `why` (for people), `fix` (what mending does, in one sentence; empty:
    it cannot be mended by itself). Rows are looked at one by one unless `hits` is overridden.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    why: ClassVar[str]
    fix: ClassVar[str] = ""

    def look(self, conversation: Conversation, context: Context) -> str:
        """What is wrong with this row, in a few words; empty: nothing."""
        return ""

    def hits(self, dataset: Dataset, context: Context) -> list[Hit]:
        """All rows with this trouble."""
        found = ((row, self.look(conversation, context)) for row, conversation in enumerate(dataset.conversations))
        return [Hit(row, what) for row, what in found if what]

    def mend(self, conversation: Conversation, context: Context) -> Sequence[Conversation]:
        """The row without the trouble: itself changed, several instead of it, or none."""
        return ()

    def mended(self, dataset: Dataset, context: Context) -> tuple[Conversation, ...]:
        """All rows, those with the trouble mended."""
        wrong = {hit.row for hit in self.hits(dataset, context)}
        result: list[Conversation] = []
        for row, conversation in enumerate(dataset.conversations):
            result += self.mend(conversation, context) if row in wrong else [conversation]
        return tuple(result)


def excerpt(text: str, start: int = 0, end: int | None = None) -> str:
    """What stands at a place of a text, with a little around it, on one line."""
    end = start if end is None else end
    a, b = max(start - 40, 0), min(max(end + 60, start + 100), len(text))
    return ("…" if a else "") + " ".join(text[a:b].split())[:EXCERPT] + ("…" if b < len(text) else "")


def replies(conversation: Conversation) -> list[str]:
    """What the character says."""
    return [message.content for message in conversation.messages if message.role == "assistant"]


def with_texts(conversation: Conversation, texts: Sequence[str]) -> Conversation | None:
    """The conversation with other texts in its turns; turns left empty go, and what hangs on them.

    None if no reply stays.
    """
    messages: list[Message] = []
    for message, text in zip(conversation.messages, texts, strict=True):
        if not text.strip():
            if message.role == "assistant":  # a question without its answer teaches nothing
                while messages and messages[-1].role == "user":
                    messages.pop()
            continue
        if messages and messages[-1].role == message.role:
            joined = f"{messages[-1].content}\n{text.strip()}"
            messages[-1] = Message(role=message.role, content=joined)
        else:
            messages.append(Message(role=message.role, content=text.strip()))
    while messages and messages[-1].role == "user":
        messages.pop()
    if not any(message.role == "assistant" for message in messages):
        return None
    return conversation.model_copy(update={"messages": tuple(messages)})


def changed(conversation: Conversation, texts: Sequence[str]) -> Sequence[Conversation]:
    """As `with_texts`, as what `mend` gives."""
    made = with_texts(conversation, texts)
    return () if made is None else (made,)
