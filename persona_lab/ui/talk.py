"""Conversations of the Chat tab, pane by pane: what was said, what to ask next, how it looks. No gradio, no engine."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from persona_lab.types import ChatChunk, Message, Stamp

PANES = 4


@dataclass(frozen=True)
class Turn:
    """One message of a pane; a reply carries the stamp of the weights that made it, or an error."""

    role: str
    text: str
    stamp: Stamp | None = None
    error: str = ""
    waiting: bool = False


@dataclass
class Talk:
    """One pane's conversation."""

    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str) -> None:
        """Add the user's message and an empty reply."""
        self.turns += [Turn("user", text), Turn("assistant", "", waiting=True)]

    def ask_again(self) -> bool:
        """Empty the last reply; False if there is none to a question."""
        if len(self.turns) < 2 or self.turns[-1].role != "assistant" or self.turns[-2].role != "user":
            return False
        self.turns[-1] = Turn("assistant", "", waiting=True)
        return True

    def messages(self) -> tuple[Message, ...]:
        """What the model is to continue: all before the empty reply, without exchanges that got no reply."""
        kept: list[Message] = []
        for turn in self.turns:
            if turn.role == "assistant" and not turn.waiting and not turn.text:
                kept = kept[:-1] if kept and kept[-1].role == "user" else kept
            elif turn.text:
                kept.append(Message(role="user" if turn.role == "user" else "assistant", content=turn.text))
        return tuple(kept)

    def add(self, chunk: ChatChunk) -> None:
        """Grow the last reply."""
        last = self.turns[-1]
        self.turns[-1] = replace(
            last,
            text=last.text + chunk.text,
            stamp=chunk.stamp or last.stamp,
            error=chunk.error or last.error,
            waiting=last.waiting and not chunk.done,
        )

    def fail(self, error: str) -> None:
        """The last reply could not be written."""
        self.turns[-1] = replace(self.turns[-1], error=error, waiting=False)

    def settle(self) -> None:
        """The stream is over: nothing waits any more."""
        if self.turns and self.turns[-1].waiting:
            last = self.turns[-1]
            self.turns[-1] = replace(last, waiting=False, error=last.error or ("" if last.text else "Stopped."))


def drawn(talk: Talk) -> list[dict[str, Any]]:
    """For gradio's Chatbot: markdown (asterisks are for actions), HTML of the talkers escaped."""
    return [{"role": turn.role, "content": _content(turn)} for turn in talk.turns]


def _content(turn: Turn) -> str:
    text = html.escape(turn.text, quote=False)
    if turn.waiting and not turn.text:
        return "<em class='pl-waiting'>loading the model and thinking …</em>"
    parts = [text] if text else []
    if turn.error:
        parts.append(f"<div class='pl-stamp pl-stamp-bad'>{html.escape(turn.error)}</div>")
    if turn.stamp:
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
