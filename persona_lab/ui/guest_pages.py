"""What a guest may do: open a link, talk to the variants that it names, vote on their replies. Plain pages, no gradio.

A guest's conversation is kept here, in memory, and what a guest sends is a text or a small number: no id, path or
address comes from a guest, and no past reply can be forged. Each request is checked anew: a link that was revoked, a
session that was ended and a pause work at the next request, and within a second on a reply that is being written.
"""

from __future__ import annotations

import html
import logging
import unicodedata
from collections.abc import Awaitable, Callable
from pathlib import Path
from string import Template
from typing import Any, Literal

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from persona_lab.access.bodies import small_body
from persona_lab.access.line import LineFull
from persona_lab.access.records import GuestLink
from persona_lab.access.sessions import GUEST_LONGEST, Guest
from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.ui.door import Door
from persona_lab.ui.guest_talk import SORRY, Answering, Stream, begin, redraw_speakers
from persona_lab.ui.html import thumbnail
from persona_lab.ui.login_page import over_https
from persona_lab.ui.sessions import Session

log = logging.getLogger(__name__)

MOST_BODY = 40_000
FOLDER = Path(__file__).with_name("guest")
_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
PAUSED = "The owner has paused this chat. Try again later."
GONE = "This link does not hold any more. Ask the owner for a new one."
# turn what is written around, so that a text reads as another than it is
_TURNING = {0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069}


class No(Exception):
    """What a guest is told instead of an answer."""

    def __init__(self, status: int, told: str, **more: Any) -> None:
        super().__init__(told)
        self.status, self.told, self.more = status, told, more


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Said(_Body):
    text: str = Field(min_length=1, max_length=10_000)


class _New(_Body):
    speaker: int = Field(0, ge=0, le=11)


class _Voted(_Body):
    outcome: Literal["win", "tie", "bad"]
    winner: int | None = Field(None, ge=0, le=1)


def clean(text: str) -> str:
    """A message without what no keyboard types: control characters, halves of characters, turned writing.

    Control tokens of a model (`<|im_start|>`) are left: the renderer encodes them as plain text.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = (c for c in lines if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and ord(c) not in _TURNING))
    return "".join(kept).strip()


def guest_pages(door: Door) -> Starlette:
    """The pages under `/g/` (a link) and `/guest/` (a session)."""
    pages = _Guests(door)
    checked = pages.checked
    return Starlette(
        routes=[
            Route("/g/{token}", pages.welcome, methods=["GET"]),
            Route("/g/{token}", pages.enter, methods=["POST"]),
            Route("/guest/", pages.page, methods=["GET"]),
            Route("/guest/page.{kind}", pages.static, methods=["GET"]),
            Route("/guest/state", checked(pages.state), methods=["GET"]),
            Route("/guest/say", checked(pages.say), methods=["POST"]),
            Route("/guest/stop", checked(pages.stop), methods=["POST"]),
            Route("/guest/new", checked(pages.new), methods=["POST"]),
            Route("/guest/vote", checked(pages.vote), methods=["POST"]),
        ]
    )


Handler = Callable[[Request, Guest, GuestLink], Awaitable[Response]]


class _Guests:
    def __init__(self, door: Door) -> None:
        self.door = door
        self.engine = door.engine
        self._page = (FOLDER / "page.html").read_text(encoding="utf-8")
        self._door_page = Template((FOLDER / "welcome.html").read_text(encoding="utf-8"))
        self._static = {name: (FOLDER / name).read_bytes() for name in _STATIC}

    # --- coming in -------------------------------------------------------------------------------

    def _told(self, told: str, status: int) -> HTMLResponse:
        text = f'<p class="told" role="alert">{html.escape(told)}</p>'
        return HTMLResponse(self._door_page.substitute(title="Persona Lab", body=text), status_code=status)

    async def welcome(self, request: Request) -> Response:
        """What the link is for, and a button. Opening it changes nothing: programs that preview links are no guests."""
        link = self.door.open_link(request.path_params["token"])
        if link is None or link.status != "open":
            return self._told(GONE, 404 if link is None else 410)
        name = await anyio.to_thread.run_sync(self._name, link)
        words = ["Everything runs on the owner's machine. What you write is read by a language model there."]
        if link.vote:
            words.append("Replies that you vote on are kept, with what you wrote before them, and who made which stays "
                         "hidden.")  # fmt: skip
        words.append("It makes things up: do not rely on it, and tell it nothing private.")
        body = "".join(f"<p>{html.escape(text)}</p>" for text in words)
        button = '<form method="post"><button type="submit">Start talking</button></form>'
        return HTMLResponse(self._door_page.substitute(title=f"Talk to {html.escape(name)}", body=body + button))

    def _name(self, link: GuestLink) -> str:
        try:
            return self.engine.persona(link.persona).name
        except PersonaLabError:
            return "a character"

    async def enter(self, request: Request) -> Response:
        """The button was pressed: a session, in a cookie."""
        link = self.door.open_link(request.path_params["token"])
        if link is None or link.status != "open":
            return self._told(GONE, 404 if link is None else 410)
        here = self.door.guests.get(request.cookies.get(self.door.guest_cookie, ""))
        reply = RedirectResponse("/guest/", status_code=303)
        if here is not None and here.link == link.id:
            return reply
        try:
            secret, guest = self.door.guests.begin(link)
        except BadInput as error:
            return self._told(str(error), 503)
        try:
            guest.talk = await anyio.to_thread.run_sync(begin, self.engine, guest, link)
        except PersonaLabError as error:
            self.door.guests.end(guest.id)
            log.warning("The guest link %s cannot be used: %s", link.id, error)
            return self._told(GONE, 410)
        reply.set_cookie(
            self.door.guest_cookie, secret, max_age=int(GUEST_LONGEST), path="/", httponly=True, samesite="lax",
            secure=over_https(request, self.door),
        )  # fmt: skip
        return reply

    async def page(self, request: Request) -> Response:
        """The chat; without a session, how to get one."""
        guest = self.door.guests.get(request.cookies.get(self.door.guest_cookie, ""))
        if guest is None or self.door.link_of(guest) is None:
            return self._told("This chat needs a link from the owner; the one you had may be over.", 403)
        return HTMLResponse(self._page)

    async def static(self, request: Request) -> Response:
        """The style sheet and the script, by their two names."""
        name = f"page.{request.path_params['kind']}"
        if name not in _STATIC:
            return JSONResponse({"error": "There is nothing here."}, status_code=404)
        return Response(self._static[name], media_type=_STATIC[name])

    # --- talking ---------------------------------------------------------------------------------

    def checked(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Find out which guest asks, and whether the link still holds; what is refused becomes a sentence."""

        async def answer(request: Request) -> Response:
            try:
                guest = self.door.guests.get(request.cookies.get(self.door.guest_cookie, ""))
                if guest is None:
                    raise No(401, "Your visit is over. Open the link again.")
                link = self.door.link_of(guest)
                if link is None:
                    raise No(403, GONE)
                if wait := guest.requests.take():
                    raise No(429, "That was fast. Wait a moment.", seconds=max(1, round(wait)))
                return await handler(request, guest, link)
            except No as no:
                headers = {"retry-after": str(no.more["seconds"])} if "seconds" in no.more else {}
                return JSONResponse({"error": no.told, **no.more}, status_code=no.status, headers=headers)
            except PersonaLabError:  # it may name files and ids of the owner's
                log.exception("A guest's request could not be met")
                return JSONResponse({"error": SORRY}, status_code=503)
            except Exception:
                log.exception("A guest's request failed")
                return JSONResponse({"error": "Something went wrong here. The owner's log says what."}, status_code=500)

        return answer

    async def _body(self, request: Request, model: type[Any]) -> Any:
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            raise No(415, "This is not what the page sends.")
        body = await small_body(request, MOST_BODY)
        if body is None:
            raise No(413, "That is too long.")
        try:
            return model.model_validate_json(body or b"{}")
        except ValidationError:
            raise No(422, "This is not what the page sends.") from None

    async def state(self, request: Request, guest: Guest, link: GuestLink) -> Response:
        """Everything that the page draws."""
        session: Session = guest.talk
        name, picture, names = await anyio.to_thread.run_sync(self._known, link)
        return JSONResponse(
            {
                "name": name,
                "picture": picture,
                "blind": session.hidden,
                "speakers": [] if link.vote else names,
                "speaker": 0 if link.vote else link.variants.index(session.variants[0]),
                "panes": [
                    [{"who": turn.role, "text": turn.text, "error": turn.error} for turn in talk.turns]
                    for talk in session.shown
                ],
                "busy": guest.busy,
                "paused": PAUSED if self.door.paused else "",
                "longest": link.limits.message_characters,
                "tokens_left": self.door.guests.left(guest, link),
            }
        )

    def _known(self, link: GuestLink) -> tuple[str, str, list[str]]:
        """What a guest may know of a link's character: name, picture, and who speaks."""
        persona = self.engine.persona(link.persona)
        return persona.name, thumbnail(persona.avatar), self._speakers(link)

    def _speakers(self, link: GuestLink) -> list[str]:
        """What a guest may know of the variants: their names, and how each was made."""
        names = []
        for number, variant_id in enumerate(link.variants):
            try:
                found = self.engine.variant(variant_id)
                names.append("Untrained" if found.kind == "base" else f"{found.name} ({found.strategy})")
            except PersonaLabError:
                names.append(f"Number {number + 1} (gone)")
        return names

    async def say(self, request: Request, guest: Guest, link: GuestLink) -> Response:
        """A message; the reply streams, a JSON document a line: `position`, `pane` and `text`, `error`, `done`."""
        said: _Said = await self._body(request, _Said)
        session: Session = guest.talk
        text = clean(said.text)
        self._refuse(guest, link, session, text)
        try:
            await anyio.to_thread.run_sync(self._filtered, text, link.persona)
            # what was true before the filter may not be any more
            if guest.busy:
                raise No(409, "A reply is still being written.")
            place = self.door.line.join()
        except LineFull as full:
            guest.refused += 1
            told = f"Busy: {full.position - 1} are waiting already, and nobody else may. Try again in a moment."
            raise No(429, told, position=full.position, seconds=5) from None
        guest.messages += 1
        for talk in session.shown:
            talk.ask(text)
        answering = Answering(self.door, guest, link, session, place)
        return Stream(answering.lines(), answering.close)

    def _refuse(self, guest: Guest, link: GuestLink, session: Session, text: str) -> None:
        """Raise what stands against this message, the cheapest to find out first."""
        if self.door.paused:
            raise No(503, PAUSED, paused=True)
        if guest.busy:
            raise No(409, "A reply is still being written.")
        if not text:
            raise No(422, "There is nothing in it.")
        if len(text) > link.limits.message_characters:
            raise No(413, f"That has {len(text)} characters; at most {link.limits.message_characters} are allowed.")
        if len(session.talks[0].questions()) >= link.limits.turns:
            raise No(429, f"This conversation has its {link.limits.turns} messages. Begin a new one.", full=True)
        if self.door.guests.left(guest, link) <= 0:
            raise No(429, "The words that the owner allows for this link are used up.", spent=True)
        wait = guest.bucket.take()
        if wait:
            guest.refused += 1
            seconds = max(1, round(wait))
            raise No(429, f"That was fast. Go on in {seconds} s.", seconds=seconds)

    def _filtered(self, text: str, persona: str) -> None:
        reason = self.engine.refusal(text, "user", persona)
        if reason:
            raise No(422, reason, filtered=True)

    async def stop(self, request: Request, guest: Guest, link: GuestLink) -> Response:
        """End the reply that is being written; what was said stays."""
        if guest.busy:
            guest.stopped = True  # it may wait in the line still
            await anyio.to_thread.run_sync(self.engine.stop_chat, guest.owner)
        return JSONResponse({"stopped": True})

    async def new(self, request: Request, guest: Guest, link: GuestLink) -> Response:
        """A new conversation, with the speaker of this number in the link's list."""
        wish: _New = await self._body(request, _New)
        session: Session = guest.talk
        if guest.busy:
            raise No(409, "A reply is still being written.")
        if wish.speaker >= len(link.variants):
            raise No(422, "There is no such speaker.")
        redraw_speakers(session, link, wish.speaker)
        return await self.state(request, guest, link)

    async def vote(self, request: Request, guest: Guest, link: GuestLink) -> Response:
        """Which of the two last replies is better."""
        wish: _Voted = await self._body(request, _Voted)
        session: Session = guest.talk
        if not link.vote:
            raise No(403, "This link is not for voting.")
        if self.door.paused:
            raise No(503, PAUSED, paused=True)
        if guest.busy:
            raise No(409, "A reply is still being written.")
        try:
            vote = session.vote(guest.owner, wish.outcome, wish.winner if wish.outcome == "win" else None, "")
            await anyio.to_thread.run_sync(self.engine.votes.cast, vote)
        except BadInput:
            raise No(409, "There are no two replies to choose between, or you have voted on them.") from None
        guest.votes += 1
        return JSONResponse({"voted": True})
