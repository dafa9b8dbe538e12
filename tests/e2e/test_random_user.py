"""Two hundred random actions on the page: click, type, choose, reload, go back. Nothing may break, nothing may leave.

Seeded, so that a failure can be played again: PERSONA_LAB_RANDOM_SEED=N. What costs minutes (training, evaluating,
fetching) and what ends the test (deleting the only home there is) is left out by the names on the buttons.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Error, Locator, Page

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ACTIONS = 200
SEED = int(os.environ.get("PERSONA_LAB_RANDOM_SEED", "20261124"))
PATIENCE = 4000
COSTLY = re.compile(
    r"start training|train now|^train\b|evaluate$|fetch|generate|^export|measure|calibrate|resume|go on|send|"
    r"regenerate|continue|delete$|share|download|card as|settings$|make a zip|make the file|use via|record|vote|"
    r"look again|merge",
    re.IGNORECASE,
)
TEXTS = ("", "hello", "-1", "1e9", "<b>x</b>", "a" * 300, "{{char}} ümlaut 🙂", "0.5", "null", "../../etc")
# every element that can be used, in one question: [place among all of its kind, first line of its words]
VISIBLE = """(selector) => [...document.querySelectorAll(selector)]
  .map((one, place) => [place, one])
  .filter(([_, one]) => !one.disabled && one.checkVisibility({checkVisibilityCSS: true, checkOpacity: true}))
  .map(([place, one]) => [place, (one.innerText || one.getAttribute('aria-label') || '').trim().split('\\n')[0]])"""
# what gradio says when a page is left while it still waits for an answer
CUT_OFF = re.compile(r"AbortError|Connection errored out")
GRADIOS_OWN = re.compile(r"Cannot read properties of undefined \(reading 'role'\)")
"""Gradio 6.31's chatbot, about once in several hundred actions: it draws a message that is being taken away."""
TROUBLE = re.compile(r"Traceback|A handler of the page failed|Exception in|ERROR:")


class User:
    """Somebody who presses whatever is there."""

    def __init__(self, page: Page, seed: int) -> None:
        self.page = page
        self.chance = random.Random(seed)
        self.done: list[str] = []
        self.errors: list[str] = []
        self.leaving = False

    def act(self) -> None:
        """One action; an element that went away meanwhile is no error, it counts as tried."""
        kind = self.chance.choices(
            (self.tab, self.press, self.type, self.tick, self.choose, self.pick, self.reload, self.back),
            (24, 26, 18, 12, 12, 8, 2, 2),
        )[0]
        try:
            self.done.append(f"{kind.__name__}: {kind()}")
        except Error as error:
            self.done.append(f"{kind.__name__}: gone ({str(error).splitlines()[0][:80]})")
        self.page.wait_for_timeout(self.chance.choice((0, 20, 60)))

    def _one(self, selector: str, refuse: re.Pattern[str] | None = None) -> Locator | None:
        found = self.page.evaluate(VISIBLE, selector)
        self.chance.shuffle(found)
        for place, words in found:
            if refuse is None or not refuse.search(words):
                return self.page.locator(selector).nth(place)
        return None

    def tab(self) -> str:
        one = self._one("[role=tab]")
        return self._click(one)

    def press(self) -> str:
        return self._click(self._one("button:not([role=tab]):not([role=option])", COSTLY))

    def _click(self, one: Locator | None) -> str:
        if one is None:
            return "nothing there"
        words = one.inner_text()[:40].strip() or one.get_attribute("aria-label") or "?"
        one.click(timeout=PATIENCE, force=True)
        return words

    def type(self) -> str:
        one = self._one("textarea, input[type=text], input[type=number], input:not([type])")
        if one is None:
            return "nothing there"
        text = self.chance.choice(TEXTS)
        if one.get_attribute("type") == "number":
            text = self.chance.choice(("0", "3", "-1", "99999", "0.5"))
        one.fill(text, timeout=PATIENCE)
        one.blur(timeout=PATIENCE)
        return text[:20]

    def tick(self) -> str:
        one = self._one("input[type=checkbox], input[type=radio]")
        if one is None:
            return "nothing there"
        one.click(timeout=PATIENCE, force=True)
        return one.get_attribute("name") or "box"

    def choose(self) -> str:
        box = self._one("input[role=listbox], [role=combobox], input[aria-haspopup]")
        if box is None:
            return "nothing there"
        box.click(timeout=PATIENCE, force=True)
        option = self._one("[role=option]")
        chosen = self._click(option)
        self.page.keyboard.press("Escape")
        return chosen

    def pick(self) -> str:
        return self._click(self._one("[data-id]"))

    def reload(self) -> str:
        return self._leave(self.page.reload)

    def back(self) -> str:
        return self._leave(self.page.go_back)

    def _leave(self, go: Callable[[], Any]) -> str:
        self.leaving = True
        go()
        if "127.0.0.1" not in self.page.url:  # before the first page there is nothing of ours
            self.page.go_forward()
        self.page.locator("#tabs").wait_for()
        self.page.wait_for_timeout(300)
        self.leaving = False
        return self.page.url

    def heard(self, said: str) -> None:
        """An error in the browser's console; leaving a page cuts its requests off, which is no error of ours."""
        if not (self.leaving and CUT_OFF.search(said)):
            self.errors.append(f"{said} (after {self.done[-3:]})")

    def asked(self, url: str) -> None:
        """A request: it must stay on this machine."""
        address = urlsplit(url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.errors.append(f"a request left this machine: {url}")


def test_two_hundred_actions_break_nothing(app: App, chromium: Any) -> None:
    url = app.start()
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(60_000)
    user = User(page, SEED)
    page.on("console", lambda said: user.heard(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: user.heard(str(error)))
    page.on("request", lambda request: user.asked(request.url))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.goto(url)
    page.locator("#tabs").wait_for()
    for _ in range(ACTIONS):
        user.act()
    page.wait_for_timeout(1000)
    page.context.close()
    log = app.log.read_text()
    trouble = TROUBLE.search(log)
    shown = log[max(0, trouble.start() - 200) : trouble.start() + 3000] if trouble else ""
    assert not trouble, f"after {user.done[-30:]}:\n{shown}"
    own = [said for said in user.errors if GRADIOS_OWN.search(said)]
    assert len(own) <= 1, own
    user.errors = [said for said in user.errors if said not in own]
    assert not user.errors, f"{user.errors}; the last actions: {user.done[-30:]}"
    gone = sum("gone" in done or "nothing there" in done for done in user.done)
    assert gone < ACTIONS / 2, f"too few of the actions did anything: {user.done}"
    assert app.stop() == 0
