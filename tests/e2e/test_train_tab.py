"""Home and Train in a real browser: from start to a trained example, through reloads, the queue and the history."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Opener = Callable[[str], Any]
TABS = ("Home", "Personas", "Data", "Train", "Evaluate", "Chat", "Plugins")
LONG = 120_000
expect.set_options(timeout=90_000)  # two cores train while the page is looked at
UNNAMED = """() => [...document.querySelectorAll('input, textarea, select, button, [role=tab], svg[role=img]')]
  .filter((e) => e.offsetParent !== null && e.type !== 'file' && e.type !== 'hidden')
  .filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || e.textContent.trim() || e.title || e.closest('label')?.textContent.trim()))
  .map((e) => e.outerHTML.slice(0, 160))"""


def tab(page: Page, name: str) -> None:
    """Open a tab, also where it hides in the overflow menu of a narrow page."""
    found = page.get_by_role("tab", name=name, exact=True)
    if not found.is_visible():
        page.locator(".overflow-menu > button").click()
        found = page.locator(".overflow-dropdown").get_by_role("button", name=name, exact=True)
    found.click()


def status(page: Page, state: str) -> Locator:
    return page.locator(f"#train-status .pl-status[data-status={state}]")


def field(page: Page, label: str) -> Locator:
    return page.get_by_label(label).locator("visible=true").first


def queue(page: Page) -> list[str]:
    return [item.get_attribute("data-run") or "" for item in page.locator("#train-queue li").all()]


def pick(page: Page, label: str, option: str | re.Pattern[str]) -> None:
    page.get_by_label(label, exact=True).locator("visible=true").click()
    page.get_by_role("option").filter(has_text=option).first.click()


def roomy(model: Path, folder: Path) -> Path:
    """A copy of the tiny model with room for a whole character card: it has no learned positions."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


def test_from_start_to_a_trained_example_and_everything_around_it(
    app: App, new_page: Opener, tiny_model: Path, tmp_path: Path
) -> None:
    base = roomy(tiny_model, tmp_path / "tiny")
    page = new_page(app.start())
    page.set_default_timeout(LONG)
    expect(page.locator("#home-path [aria-current=step]")).to_contain_text("Choose a character")
    page.get_by_role("button", name="Train Magpie").click()  # the first click
    plan = page.locator("#plan .pl-plan[data-strategy=lora]")
    expect(plan).to_contain_text(
        re.compile(r"On this machine.*fits.*time \(.* to .*\).*memory \(.* to .*\).*disk", re.S)
    )
    go_on = page.locator("#strategy label").filter(has_text="Go on from a variant")
    expect(go_on).to_contain_text("needs a variant")
    expect(go_on).not_to_contain_text("does not fit")

    # not needed, but a look before the training; and a tiny base with many epochs, so that there is time to play
    page.get_by_role("button", name="What it reads").click()
    assert int(page.locator("#train-example .pl-mask").get_attribute("data-trained") or 0) > 5
    page.get_by_role("button", name="Base model, seed and name").click()
    field(page, "Base model").fill(str(base))
    field(page, "Base model").press("Enter")
    field(page, "Epochs").fill("90")
    page.get_by_role("button", name="Advanced settings").locator("visible=true").click()
    field(page, "Patience").fill("1000")
    page.get_by_role("button", name="Start training").click()  # the second click, and it trains
    page.locator("#train-drawn .pl-chart[data-validation-points]").wait_for(timeout=LONG)
    run = page.locator("#train-status .pl-status").get_attribute("data-run")

    page.reload()
    expect(page.locator(f"#train-status .pl-status[data-run={run}]")).to_be_visible()  # on the same tab, too
    expect(page.locator("#train-drawn .pl-chart")).to_be_visible()

    page.get_by_role("button", name="Base model, seed and name").click()
    for seed in ("1", "2"):
        field(page, "Seed").fill(seed)
        page.get_by_role("button", name="Add to the queue").click()
        expect(page.locator("#train-queue li")).to_have_count(int(seed))
    first, second = queue(page)
    page.get_by_role("button", name=re.compile("^Sooner")).last.click()
    expect(page.locator("#train-queue li").first).to_have_attribute("data-run", second)
    page.reload()
    expect(page.locator("#train-queue li").first).to_have_attribute("data-run", second)
    for left in (1, 0):
        page.get_by_role("button", name=re.compile("^Remove from the queue")).first.click()
        expect(page.locator("#train-queue li")).to_have_count(left)

    page.locator("#train-keep").click()
    status(page, "done").wait_for(timeout=LONG)
    expect(page.locator("#train-status")).to_contain_text("Did it change anything?")
    expect(page.locator("#train-status .pl-heard blockquote")).to_have_count(2)
    expect(page.locator("#train-drawn .pl-spark")).to_have_count(3)
    expect(page.locator("#train-talk")).to_be_visible()

    pick(page, "In which state", "Cancelled")
    expect(page.locator("#train-runs tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Compare two runs").click()
    pick(page, "Run A", re.compile("done"))
    pick(page, "Run B", re.compile("cancelled"))
    told = page.locator("#train-compare .pl-comparison")
    # the queued runs were set up after a reload, which puts the form back to its defaults
    differing = told.locator("table").first.locator("tbody tr")
    expect(differing).to_have_count(4)
    for name in ("base", "seed", "epochs", "patience"):
        expect(differing.filter(has_text=re.compile(name, re.IGNORECASE))).not_to_have_count(0)
    expect(told.locator(".pl-overlay")).to_be_visible()

    tab(page, "Home")
    expect(page.locator("#home-path [aria-current=step]")).to_contain_text("Evaluate")
    expect(page.locator("#home-variants .pl-variant")).to_contain_text(re.compile(r"\d\.\d{3} → \d\.\d{3}"))
    page.locator("#home-runs .pl-rowbutton").last.click()
    expect(page.locator(f"#train-status .pl-status[data-run={run}]")).to_be_visible()
    tab(page, "Train")
    expect(go_on).not_to_contain_text("needs a variant", timeout=LONG)  # there is one now
    assert second != first


def test_every_tab_fits_a_phone_and_every_control_has_a_name(app: App, new_page: Opener) -> None:
    page = new_page(app.start())
    page.get_by_role("button", name="Look closer at Magpie").click()
    expect(page.locator(".pl-details")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(700)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{name} is {wide} px wide on a phone of 390"
        assert page.evaluate(UNNAMED) == [], f"controls without a name in {name}"
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("localStorage.getItem('persona-lab.tab') === 'plugins'")
    page.reload()
    expect(page.get_by_role("tab", name="Plugins", exact=True)).to_have_attribute("aria-selected", "true")
    # by keyboard alone: back to Home, and on to the next stage
    page.get_by_role("tab", name="Home", exact=True).focus()
    page.keyboard.press("Enter")
    step = page.locator("#home-path [aria-current=step]")
    expect(step).to_contain_text("Train")  # the character is remembered, too
    button = step.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Start training")).to_be_visible()


def test_a_choice_made_while_the_page_loads_holds_and_the_page_comes_to_rest(app: App, new_page: Opener) -> None:
    url = app.start()
    for _ in range(3):
        page = new_page(url)
        asked: list[str] = []
        page.on(
            "request", lambda request, asked=asked: asked.append(request.url) if "/queue/join" in request.url else None
        )
        page.get_by_role("button", name="Look closer at Magpie").click()
        expect(page.locator(".pl-details h2")).to_have_text("Magpie")
        page.wait_for_timeout(4000)
        asked.clear()
        page.wait_for_timeout(5000)
        assert len(asked) <= 20, f"{len(asked)} requests in 5 s of a page that nobody touches"
        expect(page.locator(".pl-details h2")).to_have_text("Magpie")
        page.context.close()
