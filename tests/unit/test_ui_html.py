"""What the page shows: escaped, in words, and saying what to do. No page needed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from persona_lab.errors import BadInput, BadSetting, OutOfMemory
from persona_lab.events import Sample
from persona_lab.types import (
    ChatChunk,
    Conversation,
    Message,
    Persona,
    PersonaSummary,
    PlanRow,
    PreviewToken,
    RunStatus,
    RunView,
    Stamp,
)
from persona_lab.ui import runs, scores
from persona_lab.ui.cards import created, details, edited, gallery
from persona_lab.ui.conversations import ROWS_A_PAGE, masked, page_count, rows
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.html import avatar, duration, plural, size
from persona_lab.ui.notices import error_box, explain
from persona_lab.ui.talk import Talk, Turn, default_panes, drawn

EVIL = "<img src=x onerror=alert(1)>\"'"


def persona(**data: Any) -> Persona:
    card = {"spec": "chara_card_v3", "data": {"name": EVIL, "description": EVIL, "unknown_key": 7, **data}}
    return Persona(id="evil", name=EVIL, card=card, example=True)


def run(status: RunStatus = "running", **fields: Any) -> RunView:
    return RunView(id="r-1", kind="train", name=EVIL, status=status, **fields)


def no_markup_of_others(html: str) -> None:
    assert "<img src=x" not in html
    ElementTree.fromstring(f"<div>{html}</div>".replace("&nbsp;", " ").replace("<br>", ""))


def test_everything_user_made_is_escaped() -> None:
    no_markup_of_others(gallery([PersonaSummary(id="e", name=EVIL, example=False, installed=True, tagline=EVIL)], "e"))
    no_markup_of_others(details(persona(first_mes=EVIL, tags=[EVIL])))
    no_markup_of_others(masked([PreviewToken(text=EVIL, trained=True)]))
    said = Conversation(id="c", messages=(Message(role="user", content=EVIL), Message(role="assistant", content=EVIL)))
    no_markup_of_others(rows([said], 0, 0))
    no_markup_of_others(runs.status_line(run("failed", cause=EVIL, message=EVIL, fix=EVIL), RunPicture()))
    no_markup_of_others(runs.samples([Sample(step=0, prompt=EVIL, reply=EVIL)]))
    no_markup_of_others(runs.history([run()], ""))
    no_markup_of_others(error_box(BadInput(EVIL, EVIL)))
    talk = Talk([Turn("user", EVIL), Turn("assistant", EVIL, error=EVIL)])
    assert all("<img" not in message["content"] for message in drawn(talk))
    assert "<img" not in scores.report_frame(EVIL)


def test_mask_keeps_every_character_and_marks_exactly_the_trained_tokens() -> None:
    tokens = [PreviewToken(text="user\n", trained=False), PreviewToken(text=" Aye <3", trained=True)]
    root = ElementTree.fromstring(f"<div>{masked(tokens)}</div>")
    box = root.find("div")
    assert box is not None
    spans = box.findall("span")
    assert [(span.text, span.attrib["class"]) for span in spans] == [
        ("user⏎\n", "pl-tok pl-off"),
        (" Aye <3", "pl-tok pl-on"),
    ]
    assert box.attrib["data-trained"] == "1"


def test_pages_cover_every_conversation_once() -> None:
    many = [Conversation(id=str(i), messages=(Message(role="user", content=f"line {i}."),)) for i in range(19)]
    shown = "".join(rows(many, page, -1) for page in range(page_count(len(many))))
    assert all(shown.count(f"line {i}.") == 1 for i in range(19))
    assert page_count(0) == 1
    assert page_count(ROWS_A_PAGE) == 1


def test_numbers_in_words() -> None:
    assert [size(n) for n in (12, 2_000, 19_600_000, 1_300_000_000)] == ["12 bytes", "2 kB", "20 MB", "1.3 GB"]
    assert [duration(s) for s in (0.2, 45, 150, 3600, 4800)] == ["under 1 s", "45 s", "2 min", "1 h", "1 h 20 min"]
    assert plural(1, "run") == "1 run"


def test_avatar_survives_a_missing_and_a_broken_picture(tmp_path: Path) -> None:
    broken = tmp_path / "a.png"
    broken.write_bytes(b"\x89PNG not really")
    good = tmp_path / "b.png"
    Image.new("RGB", (512, 512), "teal").save(good)
    assert ">Q</span>" in avatar(str(tmp_path / "gone.png"), "Quill")
    assert ">Q</span>" in avatar(str(broken), "Quill")
    assert "data:image/webp;base64," in avatar(str(good), "Quill")


@pytest.mark.parametrize("status", ["failed", "interrupted", "cancelled"])
def test_a_run_that_did_not_finish_says_why_and_what_to_do(status: RunStatus) -> None:
    html = runs.status_line(run(status, message="It broke at row 7.", resumable=True), RunPicture())
    assert "It broke at row 7." in html
    assert "Press Resume" in html
    assert f'data-status="{status}"' in html


def test_a_finished_run_says_whether_it_changed_anything() -> None:
    result = {"loss": {"validation_before": 3.6, "validation_after": 2.7}, "changed": "Yes: it fell by a quarter."}
    picture = RunPicture()
    for step, reply, kept in ((0, "I am an AI.", False), (4, "Hm.", False), (3, "Shiny!", True)):
        picture.add([Sample(step=step, prompt="Who are you?", reply=reply, kept=kept)])
    html = runs.status_line(run("done", result=result), picture)
    assert "3.600 → 2.700" in html
    assert html.index("I am an AI.") < html.index("Shiny!")
    assert "Hm." not in html
    assert "Yes: it fell by a quarter." in html


def test_the_shown_run_is_the_active_one_else_the_newest() -> None:
    def view(run_id: str, status: RunStatus, kind: Any = "train") -> RunView:
        return RunView(id=run_id, kind=kind, name=run_id, status=status)

    newest_first = [view("e", "running", "evaluate"), view("d", "queued"), view("c", "running"), view("b", "done")]
    assert runs.newest_shown(newest_first, ["train"]) == "c"
    assert runs.newest_shown(newest_first[3:], ["train"]) == "b"
    assert runs.newest_shown([], ["train"]) == ""


def test_strategy_cards_give_reason_and_cost_and_recommend_one() -> None:
    row = PlanRow(
        strategy="lora", title="LoRA", fits=True, rank=1, reason="", trainable_parameters=4_900_000,
        peak_memory_bytes=1_300_000_000, seconds=150, disk_bytes=19_600_000, uncertainty=2,
    )  # fmt: skip
    big = {"strategy": "full", "title": "Full", "rank": 2, "fits": False, "reason": "Too big.", "blocked_by": "machine"}
    lacking = {"strategy": "continue", "title": "Go on", "fits": False, "blocked_by": "settings", "rank": 3}
    rows = [row, row.model_copy(update=big), row.model_copy(update=lacking)]
    found = runs.strategy_choices(rows, {"lora": "Small and quick."}, {"continue": "a variant"})
    cards = {value: text for text, value in found}
    assert cards["lora"].startswith("LoRA ★ recommended\nSmall and quick.\nabout 2 min (75 s to 5 min) · 1.3 GB memory")
    assert "Full — does not fit\nToo big." in cards["full"]
    assert cards["continue"].startswith("Go on — needs a variant\n")
    assert "does not fit" not in runs.plan_box(rows[2])
    assert "650 MB to 2.6 GB" in runs.plan_box(row)


def test_errors_are_one_paragraph_with_every_problem() -> None:
    text = explain(BadSetting("Some settings are wrong.", "Known: rank.", [("rank", "too big"), ("x", "unknown")]))
    assert text == "Some settings are wrong. rank: too big; x: unknown. Known: rank."
    assert "Out of memory" in error_box(OutOfMemory("It needed 30 GB.", "Use batch_size=1."))
    assert "Use batch_size=1." in error_box(OutOfMemory("It needed 30 GB.", "Use batch_size=1."))


def test_editing_keeps_what_the_form_does_not_know() -> None:
    before = persona()
    after = edited(before, "  Quill ", ("d", "p", "s", "hello"))
    assert after.name == "Quill"
    assert after.data["unknown_key"] == 7
    assert after.data["first_mes"] == "hello"
    assert not after.example
    assert before.data["description"] == EVIL
    with pytest.raises(BadInput, match="no name"):
        edited(before, "  ", ("", "", "", ""))


def test_a_new_persona_gets_a_free_id_and_needs_a_word_about_itself() -> None:
    made = created("Tamsin Quill", ("A cartographer.", "", "", ""), {"tamsin_quill", "tamsin_quill_2"})
    assert made.id == "tamsin_quill_3"
    assert made.data["name"] == "Tamsin Quill"
    with pytest.raises(BadInput, match="who this character is"):
        created("Nobody", ("", " ", "here", "hi"), ())


def test_metric_table_shows_intervals_directions_and_gaps() -> None:
    metric = {"evaluator": "e", "metric": "gain_true", "value": 0.42, "low": 0.3, "high": 0.5, "n": 30, "unit": "bits"}
    measured = [
        {"variant": "v1", "metrics": [metric | {"better": "higher", "reference": 0.0, "note": EVIL}]},
        {"variant": "base-x", "metrics": []},
    ]
    html = scores.metric_table(measured, {"v1": EVIL, "base-x": "Base model"})
    no_markup_of_others(html)
    assert "0.300 to 0.500<br>n = 30" in html
    assert "higher is better" in html
    assert "not measured" in html


def stamp(adapter: str) -> Stamp:
    return Stamp(variant="v", adapter=adapter, base="starter", seed=3, tokens=20, seconds=2, first_token_seconds=0.4)


def test_a_talk_streams_and_keeps_its_stamp_out_of_what_the_model_reads() -> None:
    talk = Talk([Turn("assistant", "Good evening.")])
    talk.ask("Who are you?")
    assert [m.content for m in talk.messages()] == ["Good evening.", "Who are you?"]
    assert "thinking" in drawn(talk)[-1]["content"]
    talk.add(ChatChunk(pane="0", text="The keeper "))
    talk.add(ChatChunk(pane="0", text="of hours."))
    talk.add(ChatChunk(pane="0", done=True, stamp=stamp("lora 3f2a")))
    assert "lora 3f2a · seed 3 · 20 tokens at 10/s · first after 0.4 s" in drawn(talk)[-1]["content"]
    assert talk.messages()[-1].content == "The keeper of hours."


def test_a_failed_or_stopped_exchange_is_shown_but_not_read_again() -> None:
    talk = Talk()
    talk.ask("One?")
    talk.add(ChatChunk(pane="0", error="The chat worker died.", done=True))
    talk.ask("Two?")
    assert "The chat worker died." in drawn(talk)[1]["content"]
    assert [m.content for m in talk.messages()] == ["Two?"]
    talk.settle()
    assert "Stopped." in drawn(talk)[-1]["content"]
    assert talk.ask_again()
    assert [m.content for m in talk.messages()] == ["Two?"]


def test_a_greeting_alone_cannot_be_regenerated() -> None:
    assert not Talk([Turn("assistant", "Hello.")]).ask_again()


def test_panes_begin_with_the_newest_variant_beside_the_base() -> None:
    assert default_panes(["new", "old"], "base") == ["new", "base", "old", "base", "base", "base"]
    assert default_panes([], "base") == ["base"] * 6
