"""In front of gradio: every request's role is found out here, and what the role may not reach is not reached.

The lab, with all of gradio's endpoints, answers its owner only. Guests have pages of their own (`guest_pages`), nobody
has the login page. What is not allowed by name is refused, so an endpoint that a new gradio adds is closed too.

The order for a request: another site's is refused, and on a loopback address one that calls us by another name (a site
could rebind its own name to 127.0.0.1); `/g/` and `/guest/` go to the guests' pages; where there is a login,
`/login` and `/logout` go to the login page, and the rest needs the owner's cookie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona_lab.ui.door import Door
from persona_lab.ui.guest_pages import guest_pages
from persona_lab.ui.login_page import login_pages
from persona_lab.ui.server import LOOPBACK

USER = "persona_lab.user"
"""Key of the scope under which later code finds who asks."""
MOST_FILES = 500
MOST_UPLOAD_BYTES = 600 * 2**20
STARTING = "/gradio_api/startup-events"
# forwarded names that gradio would build addresses from
_FORWARDED = (b"x-forwarded-host", b"x-gradio-server", b"x-forwarded-prefix")

_LOGIN = ("/login", "/login/", "/logout", "/logout/")
MOST_BODY = 2**16
"""Bytes that the pages of guests and the login page are sent in one request."""

_EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",
}
# gradio writes scripts and styles into its page, and compiles templates: 'unsafe-inline' and 'unsafe-eval' must stay;
# what is gained is that nothing is loaded from, or sent to, anywhere else
_LAB = _EVERYWHERE | {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "private",
}
_PAGES = _EVERYWHERE | {
    "x-frame-options": "DENY",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "x-robots-tag": "noindex, nofollow",
    "cache-control": "no-store",
}


class Gate:
    """The middleware. Hides nothing that is not also refused."""

    def __init__(self, app: ASGIApp, door: Door, loopback: bool = False) -> None:
        self._app, self._door, self._loopback = app, door, loopback
        self._guests = guest_pages(door)
        self._login = login_pages(door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self._door.login:
            await send({"type": "websocket.close", "code": 1008})  # the page has none
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        door, path = self._door, scope["path"]
        headers = Headers(scope=scope)
        if not from_here(headers, door.origins) or (self._loopback and not door.login and not called_loopback(headers)):
            told = "This request comes from another site and was refused."
            if door.login and not door.origins:
                told += " Behind a proxy of your own, start with --public-url and its address."
            await _refuse(PlainTextResponse(told, status_code=403), scope, receive, send)
        elif _theirs(path, door.login) and _too_long(headers):
            told = "This is more than this page takes."
            await _refuse(PlainTextResponse(told, status_code=413), scope, receive, send)
        elif path.startswith(("/g/", "/guest/")):
            await self._guests(scope, receive, _with(_PAGES, send))
        elif not door.login:
            await self._app(scope, receive, _with(_EVERYWHERE, send))
        elif path in _LOGIN:
            await self._login(scope, receive, _with(_PAGES, send))
        else:
            await self._lab(scope, receive, send)

    async def _lab(self, scope: Scope, receive: Receive, send: Send) -> None:
        door, cookies = self._door, HTTPConnection(scope).cookies
        user = door.owners.user(cookies.get(door.owner_cookie, ""))
        if user is None and not door.started and scope["path"] == STARTING:
            user = door.user  # gradio calls itself once when it starts, before anybody knows the address
        if user is None:
            guest = door.guests.get(cookies.get(door.guest_cookie, "")) is not None
            await _refuse(_stranger(scope, guest), scope, receive, send)
            return
        scope = dict(scope) | {USER: user, "headers": _trusted(scope["headers"], door.origins)}
        if scope["method"] == "POST" and scope["path"].endswith("/upload"):
            receive = _counted(Headers(scope=scope), receive)
        await self._app(scope, receive, _with(_LAB, send))


def user_of(request: Any) -> str | None:
    """Who asks, as the gate found out: gradio's `auth_dependency`, so that its own checks refuse strangers too."""
    found = request.scope.get(USER)
    return found if isinstance(found, str) else None


def from_here(headers: Headers, origins: Iterable[str] = ()) -> bool:
    """Whether a request was not made by a page of another site.

    A browser says where a request comes from in Origin (always, when it changes something) and in Sec-Fetch-Site. A
    sibling of a tunnel's name counts as another site. Who is no browser can say anything, but brings no owner's cookie.

    Args:
        origins: the page's own public addresses. A tunnel may change Host, so that Origin does not match it.
    """
    given = headers.getlist("origin")
    if len(given) > 1 or len(headers.getlist("host")) > 1:
        return False
    if given:
        return given[0].lower() in origins or _host(given[0]) == headers.get("host", "").lower()
    strange = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    return not strange or headers.get("sec-fetch-mode") == "navigate"


def called_loopback(headers: Headers) -> bool:
    """Whether Host names this machine itself."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname in LOOPBACK
    except ValueError:
        return False


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _theirs(path: str, login: bool) -> bool:
    return path.startswith(("/g/", "/guest/")) or (login and path in _LOGIN)


def _too_long(headers: Headers) -> bool:
    """Whether a request announces more than a message, or does not say how much: no browser does that here."""
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers:
        return True
    return len(length) > 9 or (length != "" and (not length.isdigit() or int(length) > MOST_BODY))


def _stranger(scope: Scope, guest: bool) -> Response:
    """What somebody without the owner's cookie gets: a way to the login page, if a person may be reading."""
    accepts = Headers(scope=scope).get("accept", "")
    reads = scope["method"] in ("GET", "HEAD") and ("text/html" in accepts or scope["path"] == "/")
    if reads and not scope["path"].startswith("/gradio_api"):
        return RedirectResponse("/login", status_code=303)
    if guest:
        return JSONResponse({"error": "Guests may chat only."}, status_code=403)
    return JSONResponse({"error": "Log in first."}, status_code=401)


async def _refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    # the body is not read: closing the connection ends an upload of any size
    response.headers["connection"] = "close"
    await response(scope, receive, _with(_PAGES, send))


def _with(headers: dict[str, str], send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            found = MutableHeaders(scope=message)
            for name, value in headers.items():
                found.setdefault(name, value)
        await send(message)

    return sending


def _trusted(headers: list[tuple[bytes, bytes]], origins: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Without forwarded names that are not the page's own: gradio would put them into addresses."""
    own = {_host(origin) for origin in origins}
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in _FORWARDED or (name.lower() == _FORWARDED[0] and value.decode("latin-1").lower() in own)
    ]


def _counted(headers: Headers, receive: Receive) -> Receive:
    """Ends an upload of too many files or bytes while it is read. Gradio answers such an exception with 400."""
    found = re.search(r'boundary="?([^";,]{1,200})', headers.get("content-type", ""))
    mark = b"--" + found[1].encode("latin-1") if found else b""
    counted: MutableMapping[str, int] = {"parts": 0, "bytes": 0}
    tail = b""

    async def counting() -> Message:
        nonlocal tail
        message = await receive()
        body = message.get("body", b"")
        counted["bytes"] += len(body)
        if mark and body:
            whole = tail + body
            counted["parts"] += whole.count(mark)
            # a mark that is cut in two by the end of a piece is found with the next one, and none is found twice
            tail = whole[-(len(mark) - 1) :]
        if counted["parts"] > MOST_FILES + 1:
            raise MultiPartException(f"Too many files. At most {MOST_FILES} at once.")
        if counted["bytes"] > MOST_UPLOAD_BYTES:
            raise MultiPartException(f"These files have more than {MOST_UPLOAD_BYTES // 2**20} MB together.")
        return message

    return counting
