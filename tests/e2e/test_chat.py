"""The Chat tab in a real browser, on a tiny random model: what is said, judged, taught and saved stays, in private."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from persona_lab.models.cache import MARKER
from persona_lab.models.weights import fingerprint
from persona_lab.testing import make_tiny_model

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

Opener = Callable[[str], Any]
SLOW = 90_000
expect.set_options(timeout=20_000)


def add_variant(home: Path, name: str, seed: int | None) -> str:
    """A variant of magpie with a random LoRA adapter (no seed: its weights are missing); its stamp's first words."""
    folder = home / "variants" / name
    folder.mkdir(parents=True)
    if seed is not None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(home / "models" / "starter", dtype=torch.float32)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(folder / "weights")
    fields = {"id": name, "name": name.title(), "persona": "magpie", "base": "starter", "strategy": "lora"}
    fields |= {"kind": "adapter", "path": str(folder / "weights"), "created": f"2026-01-0{(seed or 0) + 1}"}
    (folder / "variant.json").write_text(json.dumps(fields))
    return f"lora {name.title()} {fingerprint(folder / 'weights')}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("chat") / "home")


def make_home(home: Path) -> Path:
    """A home whose starter is a tiny random model, with the variants one and two, and one that lost its weights."""
    starter = make_tiny_model(home / "models" / "starter", "llama")
    config = json.loads((starter / "config.json").read_text())
    (starter / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))  # the card is long
    marker = {"id": "starter", "name": "Tiny", "architecture": "LlamaForCausalLM", "parameters": 1000}
    (starter / MARKER).write_text(json.dumps(marker))
    stamps = {name: add_variant(home, name, seed) for name, seed in (("one", 2), ("two", 1), ("lost", None))}
    (home / "stamps.json").write_text(json.dumps(stamps))
    return home


@pytest.fixture(scope="module")
def served(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The page over it, for all tests of this file."""
    app = App(made, tmp_path_factory.mktemp("log") / "page.log")
    app.start()
    yield app
    app.clean()


def open_chat(page: Page, choose: bool = True) -> None:
    if choose:
        page.get_by_role("tab", name="Personas", exact=True).click()
        page.locator(".pl-card[data-id=magpie]").click()
        expect(page.locator(".pl-card.pl-chosen[data-id=magpie]")).to_be_visible()
    page.get_by_role("tab", name="Chat", exact=True).click()
    expect(page.get_by_label("Your message")).to_be_visible()
    if choose:
        page.locator("#sampling").get_by_role("button", name="How replies are drawn").click()
        page.locator("#sampling").get_by_role("button", name="Advanced").click()
        page.locator("#longest input[type=number]").fill("12")
        page.locator("#longest input[type=number]").press("Tab")


def stamp(page: Page, pane: int) -> Any:
    return page.locator(f"#chat-{pane} .pl-stamp").last


def say(page: Page, text: str, panes: int = 2) -> None:
    """Say it, and wait until every pane has one more ending: a stamp or an error."""
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    for pane in range(1, panes + 1):
        bot = page.locator(f"#chat-{pane}")
        expect(bot.get_by_text(text, exact=True).last).to_be_visible()
        settled(page, pane)


def settled(page: Page, pane: int) -> None:
    expect(page.locator(f"#chat-{pane} .pl-waiting")).to_have_count(0, timeout=SLOW)
    expect(stamp(page, pane)).to_be_visible(timeout=SLOW)


def pick(page: Page, element: str, name: str | re.Pattern[str]) -> None:
    page.locator(f"#{element} input").click()
    page.get_by_role("option", name=name).first.click()


def test_panes_answer_apart_and_nothing_is_lost_on_reload(served: App, new_page: Opener) -> None:
    stamps = json.loads((served.home / "stamps.json").read_text())
    page = new_page(served.url)
    open_chat(page)
    page.locator("#panes").get_by_text("3", exact=True).click()
    expect(page.locator("#chat-3")).to_be_visible()
    pick(page, "pane-3", re.compile("^Lost"))
    say(page, "Who are you?", panes=2)
    expect(stamp(page, 1)).to_contain_text(stamps["one"])
    expect(stamp(page, 2)).to_contain_text(re.compile("^base starter [0-9a-f]{12} · seed 0 .* tokens at .*first after"))
    expect(page.locator("#chat-3 .pl-stamp-bad")).to_contain_text("gone")

    # the same seed gives the same words; another seed is in the stamp
    first = page.locator("#chat-1 .bot").last.inner_text().split("lora")[0]
    page.locator("#again").click()
    expect(stamp(page, 1)).to_contain_text("seed 1", timeout=SLOW)
    page.locator("#seed input").fill("0")
    page.locator("#rewrite").click()
    expect(page.get_by_label("Your message")).to_have_value("Who are you?")
    expect(page.locator("#chat-1").get_by_text("Who are you?", exact=True)).to_have_count(0)
    say(page, "Who are you?", panes=2)
    expect(stamp(page, 1)).to_contain_text("seed 0")
    assert page.locator("#chat-1 .bot").last.inner_text().split("lora")[0] == first

    # gradio's own editor, and going on
    page.locator("#chat-2 .user").last.hover()
    page.locator("#chat-2").get_by_label("Edit").last.click()
    page.locator("#chat-2 textarea").fill("Who <are> we?")
    page.locator("#chat-2").get_by_label("Submit").click()
    expect(page.locator("#chat-1").get_by_text("Who <are> we?", exact=True)).to_be_visible()
    settled(page, 1)
    settled(page, 2)
    before = page.locator("#chat-1 .bot").last.inner_text().split("lora")[0].strip()
    page.locator("#continue").click()
    page.wait_for_timeout(1500)  # until it has begun
    settled(page, 1)
    settled(page, 2)
    page.locator("#chat-2").get_by_label("Retry").last.click(timeout=SLOW)  # waits until it is enabled again
    expect(stamp(page, 2)).to_contain_text("seed 1", timeout=SLOW)
    assert page.locator("#chat-1 .bot").last.inner_text().startswith(before)
    page.wait_for_timeout(1500)  # a reload in the middle of a request would be an error in the console

    page.reload()
    open_chat(page, choose=False)
    expect(page.locator("#chat-3")).to_be_visible()
    expect(page.locator("#chat-1").get_by_text("Who <are> we?", exact=True)).to_be_visible()
    expect(stamp(page, 1)).to_contain_text(stamps["one"])
    expect(page.locator("#pane-3 input")).to_have_value(re.compile("^Lost"))

    # a branch keeps what was said before; the old one stays in the list
    page.get_by_role("button", name="Conversations").click()
    with page.expect_download() as download:
        page.locator("#download-md").click()
    assert stamps["one"] in Path(download.value.path()).read_text()
    page.locator("#branch").click()
    expect(page.get_by_label("Your message")).to_have_value("Who <are> we?")
    say(page, "And who else?", panes=2)
    page.locator("#saved-chats input").click()
    expect(page.get_by_role("option")).to_have_count(2)


def test_a_blind_vote_counts_once_and_shows_the_names_after_it(served: App, new_page: Opener) -> None:
    page = new_page(served.url)
    open_chat(page)
    pick(page, "pane-2", re.compile("^Two"))
    page.locator("#blind-start").click()
    expect(page.locator("#vote")).to_be_visible()
    expect(page.locator("#pane-1")).to_be_hidden()
    page.get_by_label("Your message").fill("Who stole my ring?")
    page.locator("#send").click()
    for pane in (1, 2):
        expect(page.locator(f"#chat-{pane}").get_by_text("Who stole my ring?")).to_be_visible()
        expect(page.locator(f"#chat-{pane} .pl-waiting")).to_have_count(0, timeout=SLOW)
    expect(page.locator(".pl-stamp")).to_have_count(0)
    assert not re.search(r"\b(one|two)\b \(lora\)|lora (One|Two)", page.content(), re.IGNORECASE)
    page.locator("#vote-b").click()
    told = page.locator("#vote-told")
    expect(told).to_contain_text(re.compile("You chose (One|Two)"))
    winner = re.search(r"You chose (One|Two)", told.inner_text())
    expect(page.locator("#vote")).to_be_hidden()
    expect(stamp(page, 2)).to_contain_text(f"lora {winner[1] if winner else '?'} ")
    page.get_by_role("button", name="Ratings from blind votes").click()
    table = page.locator("#ratings-table table")
    expect(table).to_contain_text("1 / 0 / 0")
    expect(table).to_contain_text("never lost")
    with page.expect_download() as download:
        page.locator("#download-pairs").click()
    [pair] = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert pair["prompt"][-1] == {"role": "user", "content": "Who stole my ring?"}
    assert pair["chosen_variant"] == (winner[1].lower() if winner else "")


def test_corrected_replies_become_data_to_learn_from(served: App, new_page: Opener) -> None:
    page = new_page(served.url)
    open_chat(page)
    say(page, "What is your favourite button?")
    page.locator("#chat-1").get_by_label("Like", exact=True).last.click()
    page.get_by_role("button", name="Teach it").click()
    review = page.locator("#teach-review")
    expect(review.get_by_role("checkbox")).to_have_count(1)
    pick(page, "teach-which", re.compile("^Pane 2"))
    page.wait_for_timeout(1000)  # the chosen reply is put into the box first
    page.locator("#teach-text textarea").fill("The brass one from the admiral's coat, and you may not have it.")
    page.locator("#teach-keep").click()
    expect(page.locator("#chat-2 .pl-better")).to_contain_text("brass one")
    expect(review.get_by_role("checkbox")).to_have_count(2)
    review.get_by_text("brass one").click()
    page.locator("#teach-add").click()
    expect(page.locator("#teach-told")).to_contain_text("Version 2 of the data is ready, with 1 reply more")
    expect(review.get_by_role("checkbox")).to_have_count(1)
    page.get_by_role("tab", name="Data", exact=True).click()
    expect(page.locator("#dataset-version input")).to_have_value(re.compile("Version 2"))


def test_two_browsers_share_the_work_and_not_their_words(served: App, new_page: Opener) -> None:
    one, two = new_page(served.url), new_page(served.url)
    open_chat(one)
    open_chat(two)
    say(one, "This is between us.")
    say(two, "And this is mine.")
    for page, theirs in ((one, "And this is mine."), (two, "This is between us.")):
        page.get_by_role("button", name="Conversations").click()
        page.locator("#saved-chats input").click()
        expect(page.get_by_role("option")).to_have_count(1)
        assert theirs not in page.content()
        page.keyboard.press("Escape")
    # one leaves in the middle of a reply; the other goes on, and the one finds its words again
    one.locator("#longest input[type=number]").fill("512")
    one.get_by_label("Your message").fill("One more thing.")
    one.get_by_label("Your message").press("Enter")
    expect(one.locator("#chat-1").get_by_text("One more thing.")).to_be_visible()
    state = one.context.storage_state()
    one.context.close()
    say(two, "Still here?")
    context = two.context.browser.new_context(storage_state=state)
    back = context.new_page()
    back.goto(served.url)
    open_chat(back, choose=False)
    expect(back.locator("#chat-1").get_by_text("One more thing.")).to_be_visible()
    context.close()


def test_one_browser_trains_while_another_chats(served: App, new_page: Opener) -> None:
    trainer, talker = new_page(served.url), new_page(served.url)
    trainer.locator('[data-id="train:magpie"]').first.click()
    expect(trainer.locator("#plan .pl-plan")).to_be_visible()
    for label, value in (("Epochs", "90"), ("Patience", "1000")):
        if label == "Patience":
            trainer.get_by_role("button", name="Advanced settings").locator("visible=true").click()
        trainer.get_by_label(label).locator("visible=true").first.fill(value)
        trainer.get_by_label(label).locator("visible=true").first.press("Tab")
    trainer.get_by_role("button", name="Start training").click()
    trainer.locator("#train-drawn .pl-chart[data-validation-points]").wait_for(timeout=SLOW)
    run = trainer.locator("#train-status .pl-status").get_attribute("data-run")

    open_chat(talker)
    say(talker, "Nobody else hears this.")
    assert "Nobody else hears this." not in trainer.content()
    trainer.context.close()  # the window goes, the training does not

    talker.get_by_role("tab", name="Train", exact=True).click()
    going_on = talker.locator(f"#train-status .pl-status[data-run={run}][data-status=running]")
    expect(going_on).to_be_visible()  # runs belong to the lab, and a window that comes later sees them
    assert talker.get_by_label("Epochs").locator("visible=true").first.input_value() != "90"  # the form was theirs
    talker.locator("#train-keep").click()
    talker.locator("#train-status .pl-status[data-status=done]").wait_for(timeout=SLOW)
    talker.get_by_role("tab", name="Chat", exact=True).click()
    expect(talker.locator("#chat-1").get_by_text("Nobody else hears this.", exact=True)).to_be_visible()

    back = new_page(served.url)
    back.get_by_role("tab", name="Personas", exact=True).click()
    back.locator(".pl-card[data-id=magpie]").click()
    back.get_by_role("tab", name="Train", exact=True).click()
    expect(back.locator("#train-runs")).to_contain_text("done")
    back.get_by_role("tab", name="Chat", exact=True).click()
    expect(back.get_by_label("Your message")).to_be_visible()
    assert "Nobody else hears this." not in back.content()


@pytest.fixture
def late_app(tmp_path: Path) -> Iterator[App]:
    """The page of late_drawing.py over a home of its own."""
    program = (sys.executable, "-u", str(Path(__file__).with_name("late_drawing.py")))
    app = App(make_home(tmp_path / "home"), tmp_path / "page.log", program)
    app.start()
    yield app
    app.clean()


def test_a_redraw_that_comes_late_takes_no_reply_away(late_app: App, new_page: Opener) -> None:
    def told(words: str, count: int) -> None:
        end = time.monotonic() + SLOW / 1000
        while late_app.log.read_text().splitlines().count(words) < count:
            assert time.monotonic() < end, late_app.log.read_text()
            page.wait_for_timeout(50)

    def opened_again() -> None:
        page.get_by_role("tab", name="Train", exact=True).click()
        page.get_by_role("tab", name="Chat", exact=True).click()

    page = new_page(late_app.url)
    open_chat(page)
    say(page, "Who are you?")
    (late_app.home / "hold").touch()

    opened_again()  # drawn before the question
    told("drawn", 1)
    say(page, "Since when?")
    told("sent late", 1)
    page.wait_for_timeout(1500)
    for pane in (1, 2):
        expect(page.locator(f"#chat-{pane}").get_by_text("Since when?", exact=True)).to_be_visible()
        expect(page.locator(f"#chat-{pane} .pl-stamp")).to_have_count(2)

    page.get_by_label("Your message").fill("And then?")
    page.get_by_label("Your message").press("Enter")
    expect(page.locator("#chat-1 .pl-waiting")).to_be_visible()
    opened_again()  # drawn while the reply is written
    told("drawn", 2)
    told("sent late", 2)
    page.wait_for_timeout(1500)
    for pane in (1, 2):
        settled(page, pane)
        expect(page.locator(f"#chat-{pane} .pl-stamp")).to_have_count(3)
