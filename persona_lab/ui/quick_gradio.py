"""Imports gradio in about half its usual time, with analytics off. Import this module before any other of `ui`.

Does not change how gradio's page behaves afterwards.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_stub_files() -> Iterator[None]:
    """Keep gradio from rewriting its `.pyi` stubs, which takes over a second at every import.

    `gradio.component_meta.create_or_modify_pyi` parses each component's source to refresh a stub for editors, and
    skips classes whose file `inspect.getfile` cannot name (OSError). Nothing at run time reads those stubs.
    """
    original = inspect.getfile

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no stub files wanted")
        return original(thing)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = original


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# For its monitoring page, which is off here, gradio 6.31 keeps a record of each of the last 10,000 events, and after
# every event makes a pandas table of all of them (`Queue.compute_analytics_summary`), whatever the switch above says:
# the page would grow with its events, and each would cost more than the one before it.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
if "gradio" not in sys.modules:
    with _without_stub_files():
        import gradio as _gradio  # noqa: F401  (imported for its effect: later imports find it loaded)
