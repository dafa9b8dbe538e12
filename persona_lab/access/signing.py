"""Signed texts: links for guests, one-time tickets for the owner, and the mark of a browser that logged in before.

A signature alone lets nobody in: a link is also looked up, so that it can be revoked. It keeps guessed and changed
links from getting as far as that.
"""

from __future__ import annotations

import hashlib
import secrets

from itsdangerous import BadSignature, URLSafeSerializer, URLSafeTimedSerializer

from persona_lab.access.sessions import DEVICE_SECONDS, TICKET_SECONDS

MOST_TOKEN = 400
_SIGNER = {"key_derivation": "hmac", "digest_method": hashlib.sha256}


class Signing:
    """Signs and reads with one home's key.

    Args:
        key: 32 bytes; a new key makes every link and ticket void.
    """

    def __init__(self, key: bytes) -> None:
        self._links = URLSafeSerializer(key, salt="guest-link", signer_kwargs=_SIGNER)
        self._tickets = URLSafeTimedSerializer(key, salt="owner-ticket", signer_kwargs=_SIGNER)
        self._devices = URLSafeTimedSerializer(key, salt="device", signer_kwargs=_SIGNER)

    def link_token(self, link_id: str) -> str:
        """The part of a guest link's address that opens it."""
        return str(self._links.dumps(link_id))

    def link_id(self, token: str) -> str | None:
        """Which link a token is of; None for one that was not signed here."""
        try:
            found = self._links.loads(token) if len(token) <= MOST_TOKEN else None
        except BadSignature:
            return None
        return found if isinstance(found, str) else None

    def ticket(self) -> str:
        """Lets the owner in once, within five minutes."""
        return str(self._tickets.dumps(secrets.token_hex(16)))

    def ticket_id(self, token: str) -> str | None:
        """What to remember of a ticket so that it is used once; None where it is old or was not signed here."""
        return _timed(self._tickets, token, TICKET_SECONDS)

    def device(self) -> str:
        """Marks a browser in which the password was right once."""
        return str(self._devices.dumps(secrets.token_hex(16)))

    def device_id(self, token: str) -> str | None:
        """Which browser it is; None for a stranger's."""
        return _timed(self._devices, token, DEVICE_SECONDS)


def _timed(serializer: URLSafeTimedSerializer, token: str, seconds: int) -> str | None:
    try:
        found = serializer.loads(token, max_age=seconds) if len(token) <= MOST_TOKEN else None
    except BadSignature:
        return None
    return found if isinstance(found, str) else None
