"""Who is logged in, and which guests are here. In memory: a restart of the page logs everybody out.

A session's secret is in a cookie; what is kept here is its hash, so that nothing that shows or logs a session can be
used to take it over.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from persona_lab.access.records import GuestLink
from persona_lab.access.throttle import Bucket, Clock
from persona_lab.errors import BadInput

TICKET_SECONDS = 300
DEVICE_SECONDS = 180 * 24 * 3600
OWNER_IDLE = 12 * 3600.0
OWNER_LONGEST = 7 * 24 * 3600.0
GUEST_IDLE = 2 * 3600.0
NEVER_CAME = 60.0
"""A session whose cookie was never brought back is over after so long: it must not hold a place for hours."""
GUEST_LONGEST = 24 * 3600.0
MOST_OWNERS = 50
MOST_GUESTS = 1000
MOST_REQUESTS = 180
DAY = 24 * 3600.0
MOST_SECRET = 200


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret[:MOST_SECRET].encode("utf-8", "replace")).hexdigest()


@dataclass
class _Login:
    user: str
    password: str
    began: float
    seen: float


class OwnerSessions:
    """The browsers in which the owner is logged in.

    Args:
        password: gives what the password is kept as now: a session that began with another one is over.
    """

    def __init__(self, password: Callable[[], str] = lambda: "", clock: Clock = time.monotonic) -> None:
        self._password, self._clock = password, clock
        self._lock = threading.Lock()
        self._logins: dict[str, _Login] = {}

    def begin(self, user: str) -> str:
        """Log in; gives the secret for the cookie. Where there are too many, the one longest unused ends."""
        secret, moment = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            if len(self._logins) >= MOST_OWNERS:
                del self._logins[min(self._logins, key=lambda key: self._logins[key].seen)]
            self._logins[_hashed(secret)] = _Login(user, self._password(), moment, moment)
        return secret

    def user(self, secret: str) -> str | None:
        """Who this is, or None: nobody, or a session that is over."""
        if not secret:
            return None
        key, moment = _hashed(secret), self._clock()
        with self._lock:
            login = self._logins.get(key)
            if login is None:
                return None
            over = moment - login.seen > OWNER_IDLE or moment - login.began > OWNER_LONGEST
            if over or login.password != self._password():
                del self._logins[key]
                return None
            login.seen = moment
            return login.user

    def end(self, secret: str) -> None:
        """Log out."""
        with self._lock:
            self._logins.pop(_hashed(secret), None)


@dataclass
class Guest:
    """One guest's session. `id` may be shown; the secret that opens it may not."""

    id: str
    link: str
    began: float
    seen: float
    bucket: Bucket
    """Of messages."""
    requests: Bucket
    """Of everything."""
    messages: int = 0
    tokens: int = 0
    votes: int = 0
    refused: int = 0
    busy: bool = False
    came: bool = False
    """The cookie was brought back."""
    ended: bool = False
    stopped: bool = False
    """Stop was pressed; holds for the reply that is waited for."""
    talk: Any = None
    """The conversation, of the page's own kind."""

    @property
    def owner(self) -> str:
        """Whose replies and votes these are, for the engine."""
        return f"guest:{self.link}:{self.id}"


class Guests:
    """The guests who are here, and what they have used of their links."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._guests: dict[str, Guest] = {}
        self._spent: dict[str, tuple[float, int]] = {}
        self._doors: dict[str, Bucket] = {}

    def begin(self, link: GuestLink) -> tuple[str, Guest]:
        """A session on a link; gives the secret for the cookie, and the session.

        Raises:
            BadInput: as many guests as the link allows are here, or they come too fast.
        """
        secret, moment = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._tidy(moment)
            door = self._doors.setdefault(link.id, Bucket(2 * link.limits.guests, 60, self._clock))
            here = sum(guest.link == link.id for guest in self._guests.values())
            if here >= link.limits.guests or len(self._guests) >= MOST_GUESTS:
                raise BadInput(f"This chat is full: {here} guests are here already.", "Try again later.")
            if wait := door.take():
                raise BadInput("Many guests came at once.", f"Try again in {math.ceil(wait)} s.")
            guest = Guest(
                id=secrets.token_hex(6), link=link.id, began=moment, seen=moment,
                bucket=Bucket(link.limits.messages_a_minute, 60, self._clock),
                requests=Bucket(MOST_REQUESTS, 60, self._clock),
            )  # fmt: skip
            self._guests[_hashed(secret)] = guest
        return secret, guest

    def get(self, secret: str) -> Guest | None:
        """The guest with this secret; None: nobody, or a session that is over."""
        if not secret:
            return None
        moment = self._clock()
        with self._lock:
            guest = self._guests.get(_hashed(secret))
            if guest is None or self._over(guest, moment):
                return None
            guest.seen, guest.came = moment, True
            return guest

    def all(self) -> list[Guest]:
        """The guests who are here, the one last seen first."""
        moment = self._clock()
        with self._lock:
            self._tidy(moment)
            return sorted(self._guests.values(), key=lambda guest: -guest.seen)

    def idle(self, guest: Guest) -> float:
        """Seconds since a guest did something."""
        return self._clock() - guest.seen

    def end(self, guest_id: str) -> bool:
        """Send a guest away; whether there was one. The link lets the person in again unless it is revoked."""
        with self._lock:
            return bool(self._end(lambda guest: guest.id == guest_id))

    def end_link(self, link_id: str) -> int:
        """Send every guest of a link away; how many they were."""
        with self._lock:
            return self._end(lambda guest: guest.link == link_id)

    def spend(self, guest: Guest, tokens: int) -> None:
        """Count tokens that were written for a guest."""
        moment = self._clock()
        with self._lock:
            guest.tokens += tokens
            since, spent = self._spent.get(guest.link, (moment, 0))
            if moment - since > DAY:
                since, spent = moment, 0
            self._spent[guest.link] = (since, spent + tokens)

    def left(self, guest: Guest, link: GuestLink) -> int:
        """Tokens that may still be written for a guest: what is left of the guest's own, and of the link's today."""
        moment = self._clock()
        with self._lock:
            since, spent = self._spent.get(link.id, (moment, 0))
            spent = 0 if moment - since > DAY else spent
            return max(0, min(link.limits.tokens - guest.tokens, link.limits.link_tokens - spent))

    def _over(self, guest: Guest, moment: float) -> bool:
        idle = GUEST_IDLE if guest.came else NEVER_CAME
        return moment - guest.seen > idle or moment - guest.began > GUEST_LONGEST

    def _tidy(self, moment: float) -> None:
        """Let go of who left, and of what is known of links that says nothing any more: over a long time there may be
        any number of them."""
        self._end(lambda guest: self._over(guest, moment))
        self._spent = {link: spent for link, spent in self._spent.items() if moment - spent[0] <= DAY}
        self._doors = {link: door for link, door in self._doors.items() if not door.full()}

    def _end(self, over: Callable[[Guest], bool]) -> int:
        found = [key for key, guest in self._guests.items() if over(guest)]
        for key in found:
            self._guests.pop(key).ended = True
        return len(found)
