"""`<home>/sharing`: the links for guests, whether sharing is paused, the hash of the owner's password, and a key.

The page and the command line write it at the same time, so every change is made under a lock of its own, and readers
look at the file's time: a link that is revoked in a terminal is dead in the page at its next request.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from persona_lab.access.passwords import hash_password, make_password
from persona_lab.access.records import MOST_HOURS, MOST_LINKS, GuestLimits, GuestLink, SharingFile
from persona_lab.errors import BadInput, BadSetting, UnknownName
from persona_lab.home import write_atomic
from persona_lab.types import now

MOST_NAME = 80
LOCK_SECONDS = 10


class AccessStore:
    """What is kept of sharing, in one data home. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "sharing"
        self._file = self.folder / "sharing.json"
        self._address = self.folder / "address"
        self._guard = threading.Lock()
        self._seen: tuple[tuple[int, int, int] | None, SharingFile] = (None, SharingFile())

    def read(self) -> SharingFile:
        """What is kept; cheap while nothing changes.

        Raises:
            BadInput: the file is damaged. Nobody is let in then.
        """
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return SharingFile()
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        with self._guard:
            if self._seen[0] != stamp:
                self._seen = (stamp, self._parsed())
            return self._seen[1]

    def _parsed(self) -> SharingFile:
        try:
            return SharingFile.model_validate_json(self._file.read_bytes())
        except ValidationError as error:
            raise BadInput(
                f"The file {self._file} cannot be read: {error.errors()[0]['msg']}.",
                "Mend it, or delete it: then there are no links, and a new password is made.",
            ) from error

    def _change(self, change: Callable[[SharingFile], SharingFile]) -> SharingFile:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock", timeout=LOCK_SECONDS):
            changed = change(self.read())
            write_atomic(self._file, changed.model_dump_json(indent=1))
        return changed

    # --- the key ---------------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        """What links are signed with: made once, readable by this user only (`write_atomic` makes such files)."""
        path = self.folder / "key"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock", timeout=LOCK_SECONDS):
                if not path.exists():
                    write_atomic(path, secrets.token_bytes(32))
        return path.read_bytes()

    # --- the owner's password --------------------------------------------------------------------

    def first_password(self) -> str:
        """A password, if there is none yet: to be shown once, since only its hash is kept. Else an empty text."""
        return "" if self.read().password else self.new_password()

    def new_password(self) -> str:
        """A new password in place of the one before; who logged in with that one has to do so again."""
        password = make_password()
        hashed = hash_password(password)
        self._change(lambda kept: kept.model_copy(update={"password": hashed}))
        return password

    # --- links -----------------------------------------------------------------------------------

    def links(self) -> tuple[GuestLink, ...]:
        """Every link, newest first."""
        return tuple(reversed(self.read().links))

    def link(self, link_id: str) -> GuestLink:
        """A link by its id.

        Raises:
            UnknownName
        """
        links = self.read().links
        found = next((link for link in links if link.id == link_id), None)
        if found is None:
            raise UnknownName("guest link", link_id, [link.id for link in links])
        return found

    def make_link(
        self,
        persona: str,
        variants: Sequence[str],
        *,
        vote: bool = False,
        hours: float = 24,
        name: str = "",
        limits: GuestLimits | None = None,
    ) -> GuestLink:
        """A new link. Whether persona and variants exist is for the caller to know.

        Raises:
            BadSetting: no variants, too many links or hours, or nothing to vote on.
        """
        chosen = tuple(dict.fromkeys(variants))
        if not chosen:
            raise BadSetting("A guest link names no variants.", "Name one or more that guests may talk to.")
        if vote and len(chosen) < 2:
            raise BadSetting("Voting needs two variants to compare.", "Name another, or leave voting out.")
        if not 0 < hours <= MOST_HOURS:
            raise BadSetting(f"A link cannot hold for {hours:g} hours.", f"More than 0, at most {MOST_HOURS:g}.")
        title = " ".join(name.split())[:MOST_NAME]
        try:
            link = GuestLink(
                id=secrets.token_hex(8),
                name=title or f"Guests of {persona}",
                persona=persona,
                variants=chosen,
                vote=vote,
                created=now(),
                expires=(datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds"),
                limits=limits or GuestLimits(),
            )
        except ValidationError as error:
            raise BadSetting(f"This link cannot be made: {error.errors()[0]['msg']}.") from error

        def add(kept: SharingFile) -> SharingFile:
            # what cannot be used any more makes room; only open links count
            usable = tuple(link for link in kept.links if link.status == "open")
            if len(usable) >= MOST_LINKS:
                raise BadSetting(f"There are {len(usable)} open links already.", "Revoke some first.")
            room = kept.links if len(kept.links) < MOST_LINKS else usable
            return kept.model_copy(update={"links": (*room, link)})

        self._change(add)
        return link

    def revoke(self, link_id: str) -> GuestLink:
        """End a link for good, and with it every guest's session that began with it.

        Raises:
            UnknownName
        """
        self.link(link_id)

        def end(kept: SharingFile) -> SharingFile:
            links = (link.model_copy(update={"revoked": True}) if link.id == link_id else link for link in kept.links)
            return kept.model_copy(update={"links": tuple(links)})

        self._change(end)
        return self.link(link_id)

    def pause(self, paused: bool) -> bool:
        """Stop answering guests at once, or go on."""
        return self._change(lambda kept: kept.model_copy(update={"paused": paused})).paused

    # --- where the page is -----------------------------------------------------------------------

    def publish(self, address: str) -> None:
        """Remember where others reach the page, for links made in a terminal; an empty text: nowhere."""
        if address:
            write_atomic(self._address, address)
        else:
            self._address.unlink(missing_ok=True)

    def address(self) -> str:
        """Where others reach the page; empty while it does not run."""
        return self._address.read_text(encoding="utf-8") if self._address.exists() else ""
