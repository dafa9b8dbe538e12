"""Builds the page and serves it. The process that runs this never imports torch."""

from __future__ import annotations

import argparse
import html
import json
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from persona_lab.errors import PersonaLabError
from persona_lab.ui import quick_gradio  # noqa: F401  (first: it halves the time gradio takes to import)

# isort: split
import gradio as gr
from starlette.middleware import Middleware

from persona_lab.chats.records import new_id
from persona_lab.engine import Engine
from persona_lab.ui import (
    chat_tab,
    data_tab,
    evaluate_tab,
    export_tab,
    home_tab,
    personas_tab,
    plugins_tab,
    settings_tab,
    studio_tab,
    train_tab,
)
from persona_lab.ui.follow import Follower
from persona_lab.ui.html import size
from persona_lab.ui.mended_script import MendedScript
from persona_lab.ui.notices import error_box
from persona_lab.ui.page import QUIET, Page, persona_choices, remembered_choice
from persona_lab.ui.run_panel import IDLE_SECONDS
from persona_lab.ui.server import LOOPBACK, ClosedWindows, OriginGuard, credentials, free_port, refuse_vibe_mode
from persona_lab.ui.theme import HEAD, build_theme, style_sheet

# In the order of the page.
TABS = (
    home_tab,
    personas_tab,
    data_tab,
    train_tab,
    evaluate_tab,
    chat_tab,
    studio_tab,
    export_tab,
    plugins_tab,
    settings_tab,
)
UPLOAD_LIMIT = "256mb"
QUEUE_LIMIT = 64
CACHE_SECONDS = 24 * 3600

# A reload comes back to the tab that was open. Gradio selects the first tab while the page is built, too: that one does
# not count, or a slow browser would forget the tab before it is asked for it.
REMEMBER_TAB = "() => { if (window.personaLabOpen) localStorage.setItem('persona-lab.tab', %s); }"
REMEMBERED_TAB = "() => localStorage.getItem('persona-lab.tab') || ''"
TAB_IS_OPEN = "() => { window.personaLabOpen = true; }"


class Lab(gr.Blocks):
    """Gradio's page, which writes no traceback for what it refuses of a visitor: a number out of bounds, a choice that
    is gone because another character was chosen in the same moment. The page says so where it happened."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> Any:
        """As gradio's; its refusals stay out of the log."""
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error as refused:
            refused.print_exception = False
            raise


def build_page(engine: Engine) -> tuple[gr.Blocks, Page]:
    """The whole page over an open engine."""
    with Lab(title="Persona Lab", fill_width=True, delete_cache=(3600, CACHE_SECONDS)) as demo:
        with gr.Row(elem_classes=["pl-top"]):
            gr.HTML(_banner(engine), elem_classes=["pl-banner"])
            persona = gr.Dropdown(
                persona_choices(engine), value=None, label="Character", elem_id="persona", min_width=220, scale=0
            )
        remembered = gr.BrowserState(None, storage_key="persona-lab.persona", secret="persona-lab")
        browser = gr.BrowserState(None, storage_key="persona-lab.browser", secret="persona-lab")
        open_tab = gr.Textbox(visible=False)  # only carries what the browser remembers to the first answer
        wanted_run = gr.State("")
        timer = gr.Timer(IDLE_SECONDS)
        with gr.Tabs(elem_id="tabs") as tabs:
            page = Page(engine, demo, persona, tabs, timer, Follower(engine.events), browser, wanted_run)
            for module in TABS:
                module.build(page)
            _plugin_tabs(engine)
        for tab in tabs.children:
            if isinstance(tab, gr.Tab):
                tab.select(None, None, None, js=REMEMBER_TAB % json.dumps(tab.id), api_visibility="private")
        demo.load(
            lambda tab: gr.Tabs(selected=tab) if tab else gr.skip(), open_tab, tabs, js=REMEMBERED_TAB, **QUIET
        ).then(None, None, None, js=TAB_IS_OPEN)
        demo.load(lambda known: remembered_choice(engine, known), remembered, persona, **QUIET)
        demo.load(lambda known: known or {"id": new_id(), "chats": {}}, browser, browser, **QUIET)
        persona.change(lambda chosen: chosen if chosen else gr.skip(), persona, remembered, **QUIET)
    return demo, page


def _banner(engine: Engine) -> str:
    machine = engine.machine()
    words = [machine.device_name or machine.device.upper(), f"{size(machine.memory_bytes)} memory"]
    if machine.device == "cpu":
        words.insert(1, f"{machine.cores} cores")
    return (
        '<div class="pl-brand"><span class="pl-logo" aria-hidden="true">❝</span><div><h1>Persona Lab</h1>'
        f"<p>Make a character. Prove it. · {html.escape(' · '.join(words))}</p></div></div>"
    )


def _plugin_tabs(engine: Engine) -> None:
    """Tabs of plugins; one that raises shows its error in its own place (the plugin border, so the broad catch)."""
    for part in engine.plugins.all("tab"):
        with gr.Tab(part.title, id=f"plugin-{part.id}"):
            try:
                part.build(engine)
            except Exception as error:  # noqa: BLE001
                gr.HTML(error_box(error))
                with gr.Accordion("Traceback, for the plugin's author", open=False):
                    gr.Code(traceback.format_exc(), language=None, label="Traceback")


def serve(
    home: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    open_browser: bool = True,
    debug: bool = False,
) -> None:
    """Open the home, serve the page until Ctrl-C or TERM, and close everything.

    Raises:
        PersonaLabError: the page cannot be started like this.
    """
    refuse_vibe_mode()
    auth = credentials(host, share)
    chosen_port = free_port(host, port)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    with Engine.open(home, tabs=True) as engine:
        demo, page = build_page(engine)
        try:
            url = _launch(demo, host, chosen_port, share, auth, debug)
            print(f"Persona Lab is ready at {url}", flush=True)
            if open_browser:
                _open_browser(url)
            while not stop.wait(0.5):
                pass
        finally:
            engine.stop_chat()
            demo.close(verbose=False)
            shutil.rmtree(page.downloads, ignore_errors=True)


def _launch(demo: gr.Blocks, host: str, port: int, share: bool, auth: tuple[str, str] | None, debug: bool) -> str:
    demo.queue(max_size=QUEUE_LIMIT, default_concurrency_limit=4, api_open=False)
    guard = Middleware(OriginGuard, loopback=host in LOOPBACK and not share)
    _, local, shared = demo.launch(
        server_name=host,
        server_port=port,
        share=share,
        auth=auth,
        theme=build_theme(),
        css_paths=style_sheet(),
        head=HEAD,
        prevent_thread_lock=True,
        quiet=True,
        show_error=debug,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        max_file_size=UPLOAD_LIMIT,
        footer_links=["settings"],
        app_kwargs={
            "openapi_url": None,
            "docs_url": None,
            "redoc_url": None,
            "middleware": [guard, Middleware(ClosedWindows), Middleware(MendedScript)],
        },
    )
    if share and not shared:
        raise PersonaLabError(
            "The share link could not be made.", "Gradio's tunnel needs the internet; try again or leave --share out."
        )
    return (shared or local).rstrip("/")


def _open_browser(url: str) -> None:
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description="Start the Persona Lab page.")
    parser.add_argument("--home", help="where data lives (else PERSONA_LAB_HOME, else the user-data folder)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than loopback need a password"
    )
    parser.add_argument("--port", type=int, help="port; 0 for any free one (default: 7860 or the next free one)")
    parser.add_argument("--share", action="store_true", help="make a public link; needs PERSONA_LAB_AUTH=user:password")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """`python app.py`: the exit code. Errors are one paragraph on standard error, unless --debug."""
    options = _arguments(argv)
    try:
        serve(options.home, options.host, options.port, options.share, not options.no_browser, options.debug)
    except PersonaLabError as error:
        if options.debug:
            traceback.print_exc()
        print(f"persona-lab: {error}", file=sys.stderr)
        return error.exit_code
    return 0
