"""A guest's conversation: how it begins, and how a reply comes into it through the waiting line."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from persona_lab.access.line import Place
from persona_lab.access.records import GuestLink
from persona_lab.access.sessions import Guest
from persona_lab.engine import Engine
from persona_lab.personas import prompt
from persona_lab.types import ChatChunk, ChatRequest, Sampling
from persona_lab.ui.door import Door
from persona_lab.ui.sessions import Session

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""So long it takes, at most, until a pause or a revoked link ends a reply; so often a waiting guest hears the place."""
REPLY_SECONDS = 300.0
_NOTHING = ChatChunk(pane="0")
SORRY = "The character cannot answer right now. Try again in a moment."
ENDED = "The owner has paused this chat."
TOKENS_A_CHARACTER = 1 / 3
"""Where a reply was cut off before it could say how many tokens it had."""


def begin(engine: Engine, guest: Guest, link: GuestLink) -> Session:
    """A new conversation, with the greeting of the card.

    Raises:
        UnknownName: the character is gone.
    """
    session = Session(persona=link.persona, owner=guest.owner, greeting=prompt.greeting(engine.persona(link.persona)))
    redraw_speakers(session, link, 0)
    return session


def redraw_speakers(session: Session, link: GuestLink, speaker: int) -> None:
    """Begin anew: where the link is for voting, two of its variants in a hidden order, else the one chosen."""
    if link.vote:
        session.variants, session.count = random.SystemRandom().sample(link.variants, 2), 2
        session.hide()
    else:
        session.variants, session.count = [link.variants[speaker]], 1
        session.begin()


class Stream(StreamingResponse):
    """Lines of JSON; `close` is called however it ends, also when nobody listens from the start."""

    def __init__(self, lines: AsyncIterator[dict[str, Any]], close: Callable[[], None]) -> None:
        super().__init__(_encoded(lines), media_type="application/x-ndjson", headers={"x-accel-buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _encoded(lines: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


class Answering:
    """One message's replies, from the waiting line to the last word."""

    def __init__(self, door: Door, guest: Guest, link: GuestLink, session: Session, place: Place) -> None:
        self.door, self.guest, self.link, self.session, self.place = door, guest, link, session, place
        self._engine = door.engine
        self._chunks: asyncio.Queue[ChatChunk | None] = asyncio.Queue()
        self._asked = False
        self._over = False
        self._finished = False
        self._written: dict[int, int] = {}
        self._talks = session.talks
        guest.busy, guest.stopped = True, False

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Nobody listens any more: stop what is written, keep what was said, count it. May be called twice."""
        if self._over:
            return
        self._over = True
        if self._asked and not self._finished:
            # beside the loop: it writes into the worker's pipe. The place is given up when the worker is done
            asyncio.get_running_loop().run_in_executor(None, self._engine.stop_chat, self.guest.owner)
        else:
            self.place.leave()
        for talk in self._talks:
            talk.settle()
        self.door.guests.spend(self.guest, sum(self._written.values()))
        self.guest.busy = False

    def _ended(self) -> str:
        """Why this guest is not answered any longer; empty: go on."""
        if self.door.closing:
            return SORRY
        if self.door.paused:
            return ENDED
        if self.guest.ended:
            return "Your visit is over. Open the link again."
        if self.guest.stopped:
            return "Stopped."
        return "" if self.door.link_of(self.guest) is not None else "This link does not hold any more."

    # --- the reply -------------------------------------------------------------------------------

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """What the page is told."""
        if self.place.position:
            yield {"position": self.place.position}
        while not (turn := await self.place.wait(LOOK_SECONDS)) or self._ended():
            if told := self._ended():
                self._fail(told)
                yield {"error": told, "done": True}
                return
            if not turn:
                yield {"position": self.place.position}
        yield {"position": 0}
        async for line in self._replies():
            yield line
        yield {"done": True, "tokens_left": self._left()}

    def _left(self) -> int:
        return max(0, self.door.guests.left(self.guest, self.link) - sum(self._written.values()))

    async def _replies(self) -> AsyncIterator[dict[str, Any]]:
        requests = await anyio.to_thread.run_sync(self._requests)
        for number, talk in enumerate(self.session.shown):
            if talk.turns[-1].error:  # a variant is gone; its name is not a guest's to know
                log.warning("A guest got no answer: %s", talk.turns[-1].error)
                talk.fail(SORRY)
                yield {"pane": number, "text": "", "error": SORRY}
        if not requests:
            return
        filtering = self._engine.filtering
        self._asked = True
        threading.Thread(
            target=self._listen, args=(requests, asyncio.get_running_loop()), daemon=True, name="guest-reply"
        ).start()
        held: dict[int, str] = {}
        began = time.monotonic()
        looked = began
        while (chunk := await self._next()) is not None:
            moment = time.monotonic()
            if moment - looked > LOOK_SECONDS or chunk is _NOTHING:
                looked = moment
                told = self._ended() or (SORRY if moment - began > REPLY_SECONDS else "")
                if told:
                    self._fail(told)
                    yield {"error": told}
                    return
            if chunk is _NOTHING:
                continue
            pane = int(chunk.pane)
            self._count(pane, chunk)
            if filtering:
                async for line in self._whole(pane, chunk, held):
                    yield line
            else:
                yield self._add(pane, chunk)

    def _requests(self) -> list[ChatRequest]:
        limits = self.link.limits
        shown = max(1, len(self.session.shown))
        most = max(1, min(limits.reply_tokens, self.door.guests.left(self.guest, self.link) // shown))
        seed = random.SystemRandom().randrange(2**31)
        return self.session.requests(self._engine, Sampling(seed=seed, max_new_tokens=most))

    def _listen(self, requests: list[ChatRequest], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: what the chat worker says, into the loop. The border to it, so the broad catch."""

        def tell(call: Callable[..., object], *arguments: object) -> None:
            with suppress(RuntimeError):  # the page was closed meanwhile
                loop.call_soon_threadsafe(call, *arguments)

        try:
            for chunk in self._engine.chat(requests, owner=self.guest.owner):
                if self._over:  # leaving closes the engine's stream, and that stops the worker
                    break
                tell(self._chunks.put_nowait, chunk)
        except Exception as error:
            log.error("A reply to a guest failed", exc_info=error)
            tell(self._chunks.put_nowait, ChatChunk(pane=requests[0].pane, error=SORRY))
        finally:
            tell(self.place.leave)
            tell(self._chunks.put_nowait, None)

    async def _next(self) -> ChatChunk | None:
        try:
            chunk = await asyncio.wait_for(self._chunks.get(), LOOK_SECONDS)
        except TimeoutError:
            return _NOTHING
        self._finished = chunk is None
        return chunk

    def _count(self, pane: int, chunk: ChatChunk) -> None:
        if chunk.stamp is not None:
            self._written[pane] = chunk.stamp.tokens
        else:
            self._written[pane] = self._written.get(pane, 0) + round(len(chunk.text) * TOKENS_A_CHARACTER + 0.5)

    def _add(self, pane: int, chunk: ChatChunk) -> dict[str, Any]:
        """Put it into the conversation; what the page is told of it. Errors are the owner's to read, not a guest's."""
        if chunk.error:
            log.warning("A guest got no answer: %s", chunk.error)
            chunk = chunk.model_copy(update={"error": SORRY})
        self._talks[pane].add(chunk)
        line: dict[str, Any] = {"pane": pane, "text": chunk.text}
        return line | {"error": chunk.error} if chunk.error else line

    async def _whole(self, pane: int, chunk: ChatChunk, held: dict[int, str]) -> AsyncIterator[dict[str, Any]]:
        """With a content filter nothing is shown before the filter has read all of it."""
        held[pane] = held.get(pane, "") + chunk.text
        if not (chunk.done or chunk.error):
            return
        judge = partial(self._engine.refusal, held[pane], "assistant", self.link.persona)
        reason = await anyio.to_thread.run_sync(judge) if held[pane] else ""
        shown = chunk.model_copy(update={"text": "" if reason else held[pane]})
        line = self._add(pane, shown)
        if reason:
            turns = self._talks[pane].turns
            turns[-1] = replace(turns[-1], error=reason)
            line["error"] = reason
        yield line

    def _fail(self, told: str) -> None:
        for talk in self._talks:
            if talk.waiting:
                talk.fail(told)
