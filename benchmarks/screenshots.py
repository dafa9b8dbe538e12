"""Takes a picture of every tab: `python benchmarks/screenshots.py [--home DIR] [--out DIR] [--tabs Chat,...]`.

Starts the page in a temporary home (or the one named, with its runs and variants), picks an example character and
writes <tab>.png (1280 x 900), <tab>-dark.png and <tab>-phone.png (390 px wide). Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
TABS = ("Home", "Personas", "Data", "Train", "Evaluate", "Chat", "Plugins")
LOOKS = {"": (1280, 900, "light"), "-dark": (1280, 900, "dark"), "-phone": (390, 844, "light")}


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


def open_page(browser: Browser, url: str, look: str, persona: str) -> Page:
    """A fresh browser session in one of the LOOKS, with this character chosen."""
    width, height, scheme = LOOKS[look]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(f"{url}?__theme={scheme}")
    open_tab(page, "Personas")
    page.locator(f".pl-card[data-id={persona}]").click()
    page.locator(".pl-card.pl-chosen").wait_for()
    page.locator(".pl-details").wait_for()
    return page


def open_tab(page: Page, name: str) -> None:
    """Click a tab, also where it hides in the overflow menu of a narrow page."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name, exact=True)
    tab.click()
    page.wait_for_timeout(1500)


def fill_chat(page: Page, text: str) -> None:
    """Say something, so that the picture shows replies."""
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    page.locator("#chat-2 .pl-stamp").first.wait_for(timeout=180_000)
    page.locator("#chat-1 .pl-stamp").first.wait_for(timeout=180_000)


def main() -> None:
    """Parse the flags and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "screenshots")
    parser.add_argument("--tabs", default=",".join(TABS))
    parser.add_argument("--persona", default="magpie")
    parser.add_argument("--say", default="", help="what to say in the Chat tab before its picture is taken")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as temporary,
        served(options.home or Path(temporary)) as url,
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for look in LOOKS:
            page = open_page(browser, url, look, options.persona)
            for name in options.tabs.split(","):
                open_tab(page, name)
                if name == "Chat" and options.say:
                    fill_chat(page, options.say)
                page.screenshot(path=options.out / f"{name.lower()}{look}.png", full_page=look == "-phone")
                print(options.out / f"{name.lower()}{look}.png", flush=True)
            page.context.close()
        browser.close()


if __name__ == "__main__":
    main()
