"""Cards of every version come in whole, go out whole, and damaged ones are refused in a sentence."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from persona_lab.errors import BadInput
from persona_lab.personas.cards import card_to_json, card_to_png, normalise, read_card
from persona_lab.personas.png import Chunk, read_chunks, write_chunks


def picture(size: tuple[int, int] = (8, 8), color: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def with_texts(texts: dict[str, Any], kind: bytes = b"tEXt") -> bytes:
    """A PNG whose text chunks hold these cards."""
    chunks = read_chunks(picture(), "test")
    for keyword, card in texts.items():
        body = base64.b64encode(json.dumps(card).encode())
        head = keyword.encode() + b"\0"
        if kind == b"zTXt":
            head, body = head + b"\0", zlib.compress(body)
        if kind == b"iTXt":
            head += b"\0\0\0\0"
        chunks.insert(-1, Chunk(kind, head + body))
    return write_chunks(chunks, {})


def v3(name: str, **data: Any) -> dict[str, Any]:
    return {"spec": "chara_card_v3", "spec_version": "3.0", "data": {"name": name, **data}}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_v1_fields_become_v3_data(tmp_path: Path) -> None:
    read = read_card(write(tmp_path / "a.json", '{"name": " Ada ", "first_mes": "Hm.", "homemade": [1]}'))
    assert read.spec == "V1"
    assert read.card["spec"] == "chara_card_v3"
    assert read.card["data"]["name"] == "Ada"
    assert read.card["data"]["first_mes"] == "Hm."
    assert read.card["data"]["homemade"] == [1]
    assert read.card["data"]["tags"] == []
    assert read.avatar_png is None


def test_v2_keeps_unknown_keys_everywhere(tmp_path: Path) -> None:
    card = {
        "spec": "chara_card_v2",
        "spec_version": "2.0",
        "top": {"x": 1},
        "data": {
            "name": "Ada",
            "mine": True,
            "extensions": {"vendor/thing": {"deep": [1, 2]}},
            "character_book": {"entries": [{"keys": ["a"], "content": "b", "odd": 1}], "extensions": {"k": 2}},
        },
    }
    read = read_card(write(tmp_path / "a.json", json.dumps(card)))
    assert read.spec == "V2"
    assert read.card["top"] == {"x": 1}
    for key, value in card["data"].items():  # type: ignore[attr-defined]
        assert read.card["data"][key] == value


def test_v1_fields_beside_data_fill_what_data_lacks(tmp_path: Path) -> None:
    card = {"name": "Old", "description": "root", "spec": "chara_card_v2", "data": {"name": "New", "description": ""}}
    read = read_card(write(tmp_path / "a.json", json.dumps(card)))
    assert read.card["data"]["name"] == "New"
    assert read.card["data"]["description"] == "root"
    assert read.card["name"] == "Old"


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_ccv3_wins_over_chara(tmp_path: Path, kind: bytes) -> None:
    png = with_texts({"chara": v3("Stale"), "ccv3": v3("Fresh", nickname="é")}, kind)
    read = read_card(write(tmp_path / "a.png", png))
    assert read.card["data"]["name"] == "Fresh"
    assert read.card["data"]["nickname"] == "é"
    assert read.avatar_png is not None
    assert b"ccv3" not in read.avatar_png
    assert b"chara" not in read.avatar_png


def test_a_broken_ccv3_falls_back_to_chara_and_says_so(tmp_path: Path) -> None:
    read = read_card(write(tmp_path / "a.png", with_texts({"ccv3": ["no card"], "chara": v3("Ada")})))
    assert read.card["data"]["name"] == "Ada"
    assert "ccv3" in read.warnings[0]


def test_writing_replaces_both_chunks(tmp_path: Path) -> None:
    stale = with_texts({"chara": v3("Stale"), "ccv3": v3("Stale")})
    png = card_to_png(v3("Fresh"), stale)
    keywords = [chunk.keyword for chunk in read_chunks(png, "test")]
    assert keywords.count("ccv3") == keywords.count("chara") == 1
    assert b"Stale" not in base64.b64decode(png.split(b"chara\0")[1].split(b"IEND")[0][:-8])
    for keyword, spec in (("ccv3", "V3"), ("chara", "V2")):
        chunks = [chunk for chunk in read_chunks(png, "test") if chunk.keyword in ("", keyword)]
        alone = read_card(write(tmp_path / "one.png", write_chunks(chunks, {})))
        assert (alone.spec, alone.card["data"]["name"]) == (spec, "Fresh")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=40), st.text(max_size=80), json_values)
def test_round_trip_through_json_and_png(name: str, description: str, unknown: Any) -> None:
    import tempfile

    if not name.strip():
        name += "x"
    raw = v3(name, description=description.encode("utf-8", "replace").decode(), extensions={"x": unknown}, mine=unknown)
    card, _, _ = normalise(json.loads(json.dumps(raw)), "test")
    with tempfile.TemporaryDirectory() as folder:
        for file, content in (("c.json", card_to_json(card).encode()), ("c.png", card_to_png(card, None))):
            path = Path(folder) / file
            path.write_bytes(content)
            assert read_card(path).card == card


def test_real_cards_of_other_programs(test_data: Path, tmp_path: Path) -> None:
    cards = test_data / "cards"
    expected = {
        "default-chan_v3.png": ("V3", "Default-chan"),
        "skynet_v1schema.png": ("V1", "Skynet"),
        "luna_v3_with_lorebook.json": ("V3", "Luna Starweaver"),
    }
    for file, (spec, name) in expected.items():
        read = read_card(cards / file)
        assert (read.spec, read.card["data"]["name"]) == (spec, name)
        assert read.card["data"]["description"]
        again = read_card(write(tmp_path / "again.png", card_to_png(read.card, read.avatar_png)))
        assert again.card == read.card
    assert read_card(cards / "luna_v3_with_lorebook.json").card["data"]["character_book"]["entries"]
    with pytest.raises(BadInput, match="without a character card"):
        read_card(cards / "not_a_card.png")


def test_every_truncation_of_a_png_is_refused(tmp_path: Path) -> None:
    whole = card_to_png(v3("Ada"), picture())
    for size in range(9, len(whole), 37):
        with pytest.raises(BadInput, match=r"cut off|empty|not a PNG"):
            read_card(write(tmp_path / "a.png", whole[:size]))


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    damaged = bytearray(card_to_png(v3("Ada"), picture()))
    damaged[damaged.index(b"ccv3") + 20] ^= 1
    with pytest.raises(BadInput, match="checksum"):
        read_card(write(tmp_path / "a.png", bytes(damaged)))


def bomb() -> bytes:
    chunks = read_chunks(picture(), "test")
    body = b"ccv3\0\0" + zlib.compress(b"A" * (40 * 2**20))
    return write_chunks([*chunks[:-1], Chunk(b"zTXt", body), chunks[-1]], {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\0\0\0\0", "is empty"),
        ('{"name": "Andr\xe9"}'.encode("latin-1"), r"byte 14 .*0xe9.*Latin-1.*iconv"),
        (b'{"name": "Ada"', "not valid JSON"),
        (b"[1, 2]", "JSON list, not a character card"),
        (b'"text"', "JSON text, not a character card"),
        (b'{"messages": []}', r"no name.*found: messages"),
        (b'{"name": ["a"]}', "name that is a list"),
        (b'{"data": [1]}', "`data` is a JSON list"),
        (b'{"name": "A", "description": {"a": 1}}', "`description` is a JSON object"),
        (b'{"name": "' + b"A" * 300 + b'"}', "300 characters"),
        (b'{"name": "A", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "deeper than"),
        (b"[" * 200_000, "deeper than"),
        (b'{"name": 1' + b"0" * 6000 + b"}", "not usable JSON"),
        (b"GGUF\x03\0\0\0", "GGUF model"),
        (bomb(), "larger than"),
        (with_texts({}), "without a character card"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_card(write(tmp_path / "card", content))
    message = str(caught.value)
    assert caught.value.fix
    assert "\n" not in message
    assert len(message) < 600
    import re

    assert re.search(says, message), message


def test_missing_file_folder_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no file"):
        read_card(tmp_path / "none.png")
    with pytest.raises(BadInput, match="is a folder"):
        read_card(tmp_path)
    monkeypatch.setattr("persona_lab.personas.cards.MAX_CARD_BYTES", 100)
    with pytest.raises(BadInput, match="at most"):
        read_card(write(tmp_path / "big.json", b" " * 200))


def test_pictures_with_too_many_pixels_are_refused(tmp_path: Path) -> None:
    huge = card_to_png(v3("Ada"), picture((9000, 5000)))
    with pytest.raises(BadInput, match="too many"):
        read_card(write(tmp_path / "a.png", huge))


def test_half_a_character_does_not_break_saving(tmp_path: Path) -> None:
    read = read_card(write(tmp_path / "a.json", '{"name": "Ada", "description": "half \\ud83d, whole \\ud83d\\ude00"}'))
    assert read.card["data"]["description"] == "half \ufffd, whole 😀"
    card_to_json(read.card).encode()


def test_lists_written_as_text_become_lists(tmp_path: Path) -> None:
    read = read_card(write(tmp_path / "a.json", '{"name": "Ada", "tags": "dry, exact"}'))
    assert read.card["data"]["tags"] == ["dry", "exact"]
    assert "tags" in read.warnings[0]


def test_store_round_trip(tmp_path: Path, persona_factory: Callable[..., Any]) -> None:
    from persona_lab.personas.store import load_persona, save_persona

    persona = persona_factory(mine={"a": 1})
    folder = tmp_path / "tamsin"
    save_persona(folder, persona, picture())
    (folder / "probes.jsonl").write_text(
        (folder / "probes.jsonl").read_text() + '{"id": "mine", "kind": "adversarial", "prompt": "x"}\n'
    )
    loaded = load_persona(folder)
    assert loaded.facts == persona.facts
    assert loaded.card["data"]["mine"] == {"a": 1}
    assert loaded.avatar == str(folder / "avatar.png")
    assert not loaded.example
    save_persona(folder, loaded.model_copy(update={"facts": ()}))
    assert "adversarial" in (folder / "probes.jsonl").read_text()  # rows of other kinds stay
    assert load_persona(folder).facts == ()


def test_store_refuses_bad_probes_ids_and_avatars(tmp_path: Path, persona_factory: Callable[..., Any]) -> None:
    from persona_lab.personas.store import load_persona, save_persona

    folder = tmp_path / "tamsin"
    save_persona(folder, persona_factory())
    with pytest.raises(BadInput, match="not a PNG image"):
        save_persona(folder, persona_factory(), b"not a picture")
    assert load_persona(folder).avatar is None
    for line, says in (("{", "not valid JSON"), ('{"question": "q"}', "answer"), ("[]", "not a JSON object")):
        (folder / "probes.jsonl").write_text('{"id": "a", "question": "q", "answer": "b"}\n' + line)
        with pytest.raises(BadInput, match=says):
            load_persona(folder)
    (folder / "probes.jsonl").write_text('{"id": "a", "question": "q", "answer": "b"}\n' * 2)
    with pytest.raises(BadInput, match="two rows with the id 'a'"):
        load_persona(folder)
    with pytest.raises(BadInput, match="cannot be an id"):
        load_persona(folder.rename(tmp_path / "Tamsin Quill"))
