"""The Plugins tab: what is installed, what failed and why, and where to drop more."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from persona_lab.types import PluginInfo
from persona_lab.ui.html import chip, empty, esc, table
from persona_lab.ui.page import Page

TONES = {"ok": "good", "failed": "bad", "disabled": "warn"}


def build(page: Page) -> None:
    """Create the tab."""
    infos = page.engine.plugin_infos()
    with gr.Tab("Plugins", id="plugins"):
        gr.Markdown(
            "### What Persona Lab is made of\nStrategies, evaluators, readers, exporters and tabs are all plugins. "
            f"Drop a `.py` file into `{page.engine.home.plugins}` or install a package, then start Persona Lab again."
        )
        gr.HTML(plugin_table(infos), elem_id="plugins")
        troubled = [info for info in infos if info.details]
        with gr.Accordion(f"Tracebacks, for authors ({len(troubled)})", open=False, visible=bool(troubled)):
            for info in troubled:
                gr.Textbox(
                    info.details, label=f"{info.id}: {info.problem}"[:160], lines=6, max_lines=20, interactive=False
                )


def plugin_table(infos: Sequence[PluginInfo]) -> str:
    """Problems first; a plugin that works but slows the start has its note beside it."""
    if not infos:
        return empty(
            "No plugins", "Not even the built-in ones: the installation is damaged. Install Persona Lab again."
        )
    body = [
        [
            f"<b>{esc(info.title or info.id)}</b><br><span class='pl-soft'>{esc(info.id)}</span>",
            esc(info.kind or "–"),
            chip(info.status, TONES.get(info.status, "")),
            f"{esc(info.source)}<br><span class='pl-soft'>{esc(f'{info.distribution} {info.version}'.strip())}</span>",
            esc(info.problem),
        ]
        for info in sorted(infos, key=lambda info: info.status == "ok")
    ]
    return table(["Plugin", "Kind", "State", "From", "Problem"], body, "Plugins")
