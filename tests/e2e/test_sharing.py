"""A shared page in a real browser: logging in, making a link, a guest's chat and vote, and the pause; no errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from persona_lab.home import Home

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from shared_page import SharedPage, fill

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def shared(home: Home, tiny_model: Path) -> Iterator[SharedPage]:
    fill(home, tiny_model)
    page = SharedPage(home.root, options=(), environment={"PERSONA_LAB_AUTH": "ann:a long secret"})
    page.password = "a long secret"
    yield page.start()
    page.stop()


def test_the_owner_shares_and_a_guest_chats_and_votes(shared: SharedPage, new_page: Callable[[str], Any]) -> None:
    owner = new_page(shared.url)
    expect(owner.get_by_role("heading", name="Persona Lab")).to_be_visible()
    owner.get_by_label("Name").fill("ann")
    owner.get_by_label("Password").fill(shared.password)
    owner.get_by_role("button", name="Log in").click()
    owner.get_by_role("tab", name="Personas", exact=True).click()
    owner.locator(".pl-card[data-id=tam]").click()
    owner.get_by_role("tab", name="Sharing", exact=True).click()
    expect(owner.locator("#sharing-status")).to_contain_text("asks for your password")
    for name in ("Tam 1", "Tam 2"):
        owner.locator("#sharing-variants").get_by_label(re.compile(name)).check()
    owner.locator("#sharing-vote").get_by_role("checkbox").check()
    owner.locator("#sharing-make").click()
    made = owner.locator("#sharing-made textarea, #sharing-made input").first
    expect(made).to_have_value(re.compile(r"^http://127\.0\.0\.1:\d+/g/"))
    expect(owner.locator("#sharing-links")).to_contain_text("chat and vote")

    guest = new_page(made.input_value())
    guest.get_by_role("button", name="Start talking").click()
    expect(guest.get_by_role("heading", name="Tam", exact=True)).to_be_visible()
    expect(guest.locator(".turn.assistant")).to_have_count(2)
    guest.get_by_label("Your message").fill("What time is it? <img src=x onerror=alert(1)>")
    guest.get_by_role("button", name="Send").click()
    guest.get_by_role("button", name="A is better").click(timeout=60_000)
    expect(guest.get_by_role("status")).to_contain_text("your vote counts")
    assert guest.locator(".turn img").count() == 0
    guest.reload()
    expect(guest.locator(".turn.user").first).to_contain_text("<img src=x")

    owner.locator("#sharing-refresh").click()
    expect(owner.locator("#sharing-guests")).to_contain_text("1 guest here")
    owner.locator("#sharing-pause").click()
    expect(owner.locator("#sharing-status")).to_contain_text("paused")
    guest.reload()
    expect(guest.get_by_role("status")).to_contain_text("paused")
    owner.get_by_role("button", name="Go on sharing").click()
    expect(owner.locator("#sharing-status")).to_contain_text("asks for your password")
    owner.locator("#sharing-revoke").click()  # nothing is chosen: a second press must not end another link
    expect(owner.get_by_text("No link is chosen")).to_be_visible()
    owner.locator("#sharing-link input").click()
    owner.get_by_role("option", name="Guests of tam").click()
    owner.locator("#sharing-revoke").click()
    expect(owner.locator("#sharing-links")).to_contain_text("revoked")
    expect(owner.locator("#sharing-guests")).to_contain_text("Nobody is here")


def test_every_tab_works_behind_the_login(shared: SharedPage, new_page: Callable[[str], Any]) -> None:
    """The content security policy of the lab stops nothing that it needs; `new_page` fails on what it stops."""
    path = shared.share("login-link")["path"]
    owner = new_page(f"{shared.url}{path}")
    for name in ("Personas", "Data", "Train", "Evaluate", "Chat", "Studio", "Export", "Plugins", "Sharing", "Settings"):
        owner.get_by_role("tab", name=name, exact=True).click()
        owner.wait_for_timeout(700)
    owner.get_by_role("tab", name="Personas", exact=True).click()
    owner.locator(".pl-card[data-id=tam]").click()
    owner.get_by_role("tab", name="Chat", exact=True).click()
    owner.get_by_label("Your message").fill("Hello")
    owner.get_by_role("button", name="Send", exact=True).click()
    expect(owner.locator("#chat-1 .pl-stamp").first).to_be_visible(timeout=60_000)
