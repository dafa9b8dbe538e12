"""Trait sliders in a real browser, on a tiny random model: a slider changes the reply, and is kept as a variant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from playwright.sync_api import Page, expect

from persona_lab.home import Home
from persona_lab.inference.trait_files import KeptTrait, kept_path, write_kept
from persona_lab.models.cache import MARKER
from persona_lab.models.weights import fingerprint
from persona_lab.testing import make_tiny_model
from persona_lab.traits import library
from persona_lab.types import TraitCalibration

from .conftest import App

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

Opener = Callable[[str], Any]
SLOW = 90_000
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The page over a home whose starter is a tiny random model, on which one trait pulls so hard that what is said is
    the pull's doing, whatever bf16 rounds."""
    home = Home.resolve(tmp_path_factory.mktemp("traits") / "home")
    starter = make_tiny_model(home.model("starter"), "llama")
    config = json.loads((starter / "config.json").read_text())
    (starter / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))  # the card is long
    marker = {"id": "starter", "name": "Tiny", "architecture": "LlamaForCausalLM", "parameters": 1000}
    (starter / MARKER).write_text(json.dumps(marker))
    calibration = TraitCalibration(
        layers=(0, 1), towards=40.0, away=40.0, unsteered_bits_per_byte=1.0, unsteered_repetition=0.0
    )
    rng = numpy.random.default_rng(0)
    vectors = {layer: rng.normal(size=64).astype(numpy.float32) for layer in (0, 1)}
    kept = KeptTrait(library.trait(home, "grumpy"), calibration, vectors)
    write_kept(kept_path(home, "grumpy", fingerprint(starter)), kept)
    app = App(home.root, tmp_path_factory.mktemp("log") / "page.log")
    app.start()
    yield app
    app.clean()


def say(page: Page, text: str) -> list[str]:
    """The replies of both panes to it, without their stamps."""
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    expect(page.locator("#chat-2").get_by_text(text, exact=True).last).to_be_visible()
    return [reply(page, pane) for pane in (1, 2)]


def reply(page: Page, pane: int) -> str:
    expect(page.locator(f"#chat-{pane} .pl-waiting")).to_have_count(0, timeout=SLOW)
    stamp = page.locator(f"#chat-{pane} .pl-stamp").last
    expect(stamp).to_be_visible(timeout=SLOW)
    return page.locator(f"#chat-{pane} .bot").last.inner_text().replace(stamp.inner_text(), "").strip()


def set_slider(page: Page, pane: int, value: str) -> None:
    field = page.locator(f"#traits-{pane}-1 input[type=number]")
    field.fill(value)
    field.press("Tab")


def test_a_slider_changes_the_reply_and_is_kept_as_a_variant(served: App, new_page: Opener) -> None:
    page = new_page(served.url)
    page.get_by_role("tab", name="Personas", exact=True).click()
    page.locator(".pl-card[data-id=magpie]").click()
    expect(page.locator(".pl-card.pl-chosen[data-id=magpie]")).to_be_visible()
    page.get_by_role("tab", name="Chat", exact=True).click()
    expect(page.get_by_label("Your message")).to_be_visible()
    page.locator("#sampling").get_by_role("button", name="How replies are drawn").click()
    page.locator("#sampling").get_by_role("button", name="Advanced").click()
    page.locator("#longest input[type=number]").fill("12")
    page.locator("#longest input[type=number]").press("Tab")

    plain = say(page, "Who are you?")
    assert plain[0] == plain[1]  # the same base twice, with one seed, in one batch

    page.locator("#traits-1").get_by_role("button", name="Traits").click()
    page.locator("#traits-1-pick input").click()
    expect(page.get_by_role("option", name="Pride: humble … proud (not computed yet)")).to_be_visible()
    page.get_by_role("option", name="Mood: cheerful … grumpy", exact=True).click()
    slider = page.locator("#traits-1-1")
    expect(slider).to_be_visible()
    expect(slider).to_contain_text("Mood: cheerful ← → grumpy")
    page.keyboard.press("Escape")
    set_slider(page, 1, "100")
    expect(page.locator("#traits-1-save")).to_be_enabled()

    page.locator("#new-chat").click()
    expect(page.locator("#chat-1").get_by_text("Who are you?", exact=True)).to_have_count(0)
    pulled = say(page, "Who are you?")
    assert pulled[0] != plain[0]
    expect(page.locator("#chat-1 .pl-stamp").last).to_contain_text("pulled grumpy +100")
    # that the pane beside it says what it says alone is shown in fp32, in tests/unit/test_inference_steering.py
    expect(page.locator("#chat-2 .pl-stamp").last).not_to_contain_text("pulled")
    assert pulled[1] != pulled[0]

    # kept as a variant, it is pulled without a slider; that it says the very same is shown without bf16's rounding, in
    # tests/unit/test_traits.py
    page.locator("#traits-1-save").click()
    expect(page.locator("#pane-1 input")).to_have_value("Tiny (base), grumpy +100 (steer)")
    page.locator("#new-chat").click()
    expect(page.locator("#chat-1").get_by_text("Who are you?", exact=True)).to_have_count(0)
    assert say(page, "Who are you?")[0] != plain[0]
    expect(page.locator("#chat-1 .pl-stamp").last).to_contain_text("steer Tiny (base), grumpy +100")
    variants = [json.loads(path.read_text()) for path in Path(served.home).glob("variants/*/variant.json")]
    assert [(v["strategy"], v["traits"]) for v in variants] == [("steer", {"grumpy": 100})]

    # a reload finds it in its pane
    page.reload()
    page.get_by_role("tab", name="Chat", exact=True).click()
    expect(page.locator("#chat-1 .pl-stamp").last).to_contain_text("pulled grumpy +100")
