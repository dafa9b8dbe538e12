"""The body of a request, bounded whatever its headers say."""

from __future__ import annotations

from starlette.requests import Request


async def small_body(request: Request, most: int) -> bytes | None:
    """A request's body; None as soon as it is longer than `most` bytes."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            return None
    return body
