"""Imports gradio in about half its usual time, with analytics off. Import this module before any other of `ui`.

Does not change how gradio behaves afterwards.
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
if "gradio" not in sys.modules:
    with _without_stub_files():
        import gradio as _gradio  # noqa: F401  (imported for its effect: later imports find it loaded)
