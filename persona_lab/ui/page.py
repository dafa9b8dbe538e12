"""What all tabs share: the engine, the chosen persona, the clock, and a folder for files to download."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from persona_lab.engine import Engine
from persona_lab.ui.door import Door
from persona_lab.ui.follow import Follower
from persona_lab.ui.notices import guarded

# Handlers that only read or only draw: no limit, no progress overlay, not in the API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}


@dataclass
class Page:
    """Handed to each tab's `build`. `persona` holds the id of the chosen character, or None."""

    engine: Engine
    demo: gr.Blocks
    persona: gr.Dropdown
    tabs: gr.Tabs
    timer: gr.Timer
    follower: Follower
    browser: gr.BrowserState
    """{"id": who this browser is, "chats": the last conversation by persona}; outside of the tabs, which mount late."""
    wanted_run: gr.State
    """A gr.State: the id of the run that the Train tab is asked to show, by another tab."""
    door: Door | None = None
    """Who may come in; None where the page is built without being served."""
    downloads: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="persona-lab-")))

    def refresh(self, tab: gr.Tab, fill: Callable[..., Any], outputs: Sequence[Any], also: Sequence[Any] = ()) -> None:
        """Call `fill(persona_id)` whenever the tab is opened, the page is loaded or another persona is chosen.

        Args:
            also: more triggers.
        """
        gr.on(
            [tab.select, self.persona.change, self.demo.load, *also],
            guarded(len(outputs))(fill),
            self.persona,
            list(outputs),
            trigger_mode="always_last",  # gradio drops what comes while an earlier one is answered, by default
            **QUIET,
        )

    def fresh_file(self, name: str) -> Path:
        """A path in a new folder of this process's own, for a file to be downloaded."""
        return Path(tempfile.mkdtemp(dir=self.downloads)) / name


def persona_choices(engine: Engine) -> list[tuple[str, str]]:
    """(name, id) of every persona; names that occur twice show their id."""
    people = engine.personas()
    names = [person.name for person in people]
    return [(f"{p.name} ({p.id})" if names.count(p.name) > 1 else p.name, p.id) for p in people]


def remembered_choice(engine: Engine, persona_id: str | None) -> dict[str, Any]:
    """The update at the page's load: fresh choices, and who was chosen last. Nothing is taken back where nobody was:
    a visitor may have chosen before this answer comes."""
    choices = persona_choices(engine)
    if persona_id in {choice for _, choice in choices}:
        return gr.update(choices=choices, value=persona_id)
    return gr.update(choices=choices)


def choose(engine: Engine, persona_id: str | None) -> dict[str, Any]:
    """An update of the persona dropdown with fresh choices; an id that is gone becomes none."""
    choices = persona_choices(engine)
    known = {choice for _, choice in choices}
    return gr.update(choices=choices, value=persona_id if persona_id in known else None)
