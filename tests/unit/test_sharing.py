"""Personas out and in again: cards that name their weights, bundles that nobody changed, edits that can be undone."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from persona_lab.engine import Engine
from persona_lab.errors import BadInput, UnknownName
from persona_lab.home import Home
from persona_lab.lore import in_conversation
from persona_lab.passing_on import WEIGHTS, with_weights
from persona_lab.personas.bounded import pack, unzip
from persona_lab.personas.bundle import SUMS
from persona_lab.personas.cards import read_card
from persona_lab.personas.dialogues import as_rows, example_dialogues
from persona_lab.personas.editing import (
    edited_card,
    entries_of,
    greetings_of,
    rest_of,
    tags_of,
    with_entry,
    without_entry,
)
from persona_lab.personas.versions import MAX_VERSIONS, can_redo, versions
from persona_lab.personas.world_info import added_to
from persona_lab.types import ChatRequest, Message, Persona, Variant

PERSON = "nan_tolliver"


@pytest.fixture
def engine(home: Home) -> Iterator[Engine]:
    with Engine.open(home.root) as opened:
        yield opened


def exported(engine: Engine, tmp_path: Path, **more: Any) -> Path:
    return engine.export_persona(PERSON, "bundle", tmp_path / "nan.zip", **more)


def test_a_bundle_brings_everything_to_another_home(engine: Engine, tmp_path: Path) -> None:
    bundle = exported(engine, tmp_path, licence="CC BY 4.0\nBy Nan.")
    with Engine.open(tmp_path / "other") as other:
        found = other.import_character(bundle, "nan")
        assert found.kind.startswith("a bundle with")
        assert found.notes[0] == "Licence: CC BY 4.0"
        mine, theirs = engine.persona(PERSON), found.persona
        assert (theirs.id, theirs.name, theirs.card, theirs.facts) == ("nan", mine.name, mine.card, mine.facts)
        assert theirs.avatar
        assert Path(theirs.avatar).read_bytes() == Path(mine.avatar or "").read_bytes()
        before, after = engine.dataset(engine.datasets(PERSON)[0].id), other.dataset(other.datasets("nan")[0].id)
        assert after.conversations == before.conversations
        assert (after.id, after.persona) == ("nan-v1", "nan")
        assert set(other.catalog.held_out("nan").entries) == set(engine.catalog.held_out(PERSON).entries)
        assert other.probes("nan").probes == engine.probes(PERSON).probes
        kept = json.loads((other.home.persona("nan") / "provenance.json").read_text())
        assert kept["licence"].endswith("By Nan.")
        assert kept["dataset"]["fingerprint"] == engine.datasets(PERSON)[0].fingerprint
        again = other.export_persona("nan", "bundle", tmp_path / "again.zip")
        files = unzip(again.read_bytes(), "again")
        assert files["LICENSE.txt"] == b"CC BY 4.0\nBy Nan.\n", "a licence stays with what it was given for"
        assert json.loads(files["provenance.json"])["before"][0]["exported_from"] == PERSON
        assert str(tmp_path).encode() not in b"".join(files.values()), "no path of this machine is passed on"


def test_nothing_is_ever_overwritten(engine: Engine, tmp_path: Path) -> None:
    bundle = exported(engine, tmp_path)
    assert engine.import_persona(bundle).id == f"{PERSON}-2"
    with pytest.raises(BadInput, match="already"):
        engine.import_persona(bundle, PERSON)
    with pytest.raises(BadInput, match="exists already"):
        exported(engine, tmp_path)
    with pytest.raises(UnknownName, match="card format"):
        engine.export_persona(PERSON, "webp", tmp_path / "x")


def changed(bundle: Path, change: dict[str, bytes | None], sums: bool = False) -> bytes:
    files: dict[str, bytes] = unzip(bundle.read_bytes(), "b")
    for path, content in change.items():
        if content is None:
            del files[path]
        else:
            files[path] = content
    if sums:
        del files[SUMS]
        files[SUMS] = "".join(f"{hashlib.sha256(c).hexdigest()}  {p}\n" for p, c in files.items()).encode()
    return pack(files)


def test_a_bundle_without_checksums_is_a_charx(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(changed(exported(engine, tmp_path), {SUMS: None}, False))
    # a card.json beside other files: the card is read, and its data left alone
    assert engine.import_character(path).kind.startswith("a character card (CHARX")


@pytest.mark.parametrize(
    ("change", "sums", "says"),
    [
        ({"card.json": b'{"name": "Evil"}'}, False, "was changed since"),
        ({"probes.jsonl": None}, False, "is missing"),
        ({"extra": b"x"}, False, "do not name"),
        ({"bundle.json": b'{"format": "persona-lab-bundle", "version": 9}'}, True, "format"),
        ({"card.json": None}, True, "without a card"),
        ({"card.json": b"[]"}, True, "not a character card"),
        ({"avatar.png": b"\x89PNG no"}, True, "not a PNG"),
        ({"dataset.jsonl": b'{"kind": "dataset"}\n'}, True, "damaged"),
        ({"dataset.summary.json": b"{}"}, True, "cannot be used"),
        ({"probes.jsonl": b"[]\n"}, True, "not a JSON object"),
        ({"held_out.jsonl": b"nonsense\n"}, True, "cannot be read"),
        ({SUMS: b"nonsense\n"}, False, "no checksum"),
    ],
)
def test_a_bundle_that_was_changed_leaves_nothing_behind(
    engine: Engine, tmp_path: Path, change: dict[str, bytes | None], sums: bool, says: str
) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(changed(exported(engine, tmp_path), change, sums))
    before = {persona.id for persona in engine.personas()}
    with pytest.raises(BadInput, match=says) as caught:
        engine.import_persona(path)
    assert caught.value.fix
    assert {persona.id for persona in engine.personas()} == before
    assert not list(engine.home.root.glob(".incoming*"))
    assert not (engine.home.root / "personas" / f"{PERSON}-2").exists()


def test_a_bundle_leads_nowhere_else(engine: Engine, tmp_path: Path) -> None:
    buffer = io.BytesIO(exported(engine, tmp_path).read_bytes())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("assets/../../../evil", b"x")
    (tmp_path / "evil.zip").write_bytes(buffer.getvalue())
    with pytest.raises(BadInput, match="leads out"):
        engine.import_persona(tmp_path / "evil.zip")
    assert not list(tmp_path.rglob("evil"))


def test_damaged_archives_never_half_arrive(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    fuzz = importlib.import_module("fuzz_seeds")
    good = fuzz.seeds()
    arrived = 0
    for number in range(80):
        name = ("card.charx", "bundle.zip")[number % 2]
        (tmp_path / name).write_bytes(fuzz.damaged(name, good, Random(number))[1])
        try:
            persona = engine.import_persona(tmp_path / name, f"p{number}")
        except BadInput:
            assert not engine.home.persona(f"p{number}").exists()
            continue
        arrived += 1
        assert engine.persona(persona.id).card == persona.card
        engine.probes(persona.id)
    assert arrived > 5
    assert not list(engine.home.root.glob(".incoming*"))


def test_a_card_names_its_weights(tmp_path: Path, persona_factory: Any) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    variant = Variant(
        id="v1", name="Mine", persona="tamsin", base="starter", strategy="lora", kind="adapter", path=str(tmp_path),
        fingerprint="abc",
    )  # fmt: skip
    persona = persona_factory(extensions={"other/tool": 1})
    card = with_weights(persona.card, [variant])
    assert card["data"]["extensions"]["other/tool"] == 1
    (named,) = card["data"]["extensions"][WEIGHTS]
    assert (named["variant"], named["base"], named["strategy"]) == ("v1", "starter", "lora")
    assert named["sha256"] == {"adapter_model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    assert WEIGHTS not in persona.card["data"]["extensions"], "only the exported card names them"
    assert with_weights(persona.card, []) == persona.card


def test_every_format_carries_assets_where_it_can(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "a.charx"
    source.write_bytes(pack({"card.json": '{"name": "Ada"}', "assets/x/y.bin": b"\0"}))
    engine.import_persona(source)
    for format in ("png", "json", "charx"):
        out = engine.export_persona("ada", format, tmp_path)
        assert read_card(out).card == engine.persona("ada").card
    assert read_card(tmp_path / "ada.charx").files["assets/x/y.bin"] == b"\0"


# --- lore in conversations ------------------------------------------------------------------------


def test_lore_reaches_the_chat(engine: Engine) -> None:
    persona = engine.persona(PERSON)
    variant = engine.base_variant(PERSON)

    def request(text: str) -> ChatRequest:
        return ChatRequest(pane="0", variant=variant, messages=(Message(role="user", content=text),))

    [asked] = engine._with_lore([request("Who is Clifford?")])
    assert "Clifford Bann, plot 20" in asked.variant.system
    quiet = request("Good morning.")
    assert engine._with_lore([quiet])[0] is quiet, "a prompt without lore is the very one that was trained with"
    bare = request("Clifford?").model_copy(update={"variant": variant.model_copy(update={"prompt_mode": "none"})})
    assert in_conversation(bare, persona, engine.home) is bare
    gone = request("Clifford?").model_copy(update={"variant": variant.model_copy(update={"persona": "nobody"})})
    assert engine._with_lore([gone])[0] is gone
    # a constant entry that came after the training is not put into a prompt that was trained without it
    rows = [*entries_of(persona), {"keys": ["x"], "content": "Always so.", "constant": True, "enabled": True}]
    book = {**persona.data["character_book"], "entries": rows}
    edited = persona.model_copy(update={"card": {**persona.card, "data": {**persona.data, "character_book": book}}})
    assert in_conversation(quiet, edited, engine.home) is quiet
    (engine.home.persona(PERSON) / "card.json").write_text("{")  # damaged: the chat goes on with the trained prompt
    assert engine._with_lore([request("Who is Clifford?")])[0].variant == variant


def test_a_lorebook_file_joins_a_persona(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "lore.json"
    path.write_text(json.dumps({"entries": {"0": {"key": ["leek"], "content": "Leeks are holy."}}}))
    count = len(entries_of(engine.persona(PERSON)))
    assert engine.import_lorebook(path, PERSON).notes == ("1 of 1 entries were added.",)
    assert "0 of 1" in engine.import_lorebook(path, PERSON).notes[0]
    assert len(entries_of(engine.persona(PERSON))) == count + 1
    with pytest.raises(BadInput, match="world-info"):
        engine.import_persona(path)
    # a book keyed by uid, as some programs write it, keeps what it has
    merged, added = added_to({"entries": {"0": {"keys": ["a"], "content": "old"}}}, [{"keys": ["b"], "content": "new"}])
    assert ([entry["content"] for entry in merged["entries"]], added) == (["old", "new"], 1)
    (tmp_path / "no.json").write_text('{"name": "Ada"}')
    with pytest.raises(BadInput, match="no lorebook entries"):
        engine.import_lorebook(tmp_path / "no.json", PERSON)


# --- editing and undoing --------------------------------------------------------------------------


def same(persona: Persona, **texts: str) -> Persona:
    fields = {"name": persona.field("name")} | texts
    return edited_card(persona, fields, greetings_of(persona), tags_of(persona), rest_of(persona))


def test_an_untouched_form_changes_nothing(persona_factory: Any) -> None:
    odd = persona_factory(
        description="a\r\nb", tags=["x,y", "z"], alternate_greetings=["", "Hm.\r\n"], vendor={"a": [1]},
        character_book={"entries": [{"keys": ["k"], "content": "c", "odd": 1}]}, group_only_greetings=["g"],
        creator_notes="", post_history_instructions="", creator="", character_version="",
    )  # fmt: skip
    texts = {name: odd.field(name).replace("\r\n", "\n") for name in ("name", "description", "personality")}
    assert same(odd, **texts).card == odd.card


def test_only_what_was_typed_changes(persona_factory: Any) -> None:
    persona = persona_factory(alternate_greetings=["One."], tags=["a"], vendor=1)
    persona = persona.model_copy(update={"card": {**persona.card, "description": "stale", "root": 2}})
    new = edited_card(persona, {"name": " Tam ", "description": "New."}, ["One.", " ", "Two."], "a, b", '{"vendor": 3}')
    data = new.card["data"]
    assert (new.name, data["name"], data["description"]) == ("Tam", " Tam ", "New.")
    assert (data["alternate_greetings"], data["tags"], data["vendor"]) == (["One.", "Two."], ["a", "b"], 3)
    assert (new.card["description"], new.card["root"]) == ("New.", 2), "copies for V1 programs do not go stale"
    assert "extensions" in data
    for rest, says in (("[1]", "not an object"), ("{", "not valid JSON"), ('{"name": "x"}', "place of its own")):
        with pytest.raises(BadInput, match=says):
            edited_card(persona, {}, [], "", rest)
    with pytest.raises(BadInput, match="no name"):
        same(persona, name=" ")


def test_entries_are_edited_by_their_place(persona_factory: Any) -> None:
    persona = persona_factory(character_book={"entries": [{"keys": ["a"], "content": "x", "odd": 1}], "mine": 1})
    new = with_entry(persona, 0, {"keys": ["b"], "content": "y", "extensions": {"p": 1}})
    assert entries_of(new) == [{"keys": ["b"], "content": "y", "odd": 1, "extensions": {"p": 1}}]
    assert new.data["character_book"]["mine"] == 1
    more = with_entry(new, None, {"keys": ["c"], "content": "z"})
    assert [entry["content"] for entry in entries_of(more)] == ["y", "z"]
    assert [entry["content"] for entry in entries_of(without_entry(more, 0))] == ["z"]
    for number, fields, says in (
        (0, {"content": " "}, "says nothing"),
        (0, {"content": "x"}, "No key"),
        (9, {"content": "x", "keys": ["a"]}, "no entry 10"),
    ):
        with pytest.raises(BadInput, match=says):
            with_entry(persona, number, fields)


def test_edits_can_be_taken_back_and_brought_back(engine: Engine, persona_factory: Any) -> None:
    persona = engine.save_persona(persona_factory())
    folder = engine.home.persona("tamsin")
    assert versions(folder) == []
    with pytest.raises(BadInput, match="no earlier version"):
        engine.undo_card("tamsin")
    picture = Path(engine.persona(PERSON).avatar or "").read_bytes()
    engine.save_persona(same(persona, name="Two"), picture)
    engine.save_persona(same(engine.persona("tamsin"), name="Three"))
    engine.save_persona(engine.persona("tamsin"))
    assert len(versions(folder)) == 2, "saving what is there already is no edit"
    assert engine.undo_card("tamsin").name == "Two"
    back = engine.undo_card("tamsin")
    assert (back.name, back.avatar) == ("Tamsin Quill", None)
    assert [p.name for p in engine.personas() if p.id == "tamsin"] == ["Tamsin Quill"]
    again = engine.undo_card("tamsin", again=True)
    assert again.name == "Two"
    assert again.avatar
    assert Path(again.avatar).read_bytes() == picture
    engine.save_persona(same(again, name="Four"))
    assert not can_redo(folder)
    for number in range(MAX_VERSIONS + 5):
        engine.save_persona(same(engine.persona("tamsin"), name=f"N{number}"))
    assert len(versions(folder)) == MAX_VERSIONS


# --- example dialogues ----------------------------------------------------------------------------


def test_example_dialogues(persona_factory: Any) -> None:
    text = (
        "<start>\n*Rain.*\n{{user}}: Lost?\nStill?\n{{char}}: Never.\n{{CHAR}}: The map is late.\n<START>\n"
        "Tamsin Quill: Mind the stair, {{user}}.\n<USER>: Why?\n<BOT>: Drawn from memory.\n<START>\n"
        "{{user}}: Unanswered"
    )
    first, second = example_dialogues(persona_factory(mes_example=text), "Kim")
    assert [(m.role, m.content) for m in first.messages] == [
        ("user", "Lost?\nStill?"),
        ("assistant", "*Rain.*\nNever.\nThe map is late."),
    ]
    assert [m.role for m in second.messages] == ["assistant", "user", "assistant"]
    assert second.messages[0].content == "Mind the stair, Kim."
    assert example_dialogues(persona_factory(mes_example="")) == ()
    assert len(as_rows((first, second)).splitlines()) == 2


def test_written_dialogues_are_data(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    found = example_dialogues(engine.persona(PERSON))
    path.write_text(as_rows(found))
    assert sum(engine.import_dataset(path, PERSON).counts[s] for s in ("train", "validation", "test")) == len(found)


def test_dialogues_before_and_after_the_first_mark_are_two(persona_factory: Any) -> None:
    text = "{{user}}: One?\n{{char}}: Yes.\n<START>\n{{user}}: Two?\n{{char}}: No."
    found = example_dialogues(persona_factory(mes_example=text), "Kim")
    assert len({(dialogue.id, dialogue.group) for dialogue in found}) == 2
