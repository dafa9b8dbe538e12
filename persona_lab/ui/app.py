"""Builds the page and serves it. The process that runs this never imports torch."""

from __future__ import annotations

import argparse
import html
import json
import shutil
import signal
import sys
import threading
import time
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
    sharing_tab,
    studio_tab,
    train_tab,
)
from persona_lab.ui.door import Door
from persona_lab.ui.follow import Follower
from persona_lab.ui.gate import Gate, user_of
from persona_lab.ui.html import size
from persona_lab.ui.mended_script import MendedScript
from persona_lab.ui.notices import error_box
from persona_lab.ui.page import QUIET, Page, persona_choices, remembered_choice
from persona_lab.ui.run_panel import IDLE_SECONDS
from persona_lab.ui.server import (
    LOOPBACK,
    ClosedWindows,
    credentials,
    free_port,
    needs_login,
    origin_of,
    refuse_vibe_mode,
)
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
    sharing_tab,
    settings_tab,
)
UPLOAD_LIMIT = "256mb"
QUEUE_LIMIT = 64
CACHE_SECONDS = 24 * 3600
MOST_WINDOWS = 100
"""Of how many browser windows, the last used ones, gradio keeps what it holds of each: a copy of the page's settings,
which it never lets go of by itself when a window is closed or reloaded (6.31; its own limit is 10,000)."""
STOP_SECONDS = 0.2
CLOSING_SECONDS = 2

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


def build_page(engine: Engine, door: Door | None = None) -> tuple[gr.Blocks, Page]:
    """The whole page over an open engine; `door`: of the page that is served."""
    with Lab(title="Persona Lab", fill_width=True, delete_cache=(3600, CACHE_SECONDS)) as demo:
        with gr.Row(elem_classes=["pl-top"]):
            gr.HTML(_banner(engine), elem_classes=["pl-banner"])
            persona = gr.Dropdown(
                persona_choices(engine), value=None, label="Character", elem_id="persona", min_width=220, scale=0
            )
        remembered = gr.BrowserState(None, storage_key="persona-lab.persona", secret="persona-lab")
        browser = gr.BrowserState(None, storage_key="persona-lab.browser", secret="persona-lab")
        # only carries what the browser remembers to the first answer
        open_tab = gr.Textbox(label="The tab that was open", visible=False)
        wanted_run = gr.State("")
        timer = gr.Timer(IDLE_SECONDS)
        with gr.Tabs(elem_id="tabs") as tabs:
            page = Page(engine, demo, persona, tabs, timer, Follower(engine.events), browser, wanted_run, door)
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
    public_url: str = "",
) -> None:
    """Open the home, serve the page until Ctrl-C or TERM, and close everything.

    Args:
        public_url: where a proxy or tunnel of the user's own shows the page.

    Raises:
        PersonaLabError: the page cannot be started like this.
    """
    refuse_vibe_mode()
    account = credentials()
    login = needs_login(host, share, public_url)
    origins = (origin_of(public_url),) if public_url else ()
    chosen_port = free_port(host, port)
    # a list, not an Event: the handler runs in this thread, which may hold the Event's lock at that moment
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: asked.append(number))
    with Engine.open(home, tabs=True) as engine:
        door = Door(engine, login, account, origins)
        demo, page = build_page(engine, door)
        try:
            url = _launch(demo, door, host, chosen_port, share, debug)
            _tell(door, share)
            print(f"Persona Lab is ready at {url}", flush=True)
            door.store.publish(door.address if login else "")
            if open_browser:
                # the owner's own browser need not ask for the password that stands in the terminal
                _open_browser(f"{url}/login?ticket={door.signing.ticket()}" if login else url)
            while not asked:
                time.sleep(STOP_SECONDS)
        finally:
            door.closing = True
            door.store.publish("")
            engine.stop_chat()
            demo.close(verbose=False)
            shutil.rmtree(page.downloads, ignore_errors=True)


def _launch(demo: gr.Blocks, door: Door, host: str, port: int, share: bool, debug: bool) -> str:
    """Serve; gives the address on this machine. What others use is in `door.origins`."""
    demo.queue(max_size=QUEUE_LIMIT, default_concurrency_limit=4, api_open=False)
    gate = Middleware(Gate, door=door, loopback=host in LOOPBACK)
    guards = [gate, Middleware(ClosedWindows), Middleware(MendedScript)]
    _, local, shared = demo.launch(
        server_name=host,
        server_port=port,
        share=share,
        auth_dependency=user_of if door.login else None,
        theme=build_theme(),
        css_paths=style_sheet(),
        head=HEAD,
        prevent_thread_lock=True,
        quiet=True,
        show_error=debug,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=MOST_WINDOWS,
        max_file_size=UPLOAD_LIMIT,
        footer_links=["settings"],
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None, "middleware": guards},
    )
    door.local = local.rstrip("/")
    # guests wait in streams that do not end by themselves
    demo.server.config.timeout_graceful_shutdown = CLOSING_SECONDS
    door.started = True
    if shared:
        door.origins = (shared.rstrip("/").lower(), *door.origins)
    return door.local


def _tell(door: Door, share: bool) -> None:
    """What somebody who shares the page has to know, on standard error."""
    if not door.login:
        return
    said = []
    if share and not door.origins:
        said.append(
            "The share link could not be made: gradio's tunnel needs a program that it fetches from the internet, and "
            "that did not work. The page runs on this machine all the same. Other ways to let people in, each with its "
            "command, are in docs/sharing.md: a reverse proxy, or an SSH tunnel, both with --public-url."
        )
    if door.origins:
        said.append(f"Others reach it at {door.address}")
    if door.account:
        said.append(f"Log in as {door.user}, with the password in PERSONA_LAB_AUTH.")
    elif password := door.store.first_password():
        said.append(f"Your password is {password} and it is shown this once: keep it.")
    else:
        said.append("Log in with your password; `persona-lab share password` makes a new one.")
    print("\n".join(said), file=sys.stderr, flush=True)


def _open_browser(url: str) -> None:
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description="Start the Persona Lab page.")
    parser.add_argument("--home", help="where data lives (else PERSONA_LAB_HOME, else the user-data folder)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; with others than loopback it asks for a password"
    )
    parser.add_argument("--port", type=int, help="port; 0 for any free one (default: 7860 or the next free one)")
    parser.add_argument("--share", action="store_true", help="make a public link; the page asks for a password then")
    parser.add_argument("--public-url", default="", help="where a proxy or tunnel of your own shows the page")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """`python app.py`: the exit code. Errors are one paragraph on standard error, unless --debug."""
    options = _arguments(argv)
    try:
        serve(
            options.home, options.host, options.port, options.share, not options.no_browser, options.debug,
            options.public_url,
        )  # fmt: skip
    except PersonaLabError as error:
        if options.debug:
            traceback.print_exc()
        print(f"persona-lab: {error}", file=sys.stderr)
        return error.exit_code
    return 0
