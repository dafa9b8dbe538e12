"""The card editor in a real browser: typing shows the prompt, saving keeps it, undo takes it back, lore is woken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """The page answers late on a machine that is busy with other tests."""
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


def test_editing_a_card(app: App, new_page: Callable[[str], Any], tmp_path: Path) -> None:
    page = new_page(app.start())
    page.get_by_role("tab", name="Personas", exact=True).click()
    page.locator(".pl-card[data-id=magpie]").click()
    editor = page.locator("#card-editor")
    editor.get_by_role("button", name="Edit the card").click()
    drawn = page.locator("#card-preview .pl-preview")
    expect(drawn).to_contain_text("You are Magpie")
    expect(drawn).to_contain_text("starter’s own tokenizer")
    tokens = int(drawn.get_attribute("data-tokens") or 0)
    assert tokens > 50

    expect(drawn).to_contain_text("saved")
    box = page.locator("#card-description textarea")
    before = box.input_value()
    box.fill(before + " {{char}} whistles hymns in {{starlight}}.")
    expect(drawn).to_contain_text("whistles hymns")
    expect(drawn).to_contain_text("not saved yet")
    expect(drawn).to_contain_text("{{starlight}}")
    assert int(drawn.get_attribute("data-tokens") or 0) > tokens
    page.get_by_role("tab", name="Plugins", exact=True).click()
    page.get_by_role("tab", name="Personas", exact=True).click()
    expect(box).to_have_value(re.compile("whistles hymns"))  # what was typed survives a look elsewhere

    page.locator("#card-save").click()
    expect(page.locator("#persona-details")).to_contain_text("whistles hymns")
    expect(page.locator("#card-preview")).not_to_contain_text("not saved yet")
    page.locator("#card-undo").click()
    expect(box).to_have_value(before)
    expect(page.locator("#persona-details")).not_to_contain_text("whistles hymns")
    expect(page.locator("#card-redo")).to_be_visible()

    page.locator("#card-said textarea, #card-said input").first.fill("How is the tug?")
    expect(drawn).to_contain_text("Tin Prayer is a one-pilot salvage tug")
    page.locator("#lorebook").get_by_role("button", name="Lorebook").first.click()
    page.locator("#entry-save").click()
    expect(page.locator("#lorebook-problem")).to_contain_text("says nothing")
    page.locator("#entry-title textarea, #entry-title input").first.fill("Song")
    page.locator("#entry-keys textarea").fill("shanty")
    page.locator("#entry-content textarea").fill("{{char}} knows forty shanties.")
    page.locator("#entry-save").click()
    expect(page.locator("#lorebook-entries")).to_contain_text("Song")
    page.locator("#card-said textarea, #card-said input").first.fill("A shanty!")
    expect(drawn).to_contain_text("knows forty shanties.")

    page.get_by_role("button", name="Take home or pass on").click()
    page.get_by_label("Bundle: card, conversations").check()
    page.locator("#share-make").click()
    with page.expect_download() as download:
        page.locator("#share-download").click()
    bundle = tmp_path / "magpie.persona.zip"
    download.value.save_as(bundle)
    page.get_by_role("button", name="Import a character card or a bundle").click()
    page.locator("#import-card input[type=file]").set_input_files(bundle)
    expect(page.locator("#import-told")).to_contain_text("came from a bundle with")
    expect(page.locator(".pl-card.pl-chosen")).to_have_attribute("data-id", "magpie-2")
    card = json.loads((app.home / "personas/magpie-2/card.json").read_text())
    assert card["data"]["character_book"]["entries"][-1]["comment"] == "Song"
    page.context.close()
    assert app.stop() == 0
