"""The order of the runs that wait: kept in `<home>/queue.json`, so that it outlives the page. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from persona_lab.home import write_atomic


def read_order(path: Path) -> list[str]:
    """Run ids, next first; empty where nothing was kept or the file is damaged (the order is a convenience)."""
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return [item for item in kept if isinstance(item, str)] if isinstance(kept, list) else []


def write_order(path: Path, order: Sequence[str]) -> None:
    """Keep the order.

    Raises:
        DiskFull: the old order is untouched.
    """
    write_atomic(path, json.dumps(list(order)))


def moved(order: Sequence[str], run_id: str, by: int) -> list[str]:
    """The order with one run `by` places later (below 0: sooner), as far as there are places."""
    place = order.index(run_id)
    rest = [other for other in order if other != run_id]
    rest.insert(min(max(place + by, 0), len(rest)), run_id)
    return rest


def in_order(kept: Sequence[str], waiting: Iterable[str]) -> list[str]:
    """Those that wait: first as they were kept, then the others as they come."""
    found = list(waiting)
    first = [run_id for run_id in kept if run_id in found]
    return first + [run_id for run_id in found if run_id not in first]
