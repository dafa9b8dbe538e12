"""Each format is told apart and read; what cannot be used is counted or refused with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_lab_builtin.plugin import persona_lab_dataset_readers

from persona_lab.api import DatasetReader, Detection, ReadResult
from persona_lab.datasets.reading import Reading, look_at, read_dataset
from persona_lab.errors import BadInput, UnknownName
from persona_lab.personas.files import read_persona_file
from persona_lab.types import Persona

READERS: list[DatasetReader] = [reader() for reader in persona_lab_dataset_readers()]


def read(path: Path, name: str = "Nan Tolliver", nickname: str = "", **options: Any) -> Reading:
    card = {"data": {"name": name, "nickname": nickname}}
    return read_dataset(path, READERS, Persona(id="nan", name=name, card=card), **options)


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def turns(reading: Reading, index: int = 0) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in reading.result.conversations[index].messages]


def test_openai_messages(tmp_path: Path) -> None:
    row = {
        "id": "x1",
        "split": "dev",
        "group": 7,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": "x"}]},
            {"role": "system", "content": "Be Nan."},
            {"role": "assistant", "content": "Now then.\r\n"},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "Sit down."},
            {"role": "user", "content": "left over"},
        ],
    }
    for file in ("a.jsonl", "a.json"):
        reading = read(write(tmp_path / file, [row, {"messages": []}]))
        assert reading.format == "openai_messages"
        assert turns(reading) == [("system", "Be Nan."), ("user", "Hi"), ("assistant", "Now then.\nSit down.")]
        (conversation,) = reading.result.conversations
        assert (conversation.id, conversation.split, conversation.group) == ("x1", "validation", "7")
        assert conversation.source == f"{file}:1"
        assert reading.result.skipped == ((2, "has no list of messages with roles"),)
        assert "1 messages of tools" in reading.result.warnings[0]


def test_sharegpt_survives_tool_turns(tmp_path: Path) -> None:
    row = {
        "system": "Be Nan.",
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": "{}"},
            {"from": "observation", "value": "{}"},
            {"from": "gpt", "value": "b"},
        ],
    }
    reading = read(write(tmp_path / "a.json", [row]))
    assert reading.format == "sharegpt"
    assert turns(reading) == [("system", "Be Nan."), ("user", "a"), ("assistant", "b")]
    assert "1 of 'function_call', 1 of 'observation'" in reading.result.warnings[0]


def test_alpaca_with_history(tmp_path: Path) -> None:
    row = {"instruction": "Sum", "input": "1 2", "output": "3", "system": "s", "history": [["q", "a"]]}
    reading = read(write(tmp_path / "a.json", [row]))
    assert reading.format == "alpaca"
    assert turns(reading) == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Sum\n1 2"),
        ("assistant", "3"),
    ]


SCRIPT = """ACT I
JANICE. Mam, it's raining.
[Enter POPPY, wet.]
POPPY. Gran! It's
raining!
NAN TOLLIVER. [Not looking up.] It's Harthwaite, love.
JANICE. Still.

SCENE II
NAN TOLLIVER. Tea?
DEREK. Aye.
"""


def test_script_of_a_play(tmp_path: Path) -> None:
    reading = read(write(tmp_path / "play.txt", SCRIPT))
    assert reading.format == "script"
    assert turns(reading) == [
        ("user", "Mam, it's raining.\nGran! It's raining!"),
        ("assistant", "It's Harthwaite, love."),
    ]
    assert turns(reading, 1) == [("assistant", "Tea?")]
    assert reading.result.others == ("Mam, it's raining.", "Gran! It's raining!", "Still.", "Aye.")


def test_script_finds_the_speaker_by_nickname_part_or_mapping(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "Kim: Hello, Nan!\n**Nan:** Now then: sit.\nKim (quietly): Ta.\nNan: Tea's up.\n")
    expected = [("user", "Hello, Nan!"), ("assistant", "Now then: sit."), ("user", "Ta."), ("assistant", "Tea's up.")]
    assert turns(read(path, "Nan Tolliver")) == expected
    assert turns(read(path, "Nancy", "nan")) == expected
    assert turns(read(path, "Somebody", mapping={"assistant": "nan"})) == expected
    with pytest.raises(BadInput, match=r"no lines of 'Somebody'.*kim \(2\), nan \(2\).*--map assistant=NAME"):
        read(path, "Somebody")


def test_long_scenes_become_several_conversations(tmp_path: Path) -> None:
    lines = "".join(f"Kim: question {i}\nNan: answer {i}\n" for i in range(8))
    reading = read(write(tmp_path / "a.txt", lines), "Nan")
    assert [len(conversation.messages) for conversation in reading.result.conversations] == [6, 6, 4]


@pytest.mark.parametrize("file", ["a.csv", "a.tsv", "a.jsonl"])
def test_columns_by_mapping(tmp_path: Path, file: str) -> None:
    rows = [
        {"Q": "one, two", "A": "three", "part": "train", "n": 1},
        {"Q": "x", "A": "", "part": "test", "n": 2},
        {"Q": "y", "A": 'z "quoted"', "part": "test", "n": 3},
    ]
    if file == "a.jsonl":
        path = write(tmp_path / file, rows)
    else:
        import csv

        path = tmp_path / file
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if file == "a.tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    reading = read(path, mapping={"user": "Q", "assistant": "A", "split": "part", "id": "n"})
    assert reading.format == "columns"
    assert [(c.id, c.split) for c in reading.result.conversations] == [("1", "train"), ("3", "test")]
    assert turns(reading, 1) == [("user", "y"), ("assistant", 'z "quoted"')]
    assert [reason for _, reason in reading.result.skipped] == ["has nothing in 'A'"]
    with pytest.raises(BadInput, match=r"no column 'QQ' .*Did you mean 'Q'.*Its columns: Q, A, part, n"):
        read(path, mapping={"user": "QQ", "assistant": "A"})
    with pytest.raises(BadInput, match="unknown role 'bot'"):
        read(path, mapping={"bot": "Q"})
    with pytest.raises(BadInput, match=r"columns Q, A, part, n.*--map user=QUESTION,assistant=ANSWER"):
        read(path)


def test_obvious_columns_are_guessed_and_said(tmp_path: Path) -> None:
    rows = [{"context": "text of it", "question": "q", "answer": "a", "split": "val"}]
    reading = read(write(tmp_path / "a.jsonl", rows))
    assert turns(reading) == [("user", "q"), ("assistant", "a")]
    assert reading.result.conversations[0].split == "validation"
    assert "question" in reading.why
    assert reading.result.warnings == ("Columns were guessed: user=question, assistant=answer, split=split.",)


def test_lines_of_speakers(tmp_path: Path) -> None:
    rows = [{"speaker": "Kim", "text": "a"}, {"speaker": "NAN TOLLIVER", "text": "b"}, {"speaker": "Jo", "text": "c"}]
    path = write(tmp_path / "a.jsonl", rows)
    reading = read(path)
    assert turns(reading) == [("user", "a"), ("assistant", "b")]
    assert reading.result.others == ("a", "c")
    with pytest.raises(BadInput, match="3 lines of other speakers, but none of Ada"):
        read(path, "Ada")
    with pytest.raises(BadInput, match="3 lines of other speakers"):
        read(path, mapping={"other": "text"})


def test_a_folder_joins_its_files(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", [{"q": "a", "a": "b"}])
    write(tmp_path / "rest.csv", "speaker,text\nKim,hello there\n")
    write(tmp_path / "README.md", "Kim: not data\nNan: no\n")
    write(tmp_path / "broken.json", "{")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    reading = read(tmp_path, mapping={"user": "q", "assistant": "a"})
    assert turns(reading) == [("user", "a"), ("assistant", "b")]
    assert reading.result.others == ("hello there",)
    assert reading.format == "columns"
    assert any("broken.json was left out" in warning for warning in reading.result.warnings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="0 data files"):
        read(tmp_path / "empty")


def test_json_of_splits(tmp_path: Path) -> None:
    rows = {"train": [{"prompt": "a", "response": "b"}], "test": [{"prompt": "c", "response": "d"}]}
    reading = read(write(tmp_path / "a.json", rows))
    assert [c.split for c in reading.result.conversations] == ["train", "test"]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "no format that can be told"),
        ("a.json", b'"text"', "no format that can be told"),
        ("a.json", b'{"a": {"b": 1}}', "columns a"),
        ("a.jsonl", b"{\n{\n", "no format that can be told"),
        ("a.jsonl", '{"user": "caf\xe9", "assistant": "b"}'.encode("latin-1"), r"byte 13 .*Latin-1.*iconv"),
        ("a.txt", b"just some prose\nwithout any names", "no format that can be told"),
        ("a.txt", b"\x00\x01\x02\x03abc", "binary"),
        ("a.csv", b"user,assistant\n", "no format that can be told"),
        ("a.json", b'[{"messages": [{"role": "user", "content": "hi"}]}]', "no usable conversation.*1 x has no reply"),
        ("a.json", b"PK\x03\x04zip", "zip archive"),
        ("a.json", b"[" * 100_000, "no format that can be told"),
    ],
)
def test_bad_files(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        read(write(tmp_path / file, content))
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_named_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"instruction": "a", "output": "b"}])
    assert read(path, format="alpaca").why == "Alpaca, because you chose it"
    with pytest.raises(UnknownName, match=r"'alpacca'.*Did you mean 'alpaca'"):
        read(path, format="alpacca")
    with pytest.raises(BadInput, match="no usable conversation"):
        read(path, format="sharegpt")


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"user": "a", "assistant": "b"}\n{"user": "c", "assi\n\n[1]\n')
    reading = read(path)
    assert len(reading.result.conversations) == 1
    assert [row for row, _ in reading.result.skipped] == [2, 4]


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"user": "a", "assistant": "b"}])
    assert len(read(path).result.conversations) == 1
    write(path, [{"user": "a", "assistant": "b"}, {"user": "c", "assistant": "d"}])
    assert len(read(path).result.conversations) == 2


class Explodes(DatasetReader):
    """A plugin's reader that is sure of itself and then fails."""

    id, title, summary = "explodes", "Explodes", "No."

    def detect(self, path: Path) -> Detection:
        if path.stem == "detect":
            raise RuntimeError("in detect")
        return Detection(score=1, why="it always says so")

    def roles(self, path: Path) -> dict[str, list[str]]:
        raise RuntimeError("in roles")

    def read(self, path: Path, persona: Persona, mapping: Any) -> ReadResult:
        raise RuntimeError("in read")


def test_readers_of_plugins_cannot_break_the_others(tmp_path: Path) -> None:
    persona = Persona(id="nan", name="Nan", card={"data": {"name": "Nan"}})
    rows = [{"user": "a", "assistant": "b"}]
    reading = read_dataset(write(tmp_path / "detect.jsonl", rows), [Explodes(), *READERS], persona)
    assert reading.format == "columns"
    with pytest.raises(BadInput, match=r"'Explodes' failed.*RuntimeError: in read"):
        read_dataset(write(tmp_path / "read.jsonl", rows), [Explodes(), *READERS], persona)
    with pytest.raises(BadInput, match=r"'Explodes' failed.*RuntimeError: in roles"):
        look_at(tmp_path / "read.jsonl", [Explodes(), *READERS], persona)
    rows_named = {"user": "user", "assistant": "assistant"}
    mapped = read_dataset(tmp_path / "read.jsonl", [Explodes(), *READERS], persona, mapping=rows_named)
    assert mapped.format == "columns", "columns that were named, whatever a reader thinks it could choose from"


def test_a_file_of_a_folder_that_the_mapping_does_not_fit_is_read_without_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    write(folder / "a.jsonl", [{"ask": f"Q{n}", "reply": f"A{n}"} for n in range(3)])
    write(
        folder / "b.jsonl", [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    )
    result = read(folder, mapping={"user": "ask", "assistant": "reply"}).result
    assert len(result.conversations) == 4
    (told,) = [warning for warning in result.warnings if "without the mapping" in warning]
    assert told.startswith("b.jsonl: ")
    assert "user=ask, assistant=reply" in told
    (folder / "b.jsonl").unlink()
    alone = read(folder, mapping={"user": "ask", "assistant": "reply"}).result
    assert not any("without the mapping" in warning for warning in alone.warnings)


# --- real files nobody here wrote -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "format", "conversations"),
    [
        ("formats/alpaca_150.json", "alpaca", 150),
        ("formats/identity_alpaca_placeholders.json", "alpaca", 91),
        ("formats/sharegpt_toolcall_40.json", "sharegpt", 40),
        ("formats/openai_messages_content_parts_20.jsonl", "openai_messages", 20),
    ],
)
def test_real_formats(test_data: Path, file: str, format: str, conversations: int) -> None:
    reading = read(test_data / file)
    assert reading.format == format
    assert len(reading.result.conversations) == conversations
    assert reading.result.skipped == ()


@pytest.mark.parametrize(("character", "name"), [("lord_goring", "Lord Goring"), ("socrates", "Socrates")])
def test_real_characters_by_folder_and_by_file(test_data: Path, character: str, name: str) -> None:
    folder = test_data / character
    raw = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    whole = read(folder, name).result
    mapped = read(folder / "pairs.jsonl", name, mapping={"user": "user", "assistant": "assistant"}).result
    assert whole.conversations == mapped.conversations
    assert [(c.id, c.split) for c in mapped.conversations] == [(row["id"], row["split"]) for row in raw]
    assert mapped.conversations[5].messages[1].content == raw[5]["assistant"]
    others = (folder / "other_characters.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(whole.others) == len(others)


@pytest.mark.parametrize("file", ["sherlock_60k_publicdomain.txt", "wikipedia_60k.txt"])
def test_real_prose_becomes_passages(test_data: Path, file: str) -> None:
    reading = read(test_data / "generic_text" / file)
    assert reading.format == "prose"
    assert "sentences, and no lines that begin with a speaker" in reading.why
    assert len(reading.result.conversations) > 60
    assert all(conversation.made for conversation in reading.result.conversations)
    assert "each prompt is made" in reading.result.warnings[0]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("personagym/personas_200.json", "JSON list of texts: nobody asks"),
        ("personagym/questions_20_personas.json", "columns persona, questions, none of them a known pair"),
        ("cards/luna_v3_with_lorebook.json", "is a character card.*Import it as a character"),
        ("cards/default-chan_v3.png", "is a PNG image.*imported as a character"),
    ],
)
def test_real_files_that_are_no_dataset_are_refused_with_a_sentence(test_data: Path, file: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read(test_data / file)


WHAT_IT_IS = {
    "cards/default-chan_v3.png": "a character",
    "cards/luna_v3_with_lorebook.json": "a character",
    "cards/not_a_card.png": "without a character card in it",
    "cards/skynet_v1schema.png": "a character",
    "formats/alpaca_150.json": "alpaca",
    "formats/identity_alpaca_placeholders.json": "alpaca",
    "formats/openai_messages_content_parts_20.jsonl": "openai_messages",
    "formats/sharegpt_toolcall_40.json": "sharegpt",
    "generic_text/sherlock_60k_publicdomain.txt": "prose",
    "generic_text/wikipedia_60k.txt": "prose",
    "lord_goring/other_characters.jsonl": "732 lines of other speakers, but none of Lord Goring",
    "lord_goring/pairs.jsonl": "columns",
    "messy_chat/ubuntu_2006-11-30_08.raw.txt": "has no lines of 'Socrates'. Its speakers, with their number of lines",
    "personagym/personas_200.json": "a JSON list of texts",
    "personagym/questions_20_personas.json": "columns persona, questions, none of them a known pair",
    "socrates/other_characters.jsonl": "442 lines of other speakers, but none of Socrates",
    "socrates/pairs.jsonl": "columns",
}


def test_every_shared_file_is_read_as_what_it_is_or_refused_with_a_sentence(test_data: Path) -> None:
    """All of them: a file that comes is missed here. ORIGIN.txt says where a folder is from, and is no data."""
    files = [file for file in sorted(test_data.rglob("*")) if file.is_file()]
    told = {file.relative_to(test_data).as_posix(): _taken_as(file) for file in files}
    for name, refused in ((name, said) for name, (kind, said) in told.items() if kind == "refused"):
        assert name.rsplit("/", 1)[-1] in refused, f"{refused!r} does not name the file"
        assert "\n" not in refused
        assert len(refused) < 900
        assert "Error" not in refused
    notes = {name for name in told if name.endswith("ORIGIN.txt")}
    assert {told[name][0] for name in notes} == {"refused"}
    assert told.keys() - notes == WHAT_IT_IS.keys()
    for name, expected in WHAT_IT_IS.items():
        assert expected in told[name][1], name


def _taken_as(file: Path) -> tuple[str, str]:
    """("card", "a character"), ("dataset", its format) or ("refused", what is said, as to a hobbyist)."""
    name = "Lord Goring" if file.parent.name == "lord_goring" else "Socrates"
    said: list[BadInput] = []
    for kind, take in (("dataset", lambda: read(file, name).format), ("card", lambda: _character(file))):
        try:
            return kind, take()
        except BadInput as error:
            said.append(error)
    assert all(error.fix for error in said)
    sent_on = "as a character" in said[0].fix  # and there it is no card either
    return "refused", said[1 if sent_on else 0].message


def _character(file: Path) -> str:
    read_persona_file(file)
    return "a character"
