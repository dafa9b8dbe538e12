"""What a chat window holds: blind names stay on the server, nothing said is lost, edits and branches keep the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from persona_lab.engine import Engine
from persona_lab.errors import BadInput, UnknownName
from persona_lab.home import Home
from persona_lab.types import ChatChunk, Sampling, Stamp
from persona_lab.ui.chat_panels import OWN, PRESETS, SamplingPanel, _name_of, _numbers
from persona_lab.ui.sessions import Session, greetings
from persona_lab.ui.talk import NOT_FINISHED, PANES, Talk, Turn, drawn, thumbs, typed

CARD = {
    "spec": "chara_card_v2",
    "data": {
        "name": "Tam",
        "description": "A mender of clocks.",
        "first_mes": "Tick, {{user}}.",
        "alternate_greetings": ["Tock.", 7, "Tick, {{user}}."],
    },
}


@pytest.fixture
def engine(home: Home, tmp_path: Path) -> Iterator[Engine]:
    card = tmp_path / "tam.json"
    card.write_text(json.dumps(CARD))
    with Engine.open(home.root) as opened:
        opened.import_persona(card, "tam")
        yield opened


def stamp(variant: str) -> Stamp:
    return Stamp(
        variant=variant, adapter=f"lora {variant} f00", base="b", seed=1, tokens=9, seconds=1, first_token_seconds=0.1
    )


def answer(session: Session, text: str = "Aye") -> None:
    for number, talk in enumerate(session.shown):
        if talk.waiting:
            talk.add(ChatChunk(pane=str(number), text=f"{text} {number}"))
            talk.add(ChatChunk(pane=str(number), done=True, stamp=stamp(session.variants[number])))


@pytest.fixture
def session() -> Session:
    made = Session(persona="tam", owner="browser:me", variants=["v1", "v2", "v3", "v1", "v1", "v1"], count=3)
    made.begin("Tick.")
    for talk in made.shown:
        talk.ask("One?")
    answer(made)
    for talk in made.shown:
        talk.ask("Two?")
    answer(made)
    return made


def test_a_conversation_comes_back_as_it_was_and_what_was_not_finished_says_so(
    engine: Engine, session: Session
) -> None:
    session.talks[0].ask("Three?")
    session.talks[0].add(ChatChunk(pane="0", text="I was just"))
    session.save(engine, {"seed": 4})
    again = Session(persona="", owner="browser:me")
    again.bring_back(engine.chats.get(session.chat, "browser:me"))
    assert again.variants == session.variants
    assert [t.turns for t in again.talks[1:]] == [t.turns for t in session.talks[1:]]
    assert again.talks[0].turns[-1].text == "I was just"
    assert again.talks[0].turns[-1].error == NOT_FINISHED
    assert again.settings == {"seed": 4}
    assert len(again.talks) == PANES
    with pytest.raises(UnknownName):
        engine.chats.get(session.chat, "browser:you")


def test_edit_branch_and_continue_keep_the_rest(engine: Engine, session: Session) -> None:
    session.save(engine, {})
    first = session.chat
    assert session.talks[0].go_on()
    assert session.talks[0].messages()[-1].content == "Aye 0"  # the reply itself is what is continued
    session.talks[0].add(ChatChunk(pane="0", text=", sir", done=True, stamp=stamp("v1")))
    reply = session.talks[0].turns[-1]
    assert (reply.text, reply.waiting) == ("Aye 0, sir", False)
    assert session.talks[0].ask_again()
    assert session.talks[0].turns[-1].id != reply.id
    assert [m.content for m in session.talks[0].messages()] == ["Tick.", "One?", "Aye 0", "Two?"]
    session.branch()
    for talk in session.talks:
        talk.cut(1)
    session.save(engine, {})
    assert session.chat != first
    assert engine.chats.get(session.chat, session.owner).branch_of == first
    assert len(engine.chats.get(first, session.owner).panes[1].turns) == 5
    assert [turn.text for turn in session.talks[1].turns] == ["Tick.", "One?", "Aye 1"]
    assert not Talk([Turn("assistant", "Tick.")]).go_on()


def test_a_blind_comparison_names_nobody_until_the_vote(engine: Engine, session: Session) -> None:
    orders = set()
    for _ in range(30):
        session.variants, session.count = ["v1", "v2", "v2", "v3", "v1", "v1"], 3
        session.hide()
        assert session.count == 2
        assert sorted(session.variants[:2]) == ["v1", "v2"]
        orders.add(tuple(session.variants[:2]))
    assert len(orders) == 2
    with pytest.raises(BadInput, match="Not every pane"):
        session.vote("me", "win", 0, "")
    for talk in session.shown:
        talk.ask("Who is it?")
    answer(session)
    shown = json.dumps([drawn(talk, hidden=True) for talk in session.talks])
    assert "v1" not in shown
    assert "lora" not in shown
    assert "lora v1" in json.dumps([drawn(talk) for talk in session.shown])
    vote = engine.votes.cast(session.vote("me", "win", 1, "kinder"))
    best = vote.candidates[1]
    assert (best.variant, best.text, best.adapter) == (session.variants[1], "Aye 1", f"lora {session.variants[1]} f00")
    assert [m.content for m in best.messages] == ["Tick.", "Who is it?"]
    session.hidden = False
    with pytest.raises(BadInput, match="not be blind"):
        session.vote("me", "win", 1, "")
    session.variants = ["v1"] * PANES
    with pytest.raises(BadInput, match="different variants"):
        session.hide()


def test_a_pane_whose_variant_is_gone_fails_alone(engine: Engine) -> None:
    session = Session(persona="tam", variants=["gone", "base-tam", "model:/nowhere", *["gone"] * 3], count=3)
    session.begin("")
    for talk in session.shown:
        talk.ask("Hello?")
    [request] = session.requests(engine, Sampling())
    assert (request.pane, request.variant.id) == ("1", "base-tam")
    assert "gone" in session.talks[0].turns[-1].error
    assert "/nowhere" in session.talks[2].turns[-1].error


def test_messages_can_be_edited_as_they_were_typed() -> None:
    text = 'if a < b & c > d: say "&lt;b&gt;" & <img src=x>'
    [shown] = drawn(Talk([Turn("user", text)]))
    assert "<" not in shown["content"]
    assert typed([{"type": "text", "text": shown["content"]}]) == text
    assert thumbs(Talk([Turn("user", "a"), Turn("assistant", "b", thumb="up"), Turn("assistant", "c")])) == [
        "Like",
        None,
    ]


def test_presets_and_greetings(engine: Engine) -> None:
    assert [_name_of(*_numbers(name)) for name in PRESETS] == list(PRESETS)
    assert _name_of(0.33, 0.5, 1.0) == OWN
    sampling, saved = SamplingPanel.read([7, 40, 0.5, 0.9, 1.1])
    assert (sampling.seed, saved["temperature"]) == (7, 0.5)
    with pytest.raises(BadInput, match="out of bounds"):
        SamplingPanel.read([7, 40, 9, 0.9, 1.1])
    assert [whole for _, whole in greetings(engine.persona("tam"))] == ["Tick, User.", "Tock.", ""]
