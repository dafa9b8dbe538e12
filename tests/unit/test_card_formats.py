"""Cards of every kind come in, go out and come in again as they were; what is no card is refused in a sentence."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from persona_lab.errors import BadInput
from persona_lab.personas import bounded
from persona_lab.personas.bounded import pack, safe_path, unzip
from persona_lab.personas.cards import CardFile, as_v2, card_of, card_to_json, card_to_png, normalise, read_card
from persona_lab.personas.charx import write_charx
from persona_lab.personas.files import persona_file_of, read_persona_file
from persona_lab.personas.png import read_chunks, text_of
from persona_lab.personas.world_info import WorldInfo


def picture(format: str = "PNG", color: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, format)
    return buffer.getvalue()


# --- generated cards ------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
short = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(short, anything, max_size=3)
entries = st.fixed_dictionaries(
    {
        "keys": st.lists(short, max_size=3), "content": text, "extensions": objects, "enabled": st.booleans(),
        "insertion_order": st.integers(-5, 500),
    },
    optional={
        "name": text, "priority": st.integers(), "id": st.integers() | short, "comment": text,
        "selective": st.booleans(), "secondary_keys": st.lists(short, max_size=2), "constant": st.booleans(),
        "position": st.sampled_from(["before_char", "after_char"]), "use_regex": st.booleans(), "vendor": anything,
    },
)  # fmt: skip
books = st.fixed_dictionaries(
    {"extensions": objects, "entries": st.lists(entries, max_size=3)},
    optional={"name": text, "scan_depth": st.integers(), "token_budget": st.integers(), "vendor/book": anything},
)
named = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30).filter(lambda name: name.strip())
texts = (
    "description", "personality", "scenario", "first_mes", "mes_example", "creator_notes", "system_prompt",
    "post_history_instructions", "creator", "character_version",
)  # fmt: skip
v2_data: dict[str, Any] = {
    "name": named, **dict.fromkeys(texts, text), "alternate_greetings": st.lists(text, max_size=3),
    "tags": st.lists(text, max_size=3), "extensions": objects,
}  # fmt: skip
v3_data = v2_data | {"group_only_greetings": st.lists(text, max_size=2)}
v3_more: dict[str, Any] = {
    "nickname": text, "source": st.lists(text, max_size=2), "creation_date": st.integers(0, 2**40),
    "assets": st.lists(st.fixed_dictionaries({"type": short, "uri": text, "name": short, "ext": short}), max_size=2),
    "creator_notes_multilingual": st.dictionaries(short, text, max_size=2),
}  # fmt: skip
unknown = st.dictionaries(short.map("vendor/{}".format), anything, max_size=3)


def cards(spec: str, version: str, data: dict[str, Any], more: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    inner = st.builds(
        lambda known, extra: {**known, **extra},
        st.fixed_dictionaries(data, optional={"character_book": books, **more}),
        unknown,
    )
    return st.builds(
        lambda data, root: {**root, "spec": spec, "spec_version": version, "data": data}, inner, unknown
    )  # fmt: skip


generated = st.one_of(
    cards("chara_card_v2", "2.0", v2_data, {}),
    cards("chara_card_v3", "3.0", v3_data, v3_more),
)


def canonical(value: Any) -> bytes:
    """A JSON value as bytes that are equal exactly where the values are."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True).encode()


def as_it_was(raw: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """The V3 object as its own spec writes it."""
    return as_v2(card) if raw["spec"] == "chara_card_v2" else card


@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(generated)
def test_generated_cards_round_trip_through_every_format(raw: dict[str, Any]) -> None:
    original = canonical(raw)
    card = card_of(json.dumps(raw).encode(), "test").card
    assert canonical(as_it_was(raw, card)) == original
    assert canonical(raw) == original, "reading changed what was read"

    png = card_to_png(card, PICTURE)
    chunks = {chunk.keyword: json.loads(bounded_base64(text_of(chunk, "x"))) for chunk in read_chunks(png, "x")
              if chunk.keyword in ("chara", "ccv3")}  # fmt: skip
    assert canonical(chunks["ccv3"]) == canonical(card)
    if raw["spec"] == "chara_card_v2":
        assert canonical(chunks["chara"]) == original
    for content in (card_to_json(card).encode(), png, write_charx(card_to_json(card), card, FILES, None)):
        assert canonical(as_it_was(raw, card_of(content, "test").card)) == original


def bounded_base64(raw: bytes) -> bytes:
    import base64

    return base64.b64decode(raw, validate=True)


PICTURE = picture()
FILES = {"assets/other/x.bin": b"\0\1", "module.risum": b"kept"}


def test_files_of_a_charx_and_its_icon_come_back(tmp_path: Path) -> None:
    asset = {"type": "icon", "uri": "embeded://assets/icon/a.webp", "name": "main", "ext": "webp"}
    raw = {"spec": "chara_card_v3", "spec_version": "3.1", "data": {"name": "Ada", "assets": [asset]}}
    files = {**FILES, "assets/icon/a.webp": picture("WEBP", "red")}
    charx = tmp_path / "a.charx"
    charx.write_bytes(pack({"card.json": json.dumps(raw), **files}))
    read = read_card(charx)
    assert (read.spec, read.card["spec_version"]) == ("CHARX, V3", "3.1")
    assert dict(read.files) == files
    assert read.avatar_png is not None
    assert Image.open(io.BytesIO(read.avatar_png)).getpixel((4, 4))[0] > 200  # type: ignore[index]
    again = card_of(write_charx(card_to_json(read.card), read.card, read.files, read.avatar_png), "again")
    assert dict(again.files) == files, "an unchanged picture is not written twice"
    assert again.card == read.card
    other = card_of(write_charx(card_to_json(read.card), read.card, read.files, picture()), "other")
    assert other.avatar_png == picture()
    assert other.card["data"]["assets"][0]["uri"] == "embeded://assets/icon/image/main.png"
    behind_a_jpeg = picture("JPEG") + charx.read_bytes()
    assert card_of(behind_a_jpeg, "risu").card == read.card


WEBUI = """name: Chiharu
greeting: "*waves* Hi, {{user}}!"
context: |-
  Chiharu's Persona: a computer engineer, 007.
  <START>
  {{user}}: Hello?
  {{char}}: Hi!
turn_template: odd
version: 007
"""


def test_characters_of_other_programs() -> None:
    read = card_of(WEBUI.encode(), "Chiharu.yaml", yaml=True)
    data = read.card["data"]
    assert read.spec == "a text-generation-webui character"
    assert data["name"] == "Chiharu"
    assert data["description"] == "Chiharu's Persona: a computer engineer, 007."
    assert data["mes_example"].startswith("<START>\n{{user}}: Hello?")
    assert data["first_mes"].startswith("*waves*")
    assert data["extensions"]["text-generation-webui"] == {"turn_template": "odd", "version": "007"}
    pygmalion = {"char_name": "Mio", "char_persona": "shy", "char_greeting": "...", "world_scenario": "a roof", "x": 1}
    read = card_of(json.dumps(pygmalion).encode(), "mio.json")
    assert (read.spec, read.card["data"]["scenario"]) == ("a Pygmalion character", "a roof")
    assert read.card["data"]["extensions"]["text-generation-webui"] == {"x": 1}


def test_every_shared_card_is_taken_or_refused_in_a_sentence(test_data: Path) -> None:
    seen, told = {}, []
    for path in sorted((test_data / "cards").iterdir()):
        try:
            found = read_persona_file(path)
            seen[path.name] = found.spec if isinstance(found, CardFile) else "?"
        except BadInput as error:
            seen[path.name] = "refused"
            told.append((path.name, error))
    for name, refusal in told:
        assert refusal.fix
        assert "\n" not in str(refusal)
        assert len(str(refusal)) < 500
        assert name in refusal.message
    assert seen == {
        "ORIGIN.txt": "refused",
        "default-chan_v3.png": "V3",
        "luna_v3_with_lorebook.json": "V3",
        "not_a_card.png": "refused",
        "skynet_v1schema.png": "V1",
    }


# --- lorebook files -------------------------------------------------------------------------------

SILLY = {
    "entries": {
        "0": {
            "uid": 0, "key": ["tug", "engine"], "keysecondary": ["cold"], "comment": "The tug",
            "content": "Tin Prayer.",
            "constant": False, "selective": True, "selectiveLogic": 3, "order": 7, "position": 0, "disable": False,
            "scanDepth": 2, "probability": 100, "useProbability": True, "homemade": {"a": 1},
        },
        "1": {"uid": 1, "key": [], "content": "Always.", "constant": True, "position": 4, "disable": True},
    },
    "name": "Rhea",
}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "kind", "keys", "content"),
    [
        (SILLY, "a SillyTavern world-info file", ["tug", "engine"], "Tin Prayer."),
        ({"name": "b", "entries": [{"keys": ["k"], "content": "c", "odd": 1}]}, "a lorebook", ["k"], "c"),
        (
            {"spec": "lorebook_v3", "data": {"entries": [{"keys": ["k"], "content": "c"}]}},
            "a lorebook (V3)",
            ["k"],
            "c",
        ),
        ({"lorebookVersion": 5, "entries": [{"keys": ["k"], "text": "c"}]}, "a NovelAI lorebook", ["k"], "c"),
        ({"kind": "memory", "entries": [{"keywords": ["k"], "entry": "c"}]}, "an Agnai memory book", ["k"], "c"),
        ({"type": "risu", "data": [{"key": "k, l", "content": "c"}]}, "a RisuAI lorebook", ["k", "l"], "c"),
    ],
)
def test_lorebook_files(raw: dict[str, Any], kind: str, keys: list[str], content: str) -> None:
    found = persona_file_of(json.dumps(raw).encode(), "lore.json")
    assert isinstance(found, WorldInfo)
    assert found.kind == kind
    assert (found.entries[0]["keys"], found.entries[0]["content"]) == (keys, content)
    normalise({"spec": "chara_card_v3", "data": {"name": "A", "character_book": found.book}}, "x")
    with pytest.raises(BadInput, match="not a character"):
        card_of(json.dumps(raw).encode(), "lore.json")


def test_world_info_keeps_what_has_no_place() -> None:
    found = persona_file_of(json.dumps(SILLY).encode(), "lore.json")
    assert isinstance(found, WorldInfo)
    first, second = found.entries
    assert first["extensions"]["selectiveLogic"] == 3
    assert first["extensions"]["scan_depth"] == 2
    assert first["extensions"]["homemade"] == {"a": 1}
    assert (first["position"], first["insertion_order"]) == ("before_char", 7)
    assert (second["enabled"], second["constant"], second["extensions"]["position"]) == (False, True, 4)


# --- refused --------------------------------------------------------------------------------------


def zip_of(files: dict[str, bytes], compress: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


CARD = b'{"name": "Ada"}'


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "C:/x",
        "a\\b",
        "a:b",
        "x\n",
        "a/./b",
        "a//b",
        "con./x",
        "",
        "x" * 400,
        "con",
        "a/nul.png",
        "a?b",
    ],
)
def test_paths_that_lead_out_are_refused(path: str) -> None:
    assert not safe_path(path)
    if path and "\n" not in path:
        with pytest.raises(BadInput, match=r"leads out|damaged"):
            unzip(zip_of({"card.json": CARD, path: b"x"}), "evil.charx")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zip_of({"a.json": CARD}), "without a card.json"),
        (zip_of({"card.json": CARD, "b": b"\0" * (50 * 2**20)}), "packed"),
        (zip_of({f"{n}": b"" for n in range(2_100)}), "at most 2,000"),
        (zip_of({"card.json": CARD, "A": b"", "a": b""}), "two files"),
        (zip_of({"card.json": CARD, "a": b"", "a/b": b""}), "inside of what is a file"),
        (b"PK\x03\x04" + b"junk" * 50, "damaged zip"),
        (b"PK\x01\x02" * 5_000, "more than 2,000 files"),
        (b'{"name": "A", "x": [' + b"[]," * 1_200_000 + b"1]}", "values"),
        (picture("JPEG"), "JPEG picture"),
        (picture("WEBP"), "WebP picture"),
        (b'{"entries": [1, 2]}', "no name"),
    ],
)
def test_bad_files_are_one_sentence(content: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        persona_file_of(content, "file")
    assert caught.value.fix
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("[" * 3_000, "neither JSON nor usable YAML|nested too deeply"),
        ("name: [", "neither JSON nor usable YAML"),
        ("- 1\n" * 200_000, "too many values"),
        ("!!python/object/apply:os.system ['true']", "not a character card|no name"),
    ],
)
def test_bad_yaml_is_one_sentence(content: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        card_of(content.encode(), "c.yaml", yaml=True)


def test_encrypted_and_oversized_zips_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = bytearray(zip_of({"card.json": CARD}))
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(BadInput, match="encrypted"):
        unzip(bytes(locked), "x")
    monkeypatch.setattr(bounded, "MAX_UNPACKED", 10)
    with pytest.raises(BadInput, match="would unpack to"):
        unzip(zip_of({"card.json": CARD}), "x")


def test_numbers_that_json_cannot_write_become_null() -> None:
    read = card_of(b'{"name": "A", "x": [NaN, 1e999, -Infinity, 1e10]}', "x")
    assert read.card["data"]["x"] == [None, None, None, 1e10]
    json.loads(card_to_json(read.card), parse_constant=pytest.fail)


def test_damaged_files_are_read_or_refused_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred cases and all bombs; benchmarks/fuzz_cards.py runs thousands."""
    import importlib

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    result = importlib.import_module("fuzz_cards").campaign(cases=400, seed=7)
    assert result.failures == []
    assert result.cases > 400
    assert result.refused["bomb"] >= 15
    assert result.taken.total() > 50, "the damage leaves something to read"
