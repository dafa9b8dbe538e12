"""A stranger's first hour, in a real browser on the real starter model; and a power cut in the middle of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Opener = Callable[[str], Any]
MEMORY_LIMIT = 300e6
READY_SECONDS = 240_000
CHART = "#train-drawn .pl-chart"


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def choose_persona(page: Page, persona: str) -> None:
    tab(page, "Personas")
    page.locator(f".pl-card[data-id={persona}]").click()
    expect(page.locator(f".pl-card.pl-chosen[data-id={persona}]")).to_be_visible()
    expect(page.locator(".pl-details")).to_be_visible()


def start_training(page: Page, epochs: str) -> None:
    tab(page, "Train")
    page.locator("#strategy").get_by_text(re.compile("^LoRA")).first.click()
    page.get_by_label("Epochs").locator("visible=true").fill(epochs)
    page.get_by_role("button", name="Advanced settings").locator("visible=true").click()
    page.get_by_label("Samples").locator("visible=true").fill("0")
    page.get_by_role("button", name="Start training").click()
    page.locator("#train-status .pl-status").wait_for(timeout=20_000)


def points(page: Page, kind: str = "train") -> int:
    chart = page.locator(CHART)
    return int(chart.get_attribute(f"data-{kind}-points") or 0) if chart.count() else 0


def wait_for_points(page: Page, least: int, seconds: float = 300) -> int:
    """Poll until the curve has that many training points; a failed run ends the wait with its message."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = points(page)
        if found >= least:
            return found
        status = page.locator("#train-status .pl-status")
        assert status.get_attribute("data-status") not in ("failed", "interrupted"), status.inner_text()
        page.wait_for_timeout(300)
    raise AssertionError(f"only {points(page)} points after {seconds} s: {page.locator('#train-status').inner_text()}")


def wait_for_done(page: Page, name: str) -> None:
    status = page.locator(f"#{name}-status .pl-status:not([data-status=queued]):not([data-status=running])")
    status.wait_for(timeout=READY_SECONDS)
    assert status.get_attribute("data-status") == "done", status.inner_text()


def test_a_first_hour(app: App, new_page: Opener) -> None:
    page = new_page(app.start())
    expect(page.locator("#home-path [aria-current=step]")).to_contain_text("Choose a character")
    choose_persona(page, "magpie")

    tab(page, "Data")
    mask = page.locator("#mask .pl-mask")
    expect(mask).to_be_visible()
    assert int(mask.get_attribute("data-trained") or 0) > 5
    assert page.locator("#mask .pl-mask .pl-off").count() > 5

    start_training(page, "0.2")
    first = wait_for_points(page, 1)
    assert wait_for_points(page, first + 2) > first
    wait_for_done(page, "train")
    chart = page.locator(CHART)
    assert points(page, "validation") >= 2
    before, after = (float(chart.get_attribute(f"data-validation-{end}") or 0) for end in ("first", "last"))
    assert after < before
    expect(page.get_by_text("Did it change anything?")).to_be_visible()

    tab(page, "Evaluate")
    expect(page.locator("#evaluate-variants")).to_contain_text("Base model")
    for measure in page.locator("#evaluate-measures label").all():  # one is enough here, and all of them take minutes
        measure.get_by_role("checkbox").set_checked(measure.inner_text().startswith("Held-out gain"))
    page.locator("#evaluate-start").click()
    wait_for_done(page, "evaluate")
    table = page.locator("#evaluate-drawn table").first
    expect(table).to_be_visible()
    assert re.search(r"-?\d\.\d{3} to -?\d\.\d{3}", table.inner_text())

    tab(page, "Chat")
    # the new variant stands beside the base without anybody choosing it
    expect(page.locator("#pane-1 input")).to_have_value(re.compile("LoRA"))
    expect(page.locator("#pane-2 input")).to_have_value(re.compile("^Base model"))
    page.get_by_label("Your message").fill("Who are you?")
    page.get_by_label("Your message").press("Enter")
    stamps = [page.locator(f"#chat-{pane} .pl-stamp").last for pane in (1, 2)]
    for stamp in stamps:
        stamp.wait_for(timeout=READY_SECONDS)
    adapter, base = (stamp.inner_text() for stamp in stamps)
    assert adapter.startswith("lora")
    assert base.startswith("base")
    assert app.memory() < MEMORY_LIMIT
    page.context.close()  # a page left open would rightly complain that its server is gone
    assert app.stop() == 0


def test_kill_minus_nine_of_the_page_loses_nothing(app: App, new_page: Opener) -> None:
    page = new_page(app.start())
    choose_persona(page, "magpie")
    start_training(page, "2")
    seen = wait_for_points(page, 4)
    name = page.locator("#train-status .pl-status").get_attribute("data-run")
    page.context.close()
    app.kill()

    page = new_page(app.start())
    tab(page, "Train")
    status = page.locator("#train-status .pl-status")
    expect(status).to_have_attribute("data-run", name or "")
    expect(status).to_have_attribute("data-status", "running")
    assert wait_for_points(page, seen) >= seen
    assert points(page, "validation") >= 1
    now = points(page)
    assert wait_for_points(page, now + 2) > now
    page.locator("#train-stop").click()
    expect(status).to_have_attribute("data-status", "cancelled", timeout=60_000)


def test_bad_input_is_said_on_the_page(app: App, new_page: Opener, tmp_path: Path) -> None:
    page = new_page(app.start())
    choose_persona(page, "magpie")
    tab(page, "Train")
    rank = page.get_by_label("Learning rate").locator("visible=true")
    rank.fill("quick")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_text("'quick' is not a number").first).to_be_visible()

    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    tab(page, "Data")
    page.get_by_role("button", name="Add conversations from a file").click()
    page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files(empty)
    page.get_by_role("button", name="Add these conversations").click()
    expect(page.locator("#import-result .pl-box")).to_be_visible()
    expect(page.locator("#dataset-version input")).to_have_value(re.compile("Version 1"))
