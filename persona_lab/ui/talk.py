"""Conversations of the Chat tab, pane by pane: what was said, what to ask next, how it looks. No gradio, no engine."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from persona_lab.chats.records import MOST_PANES, SavedTurn, new_id
from persona_lab.types import ChatChunk, Message, Stamp

PANES = MOST_PANES
NOT_FINISHED = "This reply was not finished."
_ENTITY = re.compile(r"&(?=#?\w{1,32};)")
_THUMBS = {"up": "Like", "down": "Dislike", "": None}


@dataclass(frozen=True)
class Turn:
    """One message of a pane; a reply has an id and carries the stamp of the weights that made it, or an error."""

    role: Literal["user", "assistant"]
    text: str
    stamp: Stamp | None = None
    error: str = ""
    waiting: bool = False
    id: str = ""
    thumb: Literal["", "up", "down"] = ""
    correction: str = ""

    def saved(self) -> SavedTurn:
        """As it is kept on disk."""
        error = self.error or (NOT_FINISHED if self.waiting else "")
        return SavedTurn(
            id=self.id,
            role=self.role,
            text=self.text,
            stamp=self.stamp,
            error=error,
            thumb=self.thumb,
            correction=self.correction,
        )

    @classmethod
    def of(cls, saved: SavedTurn) -> Turn:
        """As it was saved."""
        return cls(
            saved.role,
            saved.text,
            saved.stamp,
            saved.error,
            id=saved.id,
            thumb=saved.thumb,
            correction=saved.correction,
        )


@dataclass
class Talk:
    """One pane's conversation."""

    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str) -> None:
        """Add the user's message and an empty reply."""
        self.turns += [Turn("user", text), Turn("assistant", "", waiting=True, id=new_id())]

    def ask_again(self) -> bool:
        """Empty the last reply; False if there is none to a question. A new reply has a new id."""
        if len(self.turns) < 2 or self.turns[-1].role != "assistant" or self.turns[-2].role != "user":
            return False
        self.turns[-1] = Turn("assistant", "", waiting=True, id=new_id())
        return True

    def go_on(self) -> bool:
        """Let the last reply be continued; False if there is none."""
        if not self.answered():
            return False
        self.turns[-1] = replace(self.turns[-1], waiting=True, error="")
        return True

    def answered(self) -> bool:
        """Whether the last turn is a finished reply to a question."""
        last = self.turns[-1] if len(self.turns) > 1 else None
        return last is not None and last.role == "assistant" and bool(last.text) and not last.waiting

    @property
    def waiting(self) -> bool:
        """Whether a reply is to be written."""
        return bool(self.turns) and self.turns[-1].waiting

    def questions(self) -> list[int]:
        """Places of what the user said."""
        return [place for place, turn in enumerate(self.turns) if turn.role == "user"]

    def cut(self, question: int) -> None:
        """Take away the user's message number `question` (from 0) and all that followed; shorter ones stay whole."""
        places = self.questions()
        if question < len(places):
            del self.turns[places[question] :]

    def messages(self, until: int | None = None) -> tuple[Message, ...]:
        """What the model is to continue: all before the empty reply, without exchanges that got no reply.

        Args:
            until: only the turns before this place.
        """
        kept: list[Message] = []
        for turn in self.turns[:until]:
            if turn.role == "assistant" and not turn.waiting and not turn.text:
                kept = kept[:-1] if kept and kept[-1].role == "user" else kept
            elif turn.text:
                kept.append(Message(role=turn.role, content=turn.text))
        return tuple(kept)

    def add(self, chunk: ChatChunk) -> None:
        """Grow the last reply."""
        last = self.turns[-1]
        self.turns[-1] = replace(
            last,
            text=last.text + chunk.text,
            stamp=chunk.stamp or last.stamp,
            error=chunk.error or last.error,
            waiting=last.waiting and not chunk.done and not chunk.error,
        )

    def fail(self, error: str) -> None:
        """The last reply could not be written."""
        self.turns[-1] = replace(self.turns[-1], error=error, waiting=False)

    def settle(self) -> None:
        """The stream is over: nothing waits any more."""
        if self.waiting:
            last = self.turns[-1]
            self.turns[-1] = replace(last, waiting=False, error=last.error or ("" if last.text else "Stopped."))

    def place_of(self, reply: str) -> int | None:
        """Where the reply of this id stands."""
        return next((place for place, turn in enumerate(self.turns) if turn.id == reply and reply), None)


def drawn(talk: Talk, hidden: bool = False) -> list[dict[str, Any]]:
    """For gradio's Chatbot: markdown (asterisks are for actions), HTML of the talkers escaped.

    Args:
        hidden: leave out stamps and errors, which name the weights, and half replies, whose speed would tell them.
    """
    return [{"role": turn.role, "content": _content(turn, hidden)} for turn in talk.turns]


def thumbs(talk: Talk) -> list[str | None]:
    """For gradio's Chatbot: the thumb of each reply."""
    return [_THUMBS[turn.thumb] for turn in talk.turns if turn.role == "assistant"]


def escaped(text: str) -> str:
    """Text that cannot become markup, changed as little as possible: it is shown again when a message is edited."""
    return _ENTITY.sub("&amp;", text).replace("<", "&lt;")


def typed(value: Any) -> str:
    """What the user wrote in the Chatbot's own editor, as plain text."""
    if isinstance(value, list):
        value = "".join(part.get("text", "") if isinstance(part, dict) else str(part) for part in value)
    return html.unescape(str(value or "")).strip()


def _content(turn: Turn, hidden: bool) -> str:
    if turn.role == "user":
        return escaped(turn.text)
    text = html.escape(turn.text, quote=False)
    if turn.waiting and (hidden or not turn.text):
        return "<em class='pl-waiting'>loading the model and thinking …</em>"
    parts = [text] if text else []
    if turn.correction:
        parts.append(f"<div class='pl-stamp pl-better'>Should have said: {html.escape(turn.correction)}</div>")
    if turn.error:
        error = "It could not answer; show the names to see why." if hidden else turn.error
        parts.append(f"<div class='pl-stamp pl-stamp-bad'>{html.escape(error)}</div>")
    if turn.stamp and not hidden:
        parts.append(f"<div class='pl-stamp'>{html.escape(stamp_line(turn.stamp))}</div>")
    return "\n\n".join(parts)


def stamp_line(stamp: Stamp) -> str:
    """Which weights, which seed, how fast: `lora 3f2a... · seed 0 · 31 tokens/s · first after 0.4 s`."""
    speed = stamp.tokens / stamp.seconds if stamp.seconds > 0 else 0.0
    return (
        f"{stamp.adapter} · seed {stamp.seed} · {stamp.tokens} tokens at {speed:.0f}/s · "
        f"first after {stamp.first_token_seconds:.1f} s"
    )


def default_panes(variants: Sequence[str], base: str) -> list[str]:
    """What each pane shows at first: newest variant, base, then older variants, then the base again."""
    order = [*variants[:1], base, *variants[1:]]
    return [order[i] if i < len(order) else base for i in range(PANES)]
