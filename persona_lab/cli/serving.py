"""`serve-api`: a variant for other programs, over OpenAI's interface, on this machine only."""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from persona_lab.cli.common import HomeOption, opened
from persona_lab.errors import BadInput


def serve_api(
    variant: str,
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8000,
    key: Annotated[
        str, typer.Option(envvar="PERSONA_LAB_API_KEY", help="What callers must know; made up if not given.")
    ] = "",
    home: HomeOption = None,
) -> None:
    """Let other programs talk to a variant: OpenAI's /v1/chat/completions on this machine, behind a key."""
    import uvicorn

    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.serving import make_app

    if key and len(key) < 8:
        raise BadInput("The key is shorter than 8 characters.", "Give a longer one, or leave --key out.")
    chosen = key or secrets.token_urlsafe(24)
    with opened(home, readonly=True) as engine, _listening(port) as listener:
        found = engine.variant(variant)
        base = engine.base_model(found.base)
        app = make_app(found, engine.chat, chosen, ChatRenderer(Path(base.path)) if base.ready else None)
        print(f"Model:    {found.id}")
        print(f"Base URL: http://127.0.0.1:{listener.getsockname()[1]}/v1")
        print(f"API key:  {chosen}" if not key else "API key:  as given")
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    """A socket on this machine's own address.

    Raises:
        BadInput: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise BadInput(f"Port {port} cannot be used: {error.strerror}.", "Choose another with --port.") from error
    return listener
