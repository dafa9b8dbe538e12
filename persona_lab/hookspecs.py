"""The whole plugin contract. A plugin is a module (or package) with some of these functions, each marked `@hookimpl`.

    # <home>/plugins/shout.py, or a package with the entry point  [project.entry-points.persona_lab] shout = "shout"
    from persona_lab.api import hookimpl, Strategy

Import only `persona_lab.api`; everything else in Persona Lab may change without notice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from persona_lab.api import DatasetReader, Evaluator, Exporter, Strategy, Tab
    from persona_lab.events import AnyEvent
    from persona_lab.types import RunView

PROJECT = "persona_lab"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def persona_lab_strategies() -> Iterable[type[Strategy]]:  # type: ignore[empty-body]
    """Ways to make a variant.

    Example:
        @hookimpl
        def persona_lab_strategies():
            return [TinyLoRA]
    """


@hookspec
def persona_lab_evaluators() -> Iterable[type[Evaluator]]:  # type: ignore[empty-body]
    """Ways to score a variant.

    Example:
        @hookimpl
        def persona_lab_evaluators():
            return [ReplyLength]
    """


@hookspec
def persona_lab_dataset_readers() -> Iterable[type[DatasetReader]]:  # type: ignore[empty-body]
    """File formats that can become a dataset.

    Example:
        @hookimpl
        def persona_lab_dataset_readers():
            return [MyForumDump]
    """


@hookspec
def persona_lab_exporters() -> Iterable[type[Exporter]]:  # type: ignore[empty-body]
    """Ways to take a variant elsewhere.

    Example:
        @hookimpl
        def persona_lab_exporters():
            return [MyServerFolder]
    """


@hookspec
def persona_lab_tabs() -> Iterable[type[Tab]]:  # type: ignore[empty-body]
    """Tabs of the page; called by the page only, so this is where gradio may be imported.

    Example:
        @hookimpl
        def persona_lab_tabs():
            from my_plugin.tab import Scrapbook
            return [Scrapbook]
    """


@hookspec
def persona_lab_run_event(run: RunView, event: AnyEvent) -> Any:
    """Watch runs. Called in the parent process, once for each event, in order; what it returns is ignored.

    Example:
        @hookimpl
        def persona_lab_run_event(run, event):
            if event.kind == "done":
                print("finished", run.name)
    """


@hookspec
def persona_lab_guest_text(text: str, role: str, persona: str) -> str | None:
    """Filter what guests of a shared page say and hear.

    Called in the page's process, in a thread: for every message of a guest (`role` is "user") before it is answered,
    and for every whole reply ("assistant") before it is shown. None lets it pass; a sentence is shown in its place.
    One that raises stops everything. `persona` is the character's id. While there is a filter, replies to guests
    appear whole.

    Example:
        @hookimpl
        def persona_lab_guest_text(text, role, persona):
            if "password" in text.lower():
                return "Let us talk about something else."
            return None
    """
