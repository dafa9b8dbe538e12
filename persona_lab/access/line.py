"""A waiting line: few are served at once, some wait and know their place, the rest are told to come back.

For one event loop; only `Place.leave` may be called from other threads (through the loop).
"""

from __future__ import annotations

import asyncio

AT_ONCE = 1
MOST_WAITING = 64


class LineFull(Exception):
    """Nobody else may wait; `position` is where one would have stood."""

    def __init__(self, position: int) -> None:
        super().__init__(f"{position - 1} are waiting")
        self.position = position


class Place:
    """One place in the line."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._turn = asyncio.Event()

    @property
    def position(self) -> int:
        """0: it is this one's turn; 1: the next, and so on."""
        return 0 if self._turn.is_set() else self._line.position_of(self)

    async def wait(self, seconds: float) -> bool:
        """Wait so long for one's turn; whether it is."""
        try:
            await asyncio.wait_for(self._turn.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def call(self) -> None:
        """It is this one's turn."""
        self._turn.set()

    def leave(self) -> None:
        """Make room for the next; may be called twice."""
        self._line.remove(self)


class Line:
    """Who is served and who waits.

    Args:
        at_once: how many are served at the same time.
        most_waiting: how many may wait.
    """

    def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self._at_once, self._most = at_once, most_waiting
        self._served: list[Place] = []
        self._waiting: list[Place] = []

    @property
    def length(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def join(self) -> Place:
        """Take the last place.

        Raises:
            LineFull
        """
        if len(self._waiting) >= self._most:
            raise LineFull(len(self._waiting) + 1)
        place = Place(self)
        self._waiting.append(place)
        self._fill()
        return place

    def position_of(self, place: Place) -> int:
        """From 1; 0 for one who does not wait."""
        return self._waiting.index(place) + 1 if place in self._waiting else 0

    def remove(self, place: Place) -> None:
        """Take a place out, wherever it is."""
        for group in (self._served, self._waiting):
            if place in group:
                group.remove(place)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._served) < self._at_once:
            place = self._waiting.pop(0)
            self._served.append(place)
            place.call()
