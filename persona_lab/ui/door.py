"""What the page knows of who may come in: whether there is a login, who is logged in, which guests are here.

One `Door` a running page. The gate asks it at every request; the Sharing tab shows and changes it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from persona_lab.access import passwords
from persona_lab.access.line import Line
from persona_lab.access.sessions import TICKET_SECONDS, Guest, Guests, OwnerSessions
from persona_lab.access.store import AccessStore
from persona_lab.access.throttle import STRANGERS, LoginThrottle
from persona_lab.engine import Engine
from persona_lab.errors import PersonaLabError

if TYPE_CHECKING:
    from persona_lab.access.records import GuestLink
    from persona_lab.access.signing import Signing

log = logging.getLogger(__name__)

OWNER = "owner"


class Door:
    """Who may come in.

    Args:
        login: whether the lab asks for a password; without, all that reaches it is its owner's.
        account: a user and a password to be used instead of the one that is kept (PERSONA_LAB_AUTH).
        origins: the addresses under which others reach the page, such as `https://lab.example.org`.
    """

    def __init__(
        self,
        engine: Engine,
        login: bool = False,
        account: tuple[str, str] | None = None,
        origins: Iterable[str] = (),
    ) -> None:
        self.engine, self.login, self.account = engine, login, account
        self.origins = tuple(origins)
        self.local = ""
        self.started = False
        self.closing = False
        self.store: AccessStore = engine.access
        self.throttle = LoginThrottle()
        self.owners = OwnerSessions(self._kept)
        self.guests = Guests()
        self.line = Line()
        # cookies know no ports: two pages on one machine must not log each other out
        mark = hashlib.sha256(str(engine.home.root).encode()).hexdigest()[:8]
        self.owner_cookie, self.device_cookie, self.guest_cookie = (
            f"persona_lab_{kind}_{mark}" for kind in ("owner", "device", "guest")
        )
        self._tickets: dict[str, float] = {}
        self._lock = threading.Lock()

    def _kept(self) -> str:
        return "" if self.account else self.store.read().password

    @cached_property
    def signing(self) -> Signing:
        """This home's signatures; loaded at first use, since a page without guests needs none."""
        from persona_lab.access.signing import Signing

        return Signing(self.store.key)

    @property
    def address(self) -> str:
        """Where others reach the page; else where this machine does."""
        return self.origins[0] if self.origins else self.local

    @property
    def user(self) -> str:
        """The owner's name."""
        return self.account[0] if self.account else OWNER

    # --- the owner -------------------------------------------------------------------------------

    async def try_password(self, user: str, password: str, device: str) -> float | None:
        """Whether these are right: None if so, 0.0 if not, else the seconds to wait before the next try."""
        who = (self.signing.device_id(device) if device else None) or STRANGERS
        wait = self.throttle.begin(who)
        if wait:
            return wait
        if self.account:
            right = passwords.same(user, self.account[0]) & passwords.same(password, self.account[1])
        else:
            # one at a time, beside the event loop: a flood of logins must not slow the page
            check = partial(passwords.matches, password, self.store.read().password)
            right = await anyio.to_thread.run_sync(check, limiter=self._one)
        if not right:
            return 0.0
        self.throttle.right(who)
        return None

    @cached_property
    def _one(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(1)

    def use_ticket(self, token: str) -> bool:
        """Whether this one-time ticket lets the owner in; it does not a second time."""
        found, moment = self.signing.ticket_id(token), time.monotonic()
        with self._lock:
            # a signature is read to the second: keep used ones a little longer than they hold
            self._tickets = {k: at for k, at in self._tickets.items() if moment - at < TICKET_SECONDS + 60}
            if found is None or found in self._tickets:
                return False
            self._tickets[found] = moment
            return True

    # --- guests ----------------------------------------------------------------------------------

    def link_address(self, link: GuestLink) -> str:
        """The whole address that opens a link."""
        return f"{self.address}/g/{self.signing.link_token(link.id)}"

    def open_link(self, token: str) -> GuestLink | None:
        """The link of this token; None: not signed here, or no longer there. It may be revoked or expired."""
        found = self.signing.link_id(token)
        return self._link(found) if found else None

    def link_of(self, guest: Guest) -> GuestLink | None:
        """The link that a guest came with, if it still holds."""
        found = self._link(guest.link)
        return found if found is not None and found.status == "open" else None

    def _link(self, link_id: str) -> GuestLink | None:
        """A link; none where the file cannot be read: what is wrong with it is the owner's to know."""
        try:
            return next((link for link in self.store.read().links if link.id == link_id), None)
        except PersonaLabError as error:
            log.warning("Guests are turned away: %s", error)
            return None

    @property
    def paused(self) -> bool:
        """Whether guests get no answers now. A file that cannot be read is a reason, too."""
        try:
            return self.store.read().paused
        except PersonaLabError:
            return True

    def pause(self, paused: bool) -> None:
        """Stop answering guests, also in the middle of a word, or go on."""
        self.store.pause(paused)
        if paused:
            self.hush(self.guests.all())

    def revoke(self, link_id: str) -> None:
        """End a link, and the sessions of all who came with it.

        Raises:
            UnknownName
        """
        self.store.revoke(link_id)
        self.hush(guest for guest in self.guests.all() if guest.link == link_id)
        self.guests.end_link(link_id)

    def send_away(self, guest_id: str) -> None:
        """End one guest's session."""
        self.hush(guest for guest in self.guests.all() if guest.id == guest_id)
        self.guests.end(guest_id)

    def hush(self, guests: Iterable[Guest]) -> None:
        """Stop the replies that are written for these."""
        for guest in guests:
            if guest.busy:
                self.engine.stop_chat(guest.owner)
