"""The frozen models of this room: a saved chat, a vote, a piece of feedback."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, Literal

from pydantic import Field

from persona_lab.types import Frozen, Message, Stamp

MOST_PANES = 6
MOST_TEXT = 100_000
"""Characters of one message."""


def new_id() -> str:
    """A new id that nobody can guess: 16 hex digits."""
    return uuid.uuid4().hex[:16]


def id_of(*parts: str) -> str:
    """The same parts always give the same id: 16 hex digits of their sha256."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


class SavedTurn(Frozen):
    """One message of a pane. A reply has an id of its own, which votes and feedback refer to."""

    id: str = ""
    role: Literal["user", "assistant"]
    text: str = Field(max_length=MOST_TEXT)
    stamp: Stamp | None = None
    error: str = ""
    thumb: Literal["", "up", "down"] = ""
    correction: str = ""


class SavedPane(Frozen):
    """Who spoke in a pane, and what was said. `variant` is a variant's id, or `model:` and a base model's id."""

    variant: str
    name: str = ""
    turns: tuple[SavedTurn, ...] = ()
    traits: dict[str, float] = Field(default_factory=dict)
    """Where its trait sliders stand, by trait id."""


class SavedChat(Frozen):
    """A conversation with one to six panes, as it is on disk.

    `owner`: the browser or the account it belongs to. `revision` grows with each save, so that two windows cannot
    overwrite each other's words. `hidden`: a blind comparison that is not decided yet.
    """

    id: str
    persona: str
    owner: str
    title: str = ""
    created: str
    changed: str = ""
    revision: int = 0
    panes: tuple[SavedPane, ...] = Field((), max_length=MOST_PANES)
    count: int = 2
    settings: dict[str, Any] = Field(default_factory=dict)
    branch_of: str = ""
    hidden: bool = False
    voted: str = ""
    """Id of the vote that was cast in it."""


class Candidate(Frozen):
    """One reply that was judged: what made it, what it answered, what it said."""

    reply: str
    variant: str
    adapter: str = ""
    seed: int = 0
    messages: tuple[Message, ...]
    text: str


class Vote(Frozen):
    """One judgement of the replies that stood side by side.

    `winner`: place among `candidates`; None for `tie` and `bad` (all of them are).
    """

    id: str
    persona: str
    voter: str
    chat: str = ""
    candidates: tuple[Candidate, ...]
    outcome: Literal["win", "tie", "bad"]
    winner: int | None = None
    reason: str = Field("", max_length=2000)
    created: str


class Feedback(Frozen):
    """What somebody thought of one reply, and what it should have said.

    `status`: `new` waits for review, `added` is in `dataset`, `discarded` will not be.
    """

    id: str
    persona: str
    author: str
    chat: str = ""
    reply: str
    variant: str = ""
    adapter: str = ""
    messages: tuple[Message, ...]
    text: str
    thumb: Literal["", "up", "down"] = ""
    correction: str = Field("", max_length=MOST_TEXT)
    status: Literal["new", "added", "discarded"] = "new"
    dataset: str = ""
    created: str
    changed: str = ""

    @property
    def wanted(self) -> str:
        """The reply to learn: the correction, else the reply itself if it was liked, else nothing."""
        return self.correction.strip() or (self.text.strip() if self.thumb == "up" else "")

    @property
    def question(self) -> str:
        """What the reply answered: the last thing the user said; empty for a greeting."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")
