"""The frozen models of this room: a link for guests with its limits, and what is kept of sharing."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from persona_lab.types import Frozen

MOST_HOURS = 24 * 365.0
MOST_LINKS = 200


class GuestLimits(Frozen):
    """How much a guest may ask of this machine."""

    messages_a_minute: int = Field(8, ge=1, le=120, description="Messages a guest may send in a minute.")
    message_characters: int = Field(1000, ge=20, le=8000, description="The longest message, in characters.")
    turns: int = Field(40, ge=1, le=500, description="Messages in one conversation; then a guest begins a new one.")
    reply_tokens: int = Field(120, ge=8, le=1024, description="The longest reply, in tokens.")
    tokens: int = Field(12_000, ge=8, le=10_000_000, description="Tokens written for one guest in all.")
    link_tokens: int = Field(
        200_000, ge=8, le=1_000_000_000, description="Tokens written for all guests of this link within a day."
    )
    guests: int = Field(50, ge=1, le=500, description="Guests of this link at the same time.")


class GuestLink(Frozen):
    """What a link allows: to talk to some variants of one character until a moment, and to vote on their replies."""

    id: str
    name: str
    persona: str
    variants: tuple[str, ...] = Field(min_length=1, max_length=12)
    vote: bool = False
    created: str
    expires: str
    """ISO 8601, UTC."""
    revoked: bool = False
    limits: GuestLimits = GuestLimits()

    def expired(self, moment: datetime | None = None) -> bool:
        """Whether its time is over."""
        return (moment or datetime.now(UTC)) >= datetime.fromisoformat(self.expires)

    @property
    def status(self) -> str:
        """`open`, `revoked` or `expired`."""
        return "revoked" if self.revoked else "expired" if self.expired() else "open"


class SharingFile(Frozen):
    """`sharing.json`, whole. `password` is a hash."""

    version: int = 1
    paused: bool = False
    password: str = ""
    links: tuple[GuestLink, ...] = ()
