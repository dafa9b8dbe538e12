"""The login page: a form, a session in a cookie, and out again. Plain HTML without scripts."""

from __future__ import annotations

import html
import math
from string import Template
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from persona_lab.access.bodies import small_body
from persona_lab.access.sessions import DEVICE_SECONDS, OWNER_LONGEST
from persona_lab.ui.door import Door

MOST_BODY = 4096

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Persona Lab: log in</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/guest/page.css"></head>
<body class="narrow"><main class="card"><h1>Persona Lab</h1>
<p>This page is its owner's. Guests come in by the link they were given.</p>
$told
<form method="post" action="/login">
$user
<label>Password <input name="password" type="password" autocomplete="current-password" required autofocus></label>
<button type="submit">Log in</button></form>
<p class="soft">Lost the password? On the machine that runs the page, <code>persona-lab share login-link</code> opens it
once, and <code>persona-lab share password</code> makes a new one.</p></main></body></html>
""")
_USER = '<label>Name <input name="user" autocomplete="username" maxlength="200" required></label>'


def login_pages(door: Door) -> Starlette:
    """`/login` and `/logout`."""
    pages = _Login(door)
    return Starlette(
        routes=[
            Route("/login", pages.form, methods=["GET"]),
            Route("/login", pages.enter, methods=["POST"]),
            Route("/logout", pages.leave, methods=["POST"]),
        ]
    )


class _Login:
    def __init__(self, door: Door) -> None:
        self.door = door

    def _page(self, told: str = "", status: int = 200) -> HTMLResponse:
        box = f'<p class="told" role="alert">{html.escape(told)}</p>' if told else ""
        return HTMLResponse(_PAGE.substitute(told=box, user=_USER if self.door.account else ""), status_code=status)

    async def form(self, request: Request) -> Response:
        """The form; with a one-time ticket, the lab."""
        ticket = request.query_params.get("ticket", "")
        if not ticket:
            return self._page()
        if not self.door.use_ticket(ticket):
            return self._page("This one-time link was used already, or is older than five minutes.", 401)
        return self._let_in(request)

    async def enter(self, request: Request) -> Response:
        """A password was typed."""
        body = await small_body(request, MOST_BODY)
        if body is None:
            return self._page("That is too long to be a password.", 413)
        try:
            fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
        except ValueError:
            return self._page("This is not the form of this page.", 400)
        user, password = (fields.get(name, [""])[0] for name in ("user", "password"))
        wait = await self.door.try_password(user, password, request.cookies.get(self.door.device_cookie, ""))
        if wait is None:
            return self._let_in(request)
        if wait == 0:
            return self._page("That is not right.", 401)
        seconds = math.ceil(wait)
        reply = self._page(f"Too many wrong passwords. The next try is free in {seconds} s.", 429)
        reply.headers["retry-after"] = str(seconds)
        return reply

    def _let_in(self, request: Request) -> Response:
        reply = RedirectResponse("/", status_code=303)
        door = self.door
        door.owners.end(request.cookies.get(door.owner_cookie, ""))
        secure = over_https(request, door)
        secret = door.owners.begin(door.user)
        longest = int(OWNER_LONGEST)
        reply.set_cookie(door.owner_cookie, secret, max_age=longest, httponly=True, samesite="lax", secure=secure)
        reply.set_cookie(
            door.device_cookie, door.signing.device(), max_age=DEVICE_SECONDS, path="/login", httponly=True,
            samesite="lax", secure=secure,
        )  # fmt: skip
        return reply

    async def leave(self, request: Request) -> Response:
        """Log out."""
        self.door.owners.end(request.cookies.get(self.door.owner_cookie, ""))
        reply = RedirectResponse("/login", status_code=303)
        reply.delete_cookie(self.door.owner_cookie, httponly=True, samesite="lax")
        return reply


def over_https(request: Request, door: Door) -> bool:
    """Whether the browser speaks https, though a tunnel or proxy may speak http to us. Decides `Secure` only."""
    said = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
    origin = request.headers.get("origin", "").lower()
    return request.url.scheme == "https" or said == "https" or (origin in door.origins and origin.startswith("https:"))
