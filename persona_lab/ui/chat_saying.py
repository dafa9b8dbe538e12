"""Saying something in the Chat tab, and writing the replies: streams, stops, saves as it goes. See chat_tab.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_lab.chats.records import new_id
from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.types import Sampling
from persona_lab.ui.notices import explain, guarded, warn
from persona_lab.ui.page import QUIET
from persona_lab.ui.sessions import Session
from persona_lab.ui.talk import drawn, thumbs, typed

if TYPE_CHECKING:
    from persona_lab.ui.chat_tab import Chat

REDRAW_SECONDS = 0.12
SAVE_SECONDS = 3.0
STREAM: dict[str, Any] = QUIET | {"concurrency_limit": 8, "concurrency_id": "chat"}


def owner_of(browser: dict[str, Any] | None, request: gr.Request) -> str:
    """Whose conversations, votes and feedback these are: the account's, else the browser's, else this window's."""
    if request.username:
        return f"user:{request.username}"
    return f"browser:{browser['id']}" if browser else f"window:{request.session_hash}"


class Saying:
    """What the box, its buttons and the panes' own buttons do."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def wire(self) -> None:
        """Connect them."""
        chat = self.chat
        asked = [*chat.sampling.values, chat.session, chat.page.browser]
        sent = [chat.box, chat.page.browser, *chat.streamed]
        gr.on([chat.box.submit, chat.send.click], self.say, [chat.box, *asked], sent, **STREAM).then(
            *chat.after, **QUIET
        )
        numbered = [chat.sampling.seed, *chat.streamed]
        chat.again.click(self.say_again, asked, numbered, **STREAM).then(*chat.after, **QUIET)
        chat.more.click(self.say_more, asked, chat.streamed, **STREAM).then(*chat.after, **QUIET)
        chat.stop.click(self._stop, None, None, queue=False, api_visibility="private")
        chat.rewrite.click(
            guarded(1 + len(chat.streamed))(self.take_back), chat.session, [chat.box, *chat.streamed], **QUIET
        )
        for number, bot in enumerate(chat.bots):
            bot.retry(_bound(self.say_again, number), asked, numbered, **STREAM).then(*chat.after, **QUIET)
            bot.edit(_editing(self.say_edited, number), asked, sent[1:], **STREAM).then(*chat.after, **QUIET)

    def say(self, request: gr.Request, text: str, *asked: Any) -> Iterator[list[Any]]:
        """Send one message to every visible pane and stream their replies."""

        def ask(session: Session) -> None:
            for talk in session.shown:
                talk.ask(text.strip())

        if not (text or "").strip():
            yield [gr.skip()] * (len(self.chat.streamed) + 2)
            return
        first = True
        for update in self._stream(ask, asked, request):
            # a refused message stays in the box
            yield ["" if first and update else gr.skip(), *(update or self._untouched)]
            first = False

    def say_again(self, request: gr.Request, *asked: Any, pane: int | None = None) -> Iterator[list[Any]]:
        """Write the last replies anew (of one pane, or of all), with the next seed."""
        values = list(asked)
        values[0] = self.chat.sampling.next_seed(values[0])

        def ask(session: Session) -> None:
            talks = session.shown if pane is None else [session.talks[pane]]
            redone = [talk.ask_again() for talk in talks]
            if not any(redone):
                raise BadInput("There is no reply to write anew.", "Say something first.")

        seed: Any = values[0]
        for update in self._stream(ask, values, request):
            yield [seed, *update[1:]] if update else self._untouched
            seed = gr.skip()  # told once: somebody may type the next one while the replies are written

    def say_more(self, request: gr.Request, *asked: Any) -> Iterator[list[Any]]:
        """Let the last replies go on where they end."""

        def ask(session: Session) -> None:
            going_on = [talk.go_on() for talk in session.shown]
            if not any(going_on):
                raise BadInput("There is no reply to continue.", "Say something first.")

        for update in self._stream(ask, asked, request):
            yield (update or self._untouched)[1:]

    def say_edited(self, request: gr.Request, pane: int, event: gr.EditData, *asked: Any) -> Iterator[list[Any]]:
        """Ask again with an edited message; where it was not the last one, as a branch, so that nothing is lost."""
        text = typed(event.value)
        place = event.index[0] if isinstance(event.index, (list, tuple)) else event.index

        def ask(session: Session) -> None:
            questions = session.talks[pane].questions()
            if place not in questions or not text:
                raise BadInput("This message cannot be edited.", "Edit one of your own, and leave some text in it.")
            if place != questions[-1]:
                session.branch()
            for talk in session.shown:
                if len(talk.questions()) > questions.index(place):
                    talk.cut(questions.index(place))
                talk.ask(text)

        for update in self._stream(ask, asked, request):
            yield update or self._untouched

    def take_back(self, session: Session) -> list[Any]:
        """Put the last message back into the box; the replies to it go when it is sent again."""
        session.refuse_while_busy()
        talk = next((talk for talk in session.shown if talk.questions()), None)
        if talk is None:
            raise BadInput("You have not said anything yet.", "Write a message first.")
        last = len(talk.questions()) - 1
        text = talk.turns[talk.questions()[last]].text
        for each in session.shown:
            each.cut(last)
        return [text, *self.drawn(session, True), session]

    def _stop(self, request: gr.Request) -> None:
        self.chat.page.engine.stop_chat(request.session_hash)

    def _stream(self, ask: Callable[[Session], None], asked: Sequence[Any], request: gr.Request) -> Iterator[list[Any]]:
        """Updates for (browser, *streamed), or one empty list where it is refused.

        What goes wrong is written into the panes that wait (the page's border, so the broad catches).
        """
        *values, session, browser = asked
        try:
            session.owner = owner_of(browser, request)
            session.refuse_while_busy()
            if not session.persona:
                raise BadInput("Nobody is chosen yet.", "Pick a character first.")
            sampling, settings = self.chat.sampling.read(values)
            ask(session)
        except Exception as error:  # noqa: BLE001
            warn(error)
            yield []
            return
        session.busy = True
        session.asked += 1
        try:
            yield from self._replies(session, sampling, settings, browser, request)
        finally:  # also when the window is closed in the middle
            for talk in session.talks:
                talk.settle()
            session.busy = False
            self._save(session, settings)
        yield [_remembered(browser, session), *self.drawn(session, True), session]

    def _replies(
        self, session: Session, sampling: Sampling, settings: Any, browser: Any, request: gr.Request
    ) -> Iterator[list[Any]]:
        self._save(session, settings)
        yield [_remembered(browser, session), *self.drawn(session), session]
        drawn_at = saved_at = time.monotonic()
        talks = session.talks
        grown: set[int] = set()
        try:
            requests = session.requests(self.chat.page.engine, sampling)
            for chunk in self.chat.page.engine.chat(requests, owner=request.session_hash or ""):
                if session.talks is not talks:  # another character was chosen; what was said is saved
                    break
                talks[int(chunk.pane)].add(chunk)
                grown.add(int(chunk.pane))
                now = time.monotonic()
                if now - saved_at > SAVE_SECONDS:
                    saved_at = now
                    self._save(session, settings)
                # in a blind comparison all replies appear at once: which is written first would tell the kind
                if not session.hidden and (chunk.done or chunk.error or now - drawn_at > REDRAW_SECONDS):
                    drawn_at = now
                    yield [gr.skip(), *self.drawn(session, only=grown), session]
                    grown.clear()
        except Exception as error:  # noqa: BLE001
            warn(error)
            for talk in session.talks:
                if talk.waiting:
                    talk.fail(explain(error))

    @property
    def _untouched(self) -> list[Any]:
        return [gr.skip()] * (len(self.chat.streamed) + 1)

    def drawn(self, session: Session, finished: bool = False, only: Collection[int] | None = None) -> list[Any]:
        """Updates for `bots`: of all that are visible, or of some."""
        return [
            gr.update(value=drawn(talk, session.hidden), **({"feedback_value": thumbs(talk)} if finished else {}))
            if number < session.count and (only is None or number in only)
            else gr.skip()
            for number, talk in enumerate(session.talks)
        ]

    def _save(self, session: Session, settings: Any) -> None:
        try:
            session.save(self.chat.page.engine, settings)
        except (PersonaLabError, OSError) as error:
            warn(error)


def _remembered(browser: Any, session: Session) -> Any:
    """The browser's memory with this conversation as the last one with its character."""
    known = browser or {"id": new_id(), "chats": {}}
    if known.get("chats", {}).get(session.persona) == session.chat or not session.chat:
        return gr.skip()
    return {**known, "chats": {**known.get("chats", {}), session.persona: session.chat}}


def _bound(handler: Callable[..., Iterator[list[Any]]], number: int) -> Callable[..., Iterator[list[Any]]]:
    def bound(request: gr.Request, *asked: Any) -> Iterator[list[Any]]:
        yield from handler(request, *asked, pane=number)

    return bound


def _editing(handler: Callable[..., Iterator[list[Any]]], number: int) -> Callable[..., Iterator[list[Any]]]:
    def bound(request: gr.Request, event: gr.EditData, *asked: Any) -> Iterator[list[Any]]:
        yield from handler(request, number, event, *asked)

    return bound
