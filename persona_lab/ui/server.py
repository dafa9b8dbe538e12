"""Who may reach the page and how: address, port, password, and a guard against other sites' requests.

Serves nothing itself; gradio does.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona_lab.errors import UserError

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT = 7860
PORTS_TRIED = 100


class Refused(UserError):
    """The page will not start like this."""


class ClosedWindows:
    """Gradio 6.31 forgets the session of a window that was left, and stumbles over that where the window had a second
    stream of it open: it deletes it twice (a KeyError), or, having told the stream that its session is gone, raises the
    404 of it into an answer that began long ago. Nobody waits for that answer any more, so it is no error of the page;
    it is ended here, since the server would report an answer without an end as an error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = ended = False

        async def noted(message: Message) -> None:
            nonlocal begun, ended
            begun = begun or message["type"] == "http.response.start"
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except (KeyError, RuntimeError) as error:
            if not _of_a_closed_window(scope, error):
                raise
            log.info("A window was closed while two of its streams were open.")
            if begun and not ended:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif not begun:
                await Response(status_code=404)(scope, receive, send)


def _of_a_closed_window(scope: Scope, error: KeyError | RuntimeError) -> bool:
    if scope["type"] != "http" or not scope["path"].endswith("/queue/data"):
        return False
    if isinstance(error, KeyError):
        session = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [])
        return error.args[:1] == tuple(session)
    return isinstance(error.__cause__, HTTPException) and error.__cause__.status_code == 404


def credentials(environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """User and password from PERSONA_LAB_AUTH; None where it is not set.

    Raises:
        Refused: the variable is malformed.
    """
    given = environment.get("PERSONA_LAB_AUTH", "")
    user, separator, password = given.partition(":")
    if given and not (user and separator and password):
        raise Refused("PERSONA_LAB_AUTH is not of the form user:password.", "Set it to a name, a colon and a password.")
    return (user, password) if given else None


def needs_login(host: str, share: bool, public_url: str = "", environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the page asks who is there: always, but for one that this machine alone can reach."""
    return share or bool(public_url) or host not in LOOPBACK or bool(environment.get("PERSONA_LAB_AUTH"))


def origin_of(address: str) -> str:
    """The scheme and host of a public address, such as `https://lab.example.org`.

    Raises:
        Refused: it is none.
    """
    try:
        parts = urlsplit(address.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")
        valid = valid and not (parts.query or parts.fragment or parts.username or parts.password)
        valid = valid and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise Refused(
            f"{address!r} is not the address of a page.",
            "Give the scheme and the host only, such as --public-url https://lab.example.org.",
        )
    return f"{parts.scheme}://{parts.netloc.lower()}"


def refuse_vibe_mode(environment: Mapping[str, str] = os.environ) -> None:
    """Gradio's vibe mode lets whoever sees the page rewrite its code.

    Raises:
        Refused
    """
    if environment.get("GRADIO_VIBE_MODE"):
        raise Refused(
            "GRADIO_VIBE_MODE is set; in that mode visitors of the page can run code on this machine.",
            "Unset GRADIO_VIBE_MODE and start again.",
        )


def free_port(host: str, wanted: int | None = None) -> int:
    """The wanted port (7860 without a wish, 0: any free one), or the next free one after it.

    Raises:
        Refused: none of a hundred is free, or the address is not this machine's.
    """
    first = PORT if wanted is None else wanted
    for port in range(first, first + PORTS_TRIED):
        found = _try_port(host, port)
        if found is not None:
            return found
    raise Refused(
        f"Ports {first} to {first + PORTS_TRIED - 1} on {host} are all taken or not allowed.",
        "Name another with --port, or leave --host out.",
    )


def _try_port(host: str, port: int) -> int | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return None
        return int(probe.getsockname()[1])
