"""Takes a picture of every tab: `python benchmarks/screenshots.py [--home DIR] [--out DIR] [--tabs Chat,...]`.

Starts the page in a temporary home (or the one named, with its runs and variants), chooses a character and writes
<tab>.png (1280 x 900), <tab>-dark.png and <tab>-phone.png (390 px wide, the whole page) of every tab the page has, and
of the tabs inside the Studio. With `--say`, something is said in the Chat tab before its picture. Pictures have 256
colours and are made smaller until they weigh less than 200 KB. Ends with an error if the browser's console had one
or a request left this machine. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("PERSONA_LAB_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
LOOKS = {"": (1280, 900, "light"), "-dark": (1280, 900, "dark"), "-phone": (390, 844, "light")}
INNER = {"Studio": ("Results", "Prompts", "Styles")}
"""Tabs inside a tab; the first one of each needs no click."""
MOST_BYTES = 200_000
MOST_HEIGHT = 3200
SETTLE_MILLISECONDS = 1500


@contextmanager
def served(home: Path) -> Iterator[str]:
    """The page's address, while it runs."""
    command = [sys.executable, str(REPOSITORY / "app.py"), "--home", str(home), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"ready at (http://\S+)", line)
            if found:
                yield found[1]
                return
        raise SystemExit("The page did not start; its message is above.")
    finally:
        process.terminate()
        process.wait(20)


class Watch:
    """Remembers what should not happen in a browser."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def follow(self, page: Page) -> None:
        """Listen to a page."""
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self._left(request.url))

    def _left(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.problems.append(f"a request left this machine: {url}")


def open_page(browser: Browser, url: str, look: str, persona: str, watch: Watch) -> Page:
    """A fresh browser session in one of the LOOKS, with this character chosen."""
    width, height, scheme = LOOKS[look]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    watch.follow(page)
    page.goto(f"{url}?__theme={scheme}")
    choose(page, persona)
    return page


def choose(page: Page, persona: str) -> None:
    """Choose a character in the list at the top of every page, by the name it shows."""
    box = page.locator("#persona input")
    box.wait_for(timeout=30_000)
    wanted = re.compile(re.escape(persona.replace("_", " ")), re.IGNORECASE)
    for _ in range(5):  # what the page remembers may arrive after the choice and take it back
        page.wait_for_timeout(SETTLE_MILLISECONDS)
        if wanted.search(box.input_value()):
            return
        box.click()
        page.get_by_role("option", name=wanted).first.click()
    raise SystemExit(f"The character {persona!r} could not be chosen.")


def tab_names(page: Page) -> list[str]:
    """The tabs of the page, in their order, also those that a narrow page hides in a menu."""
    names = page.evaluate(
        """() => { const first = document.querySelector('#tabs .tab-wrapper');
                   const tabs = first ? first.querySelectorAll('[role=tab], .overflow-dropdown button') : [];
                   return [...tabs].map((tab) => tab.textContent.trim()); }"""
    )
    return list(dict.fromkeys(name for name in names if name))


def open_tab(page: Page, name: str) -> bool:
    """Click a tab, also where it hides in the overflow menu of a narrow page; False if there is no such tab."""
    shown = page.get_by_role("tab", name=name, exact=True).locator("visible=true")
    if shown.count():
        shown.first.click()
    else:
        menu = page.locator(".overflow-menu > button").locator("visible=true")
        if not menu.count():
            return False
        menu.first.click()
        entry = page.locator(".overflow-dropdown").get_by_role("button", name=name, exact=True)
        if not entry.count():
            page.keyboard.press("Escape")
            return False
        entry.first.click()
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    return True


def fill_chat(page: Page, text: str) -> None:
    """Say something, so that the picture shows replies."""
    page.get_by_label("Your message").locator("visible=true").first.fill(text)
    page.get_by_role("button", name="Send", exact=True).locator("visible=true").first.click()
    for pane in (2, 1):
        page.locator(f"#chat-{pane} .pl-stamp").first.wait_for(timeout=180_000)


def take(page: Page, path: Path, whole: bool) -> None:
    """A picture of 256 colours that weighs less than MOST_BYTES."""
    with Image.open(io.BytesIO(page.screenshot(full_page=whole))) as shot:
        picture = shot.convert("RGB").crop((0, 0, shot.width, min(shot.height, MOST_HEIGHT)))
    while True:
        out = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() < MOST_BYTES:
            break
        picture = picture.resize((round(picture.width * 0.85), round(picture.height * 0.85)), Image.Resampling.LANCZOS)
    path.write_bytes(out.getvalue())
    print(f"{path} {out.tell() // 1000} kB", flush=True)


def pictures(page: Page, look: str, out: Path, wanted: list[str], say: str) -> None:
    """Every wanted tab, and the tabs inside it."""
    for name in tab_names(page):
        if (wanted and name not in wanted) or not open_tab(page, name):
            continue
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        if name == "Chat" and say:
            fill_chat(page, say)
        take(page, out / f"{stem}{look}.png", look == "-phone")
        for inner in INNER.get(name, ()):
            if open_tab(page, inner):
                take(page, out / f"{stem}-{inner.lower()}{look}.png", look == "-phone")


def main() -> None:
    """Parse the flags and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "screenshots")
    parser.add_argument("--tabs", default="", help="names, separated by commas; default: all")
    parser.add_argument("--looks", default=",".join(LOOKS), help="of '', -dark and -phone, separated by commas")
    parser.add_argument("--persona", default="magpie", help="the character to choose, by name")
    parser.add_argument("--say", default="", help="what to say in the Chat tab before its picture is taken")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [name.strip() for name in options.tabs.split(",") if name.strip()]
    watch = Watch()
    with (
        tempfile.TemporaryDirectory() as temporary,
        served(options.home or Path(temporary)) as url,
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for look in (look.strip() for look in options.looks.split(",")):
            page = open_page(browser, url, look, options.persona, watch)
            pictures(page, look, options.out, wanted, options.say)
            page.context.close()
        browser.close()
    if watch.problems:
        raise SystemExit("The browser reported: " + "; ".join(dict.fromkeys(watch.problems)))


if __name__ == "__main__":
    main()
