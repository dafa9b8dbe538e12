"""How far a long import is: readers tick, whoever asked watches, and may stop it by raising Cancelled.

The watcher is kept in a context variable, so that readers (plugins too) need no further argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Watcher = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done (0 .. 1)."""
EVERY = 512
_Item = TypeVar("_Item")
_WATCHER: ContextVar[Watcher | None] = ContextVar("persona_lab_import_watcher", default=None)


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """While it is open, `tick` calls `watcher`, which may raise Cancelled."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def tick(doing: str, share: float) -> None:
    """Say how far it is. Cheap where nobody watches.

    Raises:
        Cancelled: whoever watches wants no more of it.
    """
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(doing, min(max(share, 0.0), 1.0))


def ticking(items: Iterable[_Item], count: int, doing: str) -> Iterator[_Item]:
    """The items one by one, with a tick every 512."""
    for number, item in enumerate(items):
        if number % EVERY == 0:
            tick(doing, number / max(count, 1))
        yield item
