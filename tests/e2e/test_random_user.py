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

import pytest
from playwright.sync_api import Error, Locator, Page

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ACTIONS = 200
SEED = int(os.environ.get("PERSONA_LAB_RANDOM_SEED", "20261124"))
PATIENCE = 1500
COSTLY = re.compile(
    r"start training|train now|^train\b|evaluate$|fetch|generate|^export|measure|calibrate|resume|go on|send|"
    r"regenerate|continue|delete$|share|download|card as|settings$|make a zip|make the file|use via|record|vote|"
    r"look again|merge",
    re.IGNORECASE,
)
TEXTS = ("", "hello", "-1", "1e9", "<b>x</b>", "a" * 300, "{{char}} ümlaut 🙂", "0.5", "null", "../../etc")
TROUBLE = re.compile(r"Traceback|A handler of the page failed|Exception in|ERROR:")


class User:
    """Somebody who presses whatever is there."""

    def __init__(self, page: Page, seed: int) -> None:
        self.page = page
        self.chance = random.Random(seed)
        self.done: list[str] = []

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
        found = [one for one in self.page.locator(selector).locator("visible=true").all() if one.is_enabled()]
        self.chance.shuffle(found)
        for one in found[:12]:
            words = f"{one.inner_text()} {one.get_attribute('aria-label') or ''}".strip()
            if refuse is None or not refuse.search(words.split("\n")[0]):
                return one
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
        one.click(timeout=PATIENCE)
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
        one.click(timeout=PATIENCE)
        return one.get_attribute("name") or "box"

    def choose(self) -> str:
        box = self._one("input[role=listbox], [role=combobox], input[aria-haspopup]")
        if box is None:
            return "nothing there"
        box.click(timeout=PATIENCE)
        option = self._one("[role=option]")
        chosen = self._click(option)
        self.page.keyboard.press("Escape")
        return chosen

    def pick(self) -> str:
        return self._click(self._one("[data-id]"))

    def reload(self) -> str:
        self.page.reload()
        self.page.locator("#tabs").wait_for()
        return self.page.url

    def back(self) -> str:
        self.page.go_back()
        if "127.0.0.1" not in self.page.url:  # before the first page there is nothing of ours
            self.page.go_forward()
        self.page.locator("#tabs").wait_for()
        return self.page.url


def test_two_hundred_actions_break_nothing(app: App, new_page: Callable[[str], Any]) -> None:
    page = new_page(app.start())
    page.locator("#tabs").wait_for()
    page.on("dialog", lambda dialog: dialog.dismiss())
    user = User(page, SEED)
    for _ in range(ACTIONS):
        user.act()
    page.wait_for_timeout(1000)
    log = app.log.read_text()
    trouble = TROUBLE.search(log)
    shown = log[max(0, trouble.start() - 200) : trouble.start() + 3000] if trouble else ""
    assert not trouble, f"after {user.done[-30:]}:\n{shown}"
    gone = sum("gone" in done or "nothing there" in done for done in user.done)
    assert gone < ACTIONS / 3, f"too few of the actions did anything: {user.done}"
    page.context.close()
    assert app.stop() == 0
