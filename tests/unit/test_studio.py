"""The studio: batches are written in full passes, kept row by row, gone on with, rated and taken along. No model."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from persona_lab.errors import BadInput, UnknownName, WorkFailed
from persona_lab.home import Home
from persona_lab.inference.prompting import messages_for
from persona_lab.studio.records import Batch, Prompt, Rating, Row, Style
from persona_lab.studio.running import ROWS_AT_ONCE, passes, request_of
from persona_lab.studio.shelf import Shelf, starter
from persona_lab.studio.studio import Studio, own_prompts
from persona_lab.studio.taking import as_csv, as_jsonl, as_markdown, records
from persona_lab.types import ChatChunk, ChatRequest, Sampling, Stamp, Variant
from persona_lab.ui.studio_view import chosen_rows, counted, row_detail, rows_table

EVIL = "<img src=x onerror=alert(1)>"


def variant(name: str, base: str = "starter", **more: Any) -> Variant:
    return Variant(id=name, name=name, persona="tamsin", base=base, strategy="lora", kind="adapter", path="/x", **more)


def prompt(text: str, name: str = "") -> Prompt:
    return Prompt(id=f"p{abs(hash(text)) % 10**8}", name=name or text[:40], text=text)


class Chat:
    """Answers at once, as the engine's chat would; prompts named in `failing` and `cutting` do not go well."""

    def __init__(self, failing: Sequence[str] = (), cutting: Sequence[str] = ()) -> None:
        self.failing = list(failing)
        self.cutting = list(cutting)
        self.passes: list[list[ChatRequest]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, requests: Sequence[ChatRequest]) -> Iterator[ChatChunk]:
        self.passes.append(list(requests))
        for request in requests:
            self.gate.wait(10)
            said = request.messages[-1].content
            if said in self.failing:
                yield ChatChunk(pane=request.pane, error="no memory left")
                continue
            cut = said in self.cutting
            if cut:
                self.cutting.remove(said)
            seed = request.sampling.seed
            stamp = Stamp(
                variant=request.variant.id, adapter="lora 1", base="starter", seed=seed, tokens=3, seconds=1,
                first_token_seconds=0.1,
            )  # fmt: skip
            yield ChatChunk(pane=request.pane, text=f"{said}|{request.variant.id}|")
            yield ChatChunk(pane=request.pane, text=str(seed), done=True, stamp=stamp, stopped=cut)


@pytest.fixture
def chat() -> Chat:
    return Chat()


@pytest.fixture
def studio(home: Home, chat: Chat) -> Iterator[Studio]:
    made = Studio(home, chat, lambda folder, name: None)
    yield made
    chat.gate.set()
    made.close()


def batch_of(
    studio: Studio, texts: Sequence[str] = ("one", "two"), names: Sequence[str] = ("a", "b"), seeds: int = 2
) -> Batch:
    return studio.create([prompt(text) for text in texts], [variant(name) for name in names], range(seeds))


def test_a_pass_holds_rows_of_one_base_and_is_full() -> None:
    variants = (variant("a"), variant("x", base="other"), variant("b"))
    batch = Batch(id="b", name="b", prompts=tuple(prompt(str(i)) for i in range(12)), variants=variants, seeds=(0, 1))
    groups = list(passes(batch.tasks()))
    assert [len(group) for group in groups] == [16, 16, 16, 16, 8]
    assert all(len({task.variant.base for task in group}) == 1 for group in groups)
    assert len({task.id for group in groups for task in group}) == batch.size == 72


def test_every_row_is_written_and_says_who_made_it(studio: Studio, chat: Chat) -> None:
    batch = batch_of(studio)
    view = studio.run(batch.id)
    assert (view.done, view.failed, view.status) == (8, 0, "done")
    assert len(chat.passes) == 1  # eight rows in one pass of the model
    rows = studio.rows(batch.id)
    assert [row.reply for row in rows[:4]] == ["one|a|0", "one|b|0", "one|a|1", "one|b|1"]
    assert {row.adapter for row in rows} == {"lora 1"}


def test_what_failed_is_written_when_the_batch_is_gone_on_with(studio: Studio, chat: Chat) -> None:
    chat.failing = ["two"]
    batch = batch_of(studio)
    assert (studio.run(batch.id).failed, studio.view(batch.id).status) == (4, "paused")
    chat.failing, chat.passes = [], []
    assert studio.run(batch.id).status == "done"
    assert len(chat.passes[0]) == 4
    assert not any(row.error for row in studio.rows(batch.id))


def test_a_batch_that_nobody_answers_is_given_up_with_the_reason(studio: Studio, chat: Chat) -> None:
    chat.failing = ["one"]
    batch = batch_of(studio, ["one"], seeds=ROWS_AT_ONCE * 2)
    with pytest.raises(WorkFailed, match="no memory left"):
        studio.run(batch.id)
    assert len(chat.passes) == 2
    studio.start(batch.id)
    wait_for(lambda: studio.view(batch.id).problem)
    assert "no memory left" in studio.view(batch.id).problem


def test_a_reply_cut_by_a_stop_elsewhere_is_asked_for_again(studio: Studio, chat: Chat) -> None:
    chat.cutting = ["one"]
    batch = batch_of(studio, ["one"], ["a"], seeds=2)
    assert studio.run(batch.id).done == 2
    assert [len(group) for group in chat.passes] == [2, 1]


def test_stopped_in_the_background_it_keeps_what_is_written_and_goes_on(studio: Studio, chat: Chat) -> None:
    batch = batch_of(studio, [str(i) for i in range(20)])
    chat.gate.clear()
    studio.start(batch.id)
    assert studio.view(batch.id).status in ("waiting", "running")
    studio.stop(batch.id)
    chat.gate.set()
    wait_for(lambda: studio.view(batch.id).status == "paused")
    before = {row.id for row in studio.rows(batch.id)}
    assert len(before) < batch.size
    studio.start(batch.id)
    wait_for(lambda: studio.view(batch.id).status == "done")
    assert {row.id for row in studio.rows(batch.id)} > before


def test_half_a_line_of_a_crash_costs_that_row_only(studio: Studio, chat: Chat) -> None:
    batch = batch_of(studio)
    studio.run(batch.id)
    path = studio.store.folder(batch.id) / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert studio.view(batch.id).done == 7
    chat.passes = []
    assert studio.run(batch.id).done == 8
    assert [len(group) for group in chat.passes] == [1]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_one_batch_has_one_writer(studio: Studio, home: Home, chat: Chat) -> None:
    batch = batch_of(studio)
    with studio.store.writing(batch.id), pytest.raises(BadInput, match="another Persona Lab"):
        Studio(home, chat, lambda folder, name: None).run(batch.id)


def test_a_style_adds_notes_and_sampling_and_nothing_to_the_weights() -> None:
    style = Style(id="s", name="S", notes="Be brief.", sampling=Sampling(temperature=0, max_new_tokens=9))
    batch = Batch(
        id="b", name="b", prompts=(prompt("Hello {{char}}"),), seeds=(7,), style=style, characters={"tamsin": "Tamsin"},
        variants=(variant("a", system="You are Tamsin."), variant("n", prompt_mode="none")),
    )  # fmt: skip
    asked = [request_of(batch, task) for task in batch.tasks()]
    systems = [messages_for(request.variant, request.messages)[0].content for request in asked]
    assert systems == ["You are Tamsin.\nBe brief.", "Be brief."]
    assert asked[0].messages[-1].content == "Hello Tamsin"
    assert (asked[0].sampling.seed, asked[0].sampling.max_new_tokens) == (7, 9)
    assert asked[0].variant.path == "/x"


def test_too_much_or_nothing_is_refused_before_anything_is_kept(studio: Studio) -> None:
    with pytest.raises(BadInput, match="nothing to generate"):
        studio.create([], [variant("a")], [0])
    with pytest.raises(BadInput, match="more than a batch holds"):
        batch_of(studio, [str(i) for i in range(300)], seeds=50)
    assert studio.batches() == []
    with pytest.raises(UnknownName):
        studio.view("../../library")


def test_ratings_change_one_thing_at_a_time_and_survive(studio: Studio, home: Home, chat: Chat) -> None:
    batch = batch_of(studio)
    studio.run(batch.id)
    studio.rate(batch.id, "p1-v1-s0", stars=5)
    studio.rate(batch.id, "p1-v1-s0", verdict="good", note=" fine ")
    studio.rate(batch.id, "p2-v1-s0", verdict="bad")
    again = Studio(home, chat, lambda folder, name: None)
    rating = again.ratings(batch.id)["p1-v1-s0"]
    assert (rating.stars, rating.verdict, rating.note) == (5, "good", "fine")
    assert [row.id for row in chosen_rows(again.rows(batch.id), again.ratings(batch.id), "bad")] == ["p2-v1-s0"]
    assert len(chosen_rows(again.rows(batch.id), again.ratings(batch.id), "unrated")) == 6
    with pytest.raises(BadInput, match="no row"):
        studio.rate(batch.id, "p9-v1-s0", stars=1)
    with pytest.raises(BadInput, match="no rating"):
        studio.rate(batch.id, "p1-v1-s0", stars=9)


def made_rows() -> tuple[Batch, list[Row], dict[str, Rating]]:
    batch = Batch(id="b", name="B", prompts=(prompt("Say\nit", "=cmd"),), variants=(variant("a"),), seeds=(0, 1))
    common = {"prompt": "=cmd", "text": "Say\nit", "variant": "a", "variant_name": "a"}
    rows = [
        Row(id="p1-v1-s0", seed=0, reply='=HYPERLINK("http://x")\n# no heading, ümlaut', **common),
        Row(id="p1-v1-s1", seed=1, error="gone", **common),
    ]
    return batch, rows, {"p1-v1-s0": Rating(row="p1-v1-s0", stars=3, note="-1+1")}


def test_a_spreadsheet_gets_no_formula() -> None:
    batch, rows, ratings = made_rows()
    found = list(csv.DictReader(io.StringIO(as_csv(records(batch, rows, ratings)))))
    assert found[0]["prompt"] == "'=cmd"
    assert found[0]["reply"].startswith("'=HYPERLINK")
    assert found[0]["note"] == "'-1+1"
    assert (found[0]["stars"], found[1]["error"]) == ("3", "gone")
    assert not any(cell[:1] in "=+-@\t\r" for row in found for cell in row.values() if cell)


def test_lines_and_markdown_hold_everything() -> None:
    batch, rows, ratings = made_rows()
    lines = [json.loads(line) for line in as_jsonl(records(batch, rows, ratings)).splitlines()]
    assert lines[0]["reply"] == rows[0].reply
    text = as_markdown(batch, records(batch, rows, ratings))
    assert "> Say\n> it" in text
    assert "\\# no heading" in text
    assert "★★★" in text
    assert "*No reply: gone*" in text


def test_the_starter_set_is_whole_and_stays_until_it_is_edited(home: Home) -> None:
    shelf = Shelf(home)
    assert len(shelf.prompts()) >= 30
    assert all(p.tags for p in shelf.prompts())
    assert shelf.styles()[0].id == "plain"
    assert not shelf.path.exists()
    shelf.save_prompt("Mine", "Hello?", ["New", " new ", ""])
    assert shelf.prompt("Mine").tags == ("new",)
    assert len(Shelf(home).prompts()) == len(starter().prompts) + 1
    shelf.remove("prompts", "who_are_you")
    assert shelf.restore() == 1
    assert shelf.restore() == 0


def test_the_shelf_refuses_what_it_cannot_keep(home: Home) -> None:
    shelf = Shelf(home)
    with pytest.raises(BadInput, match="another prompt called"):
        shelf.save_prompt("Who are you?", "Again?")
    with pytest.raises(BadInput, match="cannot be kept"):
        shelf.save_prompt("Empty", "  ")
    with pytest.raises(BadInput, match="stays as it is"):
        shelf.save_style(Style(id="new", name="As it is"))
    made = shelf.save_style(Style(id="new", name="Loud", notes="SHOUT"))
    assert shelf.save_style(made.model_copy(update={"notes": "Whisper"})).id == made.id == "loud"
    shelf.path.write_text('{"prompts": 3}')
    with pytest.raises(BadInput, match="cannot be read"):
        shelf.prompts()


def test_the_page_shows_text_as_text() -> None:
    row = Row(id="p1-v1-s0", prompt=EVIL, text=EVIL, variant="a", variant_name=EVIL, seed=0, reply=EVIL, adapter=EVIL)
    assert EVIL not in rows_table([row], {row.id: Rating(row=row.id, note=EVIL)}, "", 0) + row_detail(row)
    assert "12 replies" in counted(3, 2, 2)
    assert "a variant" in counted(1, 0, 2)


def test_prompts_of_ones_own_have_ids_of_their_own() -> None:
    found = own_prompts(["Hello?", "", "Hello?", "你好"])
    assert [p.text for p in found] == ["Hello?", "Hello?", "你好"]
    assert len({p.id for p in found}) == 3
    with pytest.raises(BadInput, match="Prompt 1"):
        own_prompts(["x" * 9000])


def wait_for(condition: Any, seconds: float = 10) -> None:
    waited = threading.Event()
    for _ in range(int(seconds * 50)):
        if condition():
            return
        waited.wait(0.02)
    raise AssertionError("it did not happen")
