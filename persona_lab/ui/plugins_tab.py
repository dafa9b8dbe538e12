"""The Plugins tab: what is installed, what failed and why, what is blocked, and how to add one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from persona_lab.plugins import Plugins
from persona_lab.types import PluginInfo
from persona_lab.ui.html import chip, empty, esc, plural, table
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page

TONES = {"ok": "good", "failed": "bad", "disabled": "warn"}
KINDS = (
    ("All", ""),
    ("Strategies", "strategy"),
    *((f"{kind.capitalize()}s", kind) for kind in ("evaluator", "reader", "exporter", "tab")),
)
EXAMPLE = '''"""A strategy of your own: the first lines of the data, as examples. Save it as first_lines.py."""

from persona_lab.api import Artifact, Estimate, Strategy, hookimpl


class FirstLines(Strategy):
    id = "first_lines"
    title = "First lines"
    summary = "The first lines of the data, as examples in the prompt."

    def estimate(self, config, base, dataset, machine):
        return Estimate(trainable_parameters=0, peak_memory_bytes=0, seconds=1, disk_bytes=0)

    def train(self, job, ctx):
        ctx.phase("Taking the first lines", 1)
        return Artifact(kind="prompt", path="", examples=ctx.dataset.of("train")[:4])


@hookimpl
def persona_lab_strategies():
    return [FirstLines]
'''


def build(page: Page) -> None:
    """Create the tab."""
    _Tab(page)


class _Tab:
    """A filter, problems on top, the table, and how to add one."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Tab("Plugins", id="plugins") as tab:
            gr.Markdown(
                "### What Persona Lab is made of\nStrategies, evaluators, readers, exporters and tabs are all plugins."
            )
            with gr.Row(equal_height=False):
                self.kind = gr.Radio(list(KINDS), value="", label="Show", elem_id="plugin-kind", scale=4)
                look = gr.Button("Look again", size="sm", scale=1, min_width=110, elem_id="plugins-look")
            self.problems = gr.HTML(elem_id="plugin-problems")
            self.table = gr.HTML(elem_id="plugins")
            with gr.Accordion("Block a plugin", open=False, visible=False) as self.box:
                self.blocked = gr.CheckboxGroup(
                    [], label="Not loaded", info="Takes effect when Persona Lab starts again. Built-in ones stay.",
                    elem_id="plugins-blocked",
                )  # fmt: skip
            with gr.Accordion("Add one", open=False):
                gr.Markdown(
                    f"Drop a `.py` file into `{page.engine.home.plugins}`, or install a package that has an entry "
                    "point in the group `persona_lab`. Press **Look again** to see whether it loads, then start "
                    "Persona Lab again to use it. A plugin runs with all your rights: take only those you trust."
                )
                gr.Code(EXAMPLE, language="python", label="A whole plugin", interactive=False)
        shown = [self.problems, self.table, self.box, self.blocked]
        gr.on([tab.select, page.demo.load], guarded(4)(self._own), self.kind, shown, **QUIET)
        self.kind.change(guarded(4)(self._own), self.kind, shown, **QUIET)
        look.click(guarded(4)(self._again), self.kind, shown, **QUIET)
        self.blocked.input(guarded(1)(self._block), self.blocked, self.blocked, **QUIET)

    def _own(self, kind: str) -> list[Any]:
        """What this page works with."""
        return self._drawn(self.page.engine.plugins, kind)

    def _again(self, kind: str) -> list[Any]:
        """What would be there after a new start."""
        found = Plugins.load(self.page.engine.home.plugins, tabs=True)
        failed = sum(info.status == "failed" for info in found.infos())
        gr.Info("Everything loads." if not failed else f"{plural(failed, 'plugin part')} failed; see below.")
        return self._drawn(found, kind)

    def _drawn(self, plugins: Plugins, kind: str) -> list[Any]:
        infos = [info for info in plugins.infos() if kind in ("", info.kind or "")]
        blocked = list(self.page.engine.preferences.blocked_plugins)
        names = sorted({o.name for o in plugins.origins.values() if o.source != "built-in"} | set(blocked))
        failed = {info.title for info in plugins.problems if info.source != "built-in"}
        choices = sorted({*names, *failed})
        return [
            problem_list(infos),
            plugin_table(infos),
            gr.update(visible=bool(choices)),
            gr.update(choices=choices, value=blocked),
        ]

    def _block(self, names: list[str]) -> Any:
        self.page.engine.set_preferences(blocked_plugins=tuple(names or ()))
        gr.Info("Saved. It takes effect when Persona Lab starts again.")
        return gr.skip()


def problem_list(infos: Sequence[PluginInfo]) -> str:
    """What failed: where it came from, why, and the traceback for its author."""
    boxes = []
    for info in (info for info in infos if info.status == "failed"):
        trace = (
            f"<details><summary>Traceback, for its author</summary><pre>{esc(info.details)}</pre></details>"
            if info.details
            else ""
        )
        origin = " · ".join(part for part in (info.source, f"{info.distribution} {info.version}".strip()) if part)
        boxes.append(
            f'<div class="pl-box pl-bad" role="alert"><strong>{esc(info.id)} was not loaded</strong>'
            f'<p>{esc(info.problem)}</p><p class="pl-soft">{esc(origin)}</p>{trace}</div>'
        )
    return "".join(boxes)


def plugin_table(infos: Sequence[PluginInfo]) -> str:
    """Problems first; a plugin that works but slows the start has its note beside it."""
    if not infos:
        return empty("No plugins of this kind", "Add one as described below, or show all.")
    body = [
        [
            f"<b>{esc(info.title or info.id)}</b><br><span class='pl-soft'>{esc(info.id)}</span>",
            esc(info.kind or "–"),
            chip(info.status, TONES.get(info.status, "")),
            f"{esc(info.source)}<br><span class='pl-soft'>{esc(f'{info.distribution} {info.version}'.strip())}</span>",
            esc(info.problem if info.status != "failed" else "see above"),
        ]
        for info in sorted(infos, key=lambda info: info.status == "ok")
    ]
    return table(["Plugin", "Kind", "State", "From", "Note"], body, plural(len(infos), "part"))
