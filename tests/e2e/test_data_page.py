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


MEMORIES = "\n\n".join(
    f"{first} {' '.join(f'People ask me about the {thing} {when}, and I say that it was smaller.' for when in WHEN)}"
    for WHEN in [("on Sundays", "in the winter", "after church", "when it rains", "at weddings", "in June")]
    for thing, first in {
        "lighthouse": "The lighthouse had a green railing, which my grandmother painted before it rained.",
        "violin": "I learned the violin from a sailor who had only three strings and did not miss the fourth.",
        "orchard": "There were eleven apple trees in the orchard, and each of them had a name and a grudge.",
        "ferry": "The ferry left when the captain had finished his tea, and the timetable lived with it.",
        "bakery": "At the bakery they sold the burnt loaves cheaper, and we thought that bread was black.",
        "school": "Our school had one stove and two teachers, and whoever sat near the stove learned most.",
    }.items()
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_writes_the_prompts_of_a_document(app: App, new_page: Callable[[str], Any], tmp_path: Path) -> None:
    expect.set_options(timeout=PATIENCE)
    file = tmp_path / "memories.txt"
    file.write_text(MEMORIES)
    page = new_page(app.start())
    page.set_default_timeout(PATIENCE)
    choose_persona(page, "magpie")
    tab(page, "Data")
    expect(page.locator("#conversations")).to_contain_text("row")
    expect(page.locator("#prompts")).to_be_hidden()  # nothing here was made of a template
    page.get_by_role("button", name="Add conversations from a file").click()
    page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files(file)
    expect(page.locator("#import-look")).to_contain_text("Prose or Markdown, because")
    page.get_by_role("button", name="Add these conversations").click()
    expect(page.locator("#import-result")).to_contain_text("Version 2 is ready")
    page.get_by_role("button", name="Passages of a document: have a model write the prompts").click()
    page.locator("#write-prompts").click()
    expect(page.locator("#prompts-drawn")).to_contain_text("wrote", timeout=300_000)
    expect(page.locator("#dataset-version input")).to_have_value(re.compile(r"Version 3.*from v2 \(in use\)"))
    expect(page.locator("#conversations")).to_contain_text("instruction by a model")
