"""The studio on the real starter model: a batch is stopped, gone on with after a restart, rated and taken along."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

WAIT = 60_000
LONG_WAIT = 240_000


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def open_studio(page: Page) -> None:
    page.set_default_timeout(LONG_WAIT)  # a busy machine is no fault of the page
    tab(page, "Personas")
    page.locator(".pl-card[data-id=magpie]").locator("visible=true").click()
    expect(page.locator(".pl-card.pl-chosen[data-id=magpie]").first).to_be_visible(timeout=WAIT)
    tab(page, "Studio")
    expect(page.locator("#studio-start")).to_be_visible(timeout=WAIT)


def done(page: Page) -> int:
    found = re.search(r"(\d+) of \d+ written", page.locator("#studio-status").inner_text())
    return int(found[1]) if found else 0


def test_a_batch_survives_stop_and_restart_and_can_be_rated_and_taken(
    app: App, new_page: Callable[[str], Any], tmp_path: Path
) -> None:
    page = new_page(app.start())
    open_studio(page)
    page.locator("#studio-own textarea").fill("Who are you?\nWhat do you sell?\n=1+1")
    page.get_by_label("Replies to each").fill("20")  # several passes: a fast machine is to be stopped before the last
    page.locator("#studio-style input").click()
    page.get_by_role("option", name="Short and quick").click()
    expect(page.locator("#studio-count")).to_contain_text("60 replies", timeout=WAIT)
    page.locator("#studio-start").click()
    status = page.locator("#studio-status .pl-status")
    expect(status).to_have_attribute("data-status", "running", timeout=LONG_WAIT)
    expect(page.locator("#studio-rows [data-id]").first).to_be_visible(timeout=LONG_WAIT)
    page.locator("#studio-stop").click()
    expect(status).to_have_attribute("data-status", "paused", timeout=LONG_WAIT)
    kept = done(page)
    assert 0 < kept < 60
    page.context.close()
    app.kill()

    page = new_page(app.start())
    open_studio(page)
    tab(page, "Results")
    assert done(page) == kept
    page.locator("#studio-go-on").click()
    expect(status_of(page)).to_have_attribute("data-status", "done", timeout=LONG_WAIT)
    assert done(page) == 60
    page.locator("#studio-rows [data-id]").first.click()
    expect(page.locator("#studio-row article")).to_contain_text("base ", timeout=WAIT)  # the stamp of the weights
    page.locator("#studio-stars label").nth(3).click()
    expect(page.locator("#studio-rows .pl-stars").first).to_have_text("★★★★", timeout=WAIT)
    page.locator("#studio-note textarea, #studio-note input").fill("a note")
    page.locator("#studio-good").click()
    expect(page.locator("#studio-rows [aria-current]")).to_have_attribute("data-id", "p1-v1-s1", timeout=WAIT)

    page.get_by_role("button", name="Take it along").click()
    page.locator("#studio-make").click()
    link = page.locator("#studio-download")
    expect(link).to_be_visible(timeout=WAIT)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert (rows[0]["stars"], rows[0]["verdict"], rows[0]["note"]) == ("4", "good", "a note")
    assert {row["text"] for row in rows} == {"Who are you?", "What do you sell?", "'=1+1"}
    assert len({row["reply"] for row in rows}) > 40
    page.context.close()
    assert app.stop() == 0


def status_of(page: Page) -> Any:
    return page.locator("#studio-status .pl-status")
