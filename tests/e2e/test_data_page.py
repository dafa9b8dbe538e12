"""A log with many speakers becomes a dataset in the page: look, choose, import, check, mend, take back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from persona_lab.home import Home

from .conftest import App
from .test_page import choose_persona, tab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PATIENCE = 60_000

LOG = "\n".join(
    f"[10:{i % 60:02}] <{nick}> {text}"
    for i in range(30)
    for nick, text in (
        ("kim", f"nan: what about the {i}th kettle, the one by the {['door', 'window', 'stove'][i % 3]}?"),
        ("jo", "anybody seen my hat"),
        ("nan", f"kim: the {i}th sings in {['A', 'B', 'C', 'D'][i % 4]}, ask {i * 37}@example.org about it, love"),
    )
)


def counted(page: Page) -> int:
    """Rows with personal data, as the report shows them."""
    return int(page.locator("#quality-report [data-kind=personal_data]").get_attribute("data-count") or 0)


def test_a_chat_log_is_imported_checked_mended_and_taken_back(
    app: App, new_page: Callable[[str], Any], tmp_path: Path, starter_home: Home
) -> None:
    expect.set_options(timeout=PATIENCE)
    log = tmp_path / "room.log"
    log.write_text(LOG)
    page = new_page(app.start())
    page.set_default_timeout(PATIENCE)
    expect(page.locator("#home-path [aria-current=step]")).to_contain_text("Choose a character")
    choose_persona(page, "magpie")
    tab(page, "Data")
    page.get_by_role("button", name="Add conversations from a file").click()
    page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files(log)
    expect(page.locator("#import-look")).to_contain_text("IRC log, because")
    expect(page.locator("#import-look")).to_contain_text("Say above which of them is the character")
    page.locator("#map-assistant input").click()
    page.get_by_role("option", name="nan").click()
    page.get_by_role("button", name="Add these conversations").click()
    expect(page.locator("#import-result")).to_contain_text("Version 2 is ready")
    version = page.locator("#dataset-version input")
    expect(version).to_have_value(re.compile(r"Version 2.*\(in use\)"))
    expect(page.locator("#mask .pl-mask")).to_be_visible()

    page.get_by_label("Cut rows at (tokens)").fill("120")
    page.get_by_label("Cut rows at (tokens)").press("Enter")
    expect(page.locator("#mask [data-cut]")).to_contain_text("tokens are cut off")

    page.get_by_role("button", name="Is anything wrong with it? Check before training").click()
    page.locator("#check-version").click()
    expect(page.locator("#quality-report [data-kind=personal_data]")).to_be_visible()
    assert counted(page) >= 4
    assert page.locator("#quality-plots svg").count() == 2
    page.locator("#quality-report [data-id=personal_data]").click()
    expect(version).to_have_value(re.compile(r"Version 3.*from v2 \(in use\)"))
    expect(page.locator("#conversations")).to_contain_text("[email]")

    page.locator("#undo-fix").click()
    expect(version).to_have_value(re.compile(r"Version 2.*\(in use\)"))
    expect(page.locator("#conversations")).to_contain_text("@example.org")
