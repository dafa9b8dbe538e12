"""How often something may happen: a bucket of messages, and waits that grow with wrong passwords. Keeps time itself."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE_TRIES = 5
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
FORGET_SECONDS = 15 * 60
MOST_BUCKETS = 1000
STRANGERS = ""
Clock = Callable[[], float]


class Bucket:
    """Holds `size` tokens and refills within `seconds`; each use takes one."""

    def __init__(self, size: int, seconds: float, clock: Clock = time.monotonic) -> None:
        self._size, self._seconds, self._clock = size, seconds, clock
        self._held, self._then = float(size), clock()

    def full(self) -> bool:
        """Whether it holds as many as it can: then it is as good as a new one."""
        self._refill()
        return self._held >= self._size

    def take(self) -> float:
        """Take one: 0.0 where there was one, else the seconds until there is."""
        self._refill()
        if self._held >= 1:
            self._held -= 1
            return 0.0
        return (1 - self._held) * self._seconds / self._size

    def _refill(self) -> None:
        moment = self._clock()
        self._held = min(self._size, self._held + (moment - self._then) * self._size / self._seconds)
        self._then = moment


@dataclass
class _Tries:
    failed: int = 0
    until: float = 0.0
    last: float = 0.0


class LoginThrottle:
    """Waits after wrong passwords: five are free, then each doubles the wait, up to a minute.

    Behind a tunnel everybody has the same address, so addresses count for nothing: all strangers share one wait, and a
    browser in which the password was right before has its own (OWASP's device cookies). So a flood of wrong passwords
    keeps out strangers only; the owner on a new device waits, or takes a one-time link from the terminal.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tries: OrderedDict[str, _Tries] = OrderedDict()

    def begin(self, who: str = STRANGERS) -> float:
        """Ask to try a password: 0.0 to go on, else the seconds to wait.

        The try counts as a wrong one until `right` is called, so that a hundred at the same moment are not free.
        """
        moment = self._clock()
        with self._lock:
            tries = self._tries.setdefault(who, _Tries())
            self._tries.move_to_end(who)
            while len(self._tries) > MOST_BUCKETS:
                # never the strangers' own
                self._tries.pop(next(name for name in self._tries if name != STRANGERS))
            if moment - tries.last > FORGET_SECONDS:
                tries.failed = 0
            if moment < tries.until:
                return tries.until - moment
            tries.last = moment
            tries.failed += 1
            over = tries.failed - FREE_TRIES
            if over >= 0:
                tries.until = moment + min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(over, 10))
            return 0.0

    def right(self, who: str = STRANGERS) -> None:
        """The password was right: what went wrong before is forgotten."""
        with self._lock:
            self._tries.pop(who, None)
