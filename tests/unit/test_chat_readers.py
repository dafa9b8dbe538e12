"""Chats: whose lines are the character's, whom each answers, where a talk ends; and each program's export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_lab_builtin.plugin import persona_lab_dataset_readers
from persona_lab_builtin.readers.irc import IRCReader

from persona_lab.api import DatasetReader, speakers
from persona_lab.datasets.reading import Reading, look_at, read_dataset
from persona_lab.errors import BadInput
from persona_lab.types import Persona

READERS: list[DatasetReader] = [reader() for reader in persona_lab_dataset_readers()]
LOG = "messy_chat/ubuntu_2006-11-30_08.raw.txt"

# Read by hand, before the rules were written: who said which line (by its number in the log) in answer to which lines.
ANSWERS: dict[str, dict[int, tuple[int, ...]]] = {
    "nolimitsoya": {
        144: (142, 143),
        151: (145,),
        156: (154,),
        160: (154,),
        171: (163, 164),
        172: (167,),
        181: (176,),
        193: (174, 180),
        198: (192,),
        201: (197,),
        213: (207,),
        218: (211,),
        226: (225,),
        232: (229,),
        237: (235,),
        241: (239,),
        254: (249,),
        255: (251,),
        273: (262, 267),
    },
    "RedLance": {129: (118,), 178: (169,), 190: (183,), 222: (219,), 244: (234,), 256: (250,), 274: (268,)},
    "nomin": {
        86: (85,),
        89: (88,),
        96: (92,),
        98: (97,),
        109: (106,),
        119: (113,),
        128: (124,),
        139: (132, 137),
        145: (142, 143),
        159: (150,),
        175: (167,),
        192: (151,),
        207: (198,),
        245: (239,),
        251: (249,),
        262: (255,),
    },
    "thevenin": {
        133: (132,),
        138: (134,),
        153: (150,),
        177: (174,),
        185: (180,),
        194: (184,),
        215: (211,),
        221: (216,),
        242: (236,),
    },
    "math_": {31: (28,), 35: (33,), 43: (39,)},
    "boink": {3: (2,), 12: (7,)},
    "strabes": {196: (182,), 214: (209,), 270: (265,), 280: (279,)},
    "stefg": {188: (173,), 220: (211,)},
    "grimeboy": {54: (52,), 66: (59,), 107: (106,), 117: (113,)},
    "samadhi": {111: (94,), 148: (127,)},
    "cello_rasp": {21: (19,), 42: (24,)},
    "florent_": {95: (92,)},
    "thoreauputic": {231: (221,), 252: (249,)},
}


def read(path: Path, name: str = "Nan", **mapping: str) -> Reading:
    return read_dataset(
        path, READERS, Persona(id="nan", name=name, card={"data": {"name": name}}), mapping=mapping or None
    )


def turns(reading: Reading) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content) for m in c.messages] for c in reading.result.conversations]


# --- a room of many -------------------------------------------------------------------------------


def right_turn(nick: str, reply: int, asked: tuple[int, ...], said: dict[int, Any], reading: Reading) -> bool:
    """Whether the turn before a reply holds the lines it answers, and nothing that anybody but that partner said."""
    partner = {said[number].speaker for number in asked}
    for conversation in reading.result.conversations:
        for before, message in zip(conversation.messages, conversation.messages[1:], strict=False):
            parts = message.content.split("\n")
            if message.role != "assistant" or not any(_is(part, said[reply].text) for part in parts):
                continue
            user = before.content.split("\n")
            all_there = all(any(_is(part, said[number].text) for part in user) for number in asked)
            nobody_else = all(any(_is(part, s.text) for s in said.values() if s.speaker in partner) for part in user)
            return all_there and nobody_else
    return False


def _is(part: str, line: str) -> bool:
    """Whether a part of a turn is that line of the log, with or without the name it begins with."""
    return bool(part) and line.endswith(part) and len(line) - len(part) < 20


def test_hand_labelled_exchanges_of_a_real_log(test_data: Path) -> None:
    path = test_data / LOG
    said = {line.number: line for line in IRCReader()._said(path)}
    wrong, count = [], 0
    for nick, answers in ANSWERS.items():
        reading = read(path, nick)
        assert reading.format == "irc"
        for reply, asked in answers.items():
            assert said[reply].speaker == nick
            count += 1
            if not right_turn(nick, reply, asked, said, reading):
                wrong.append((nick, reply))
    assert count == 73
    assert len(wrong) <= 3, wrong  # the three known ones are within reach of no rule so simple


def test_a_room_can_be_narrowed_to_one_partner(test_data: Path) -> None:
    path = test_data / LOG
    everybody = read(path, assistant="RedLance", user="*")
    one = read(path, assistant="RedLance", user="noodles12")
    assert len(one.result.conversations) < len(everybody.result.conversations)
    assert all("DOS boot" not in content for talk in turns(one) for _, content in talk)
    with pytest.raises(
        BadInput, match=r"no lines of 'redlnce'.*nomin \(\d+\).*Did you mean 'RedLance'.*--map assistant=NAME"
    ):
        read(path, assistant="redlnce")
    with pytest.raises(BadInput, match="--map user=NAME"):
        read(path, assistant="RedLance", user="nobody-here")


def test_names_in_front_are_taken_off_and_noise_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "--- Log opened\n"
        "10:00 -!- nan has joined #tea\n"
        "10:00 <@kim> nan: is it raining?\n"
        "10:00 < jo> where is everybody?\n"
        "10:01 <+nan> kim: \x0304aye\x03, love\n"
        "10:02 <kim> nan: still?\n"
        "10:02 <nan> kim: still.\n"
        "23:58 <kim> Nan, awake?\n"
        "00:01 <nan> no\n"
    )
    assert turns(read(path)) == [
        [("user", "is it raining?"), ("assistant", "aye, love"), ("user", "still?"), ("assistant", "still.")],
        [("user", "awake?"), ("assistant", "no")],  # hours later, past midnight
    ]


def test_the_look_says_who_can_be_chosen(test_data: Path, tmp_path: Path) -> None:
    look = look_at(test_data / LOG, READERS)
    assert look.format == "irc"
    assert look.sure
    assert look.why.startswith("IRC log, because 281 of the first 281 lines are `<nick> text`")
    assert look.roles["assistant"][0] == "imsickurdcure"
    assert look.roles["user"][0] == "*"
    assert look.assistant == ""
    assert look.candidates[0].id == "irc"
    table = tmp_path / "a.csv"
    table.write_text("Q,A\nwhat,that\nwho,they\n")
    look = look_at(table, READERS)
    assert not look.sure
    assert look_at(table, READERS, format="columns").roles["assistant"] == ("Q", "A")


# --- exports --------------------------------------------------------------------------------------


def test_whatsapp_of_android_and_ios(tmp_path: Path) -> None:
    android = tmp_path / "WhatsApp Chat with Kim.txt"
    android.write_text(
        "31/12/23, 21:15 - Messages and calls are end-to-end encrypted. No one can read them.\n"
        "31/12/23, 21:15 - Kim: Are you up?\n"
        "31/12/23, 21:16 - Nan: Aye.\nTwo lines, love.\n"
        "31/12/23, 21:17 - Kim: <Media omitted>\n"
        "01/01/24, 09:00 - Kim: Happy new year!\n"
        "01/01/24, 09:01 - Nan: And to you: tea?\n",
        encoding="utf-8",
    )
    expected = [
        [("user", "Are you up?"), ("assistant", "Aye.\nTwo lines, love.")],
        [("user", "Happy new year!"), ("assistant", "And to you: tea?")],  # the night between ends a talk
    ]
    reading = read(android)
    assert reading.format == "whatsapp"
    assert turns(reading) == expected
    assert "2 notices" in reading.result.warnings[-1]
    ios = tmp_path / "_chat.txt"
    ios.write_text(
        "[12/31/23, 9:15:03\u202fPM] Kim: Are you up?\n\u200e[12/31/23, 9:16:00\u202fPM] Nan: Aye.\nTwo lines, love.\n"
        "[12/31/23, 9:17:00\u202fPM] Kim: \u200eimage omitted\n"
        "[1/1/24, 9:00:00\u202fAM] Kim: Happy new year!\n[1/1/24, 9:01:00\u202fAM] Nan: And to you: tea?\n",
        encoding="utf-8",
    )
    assert turns(read(ios)) == expected


def test_telegram(tmp_path: Path) -> None:
    def message(number: int, name: str, text: Any, **more: Any) -> dict[str, Any]:
        return {
            "id": number,
            "type": "message",
            "date": "2024-01-01T10:00:00",
            "date_unixtime": str(1_704_103_200 + number),
        } | {
            "from": name,
            "text": text,
            **more,
        }

    chat = {
        "name": "Kim",
        "type": "personal_chat",
        "id": 1,
        "messages": [
            {"id": 0, "type": "service", "action": "phone_call"},
            message(1, "Kim", ["See ", {"type": "link", "text": "https://example.org"}, "?"]),
            message(2, "Nan", "Aye."),
            message(3, "Nan", "Not mine", forwarded_from="Jo"),
        ],
    }
    one, every = tmp_path / "result.json", tmp_path / "all.json"
    one.write_text(json.dumps(chat))
    every.write_text(json.dumps({"chats": {"list": [chat, {"type": "x", "messages": []}]}}))
    for path in (one, every):
        reading = read(path)
        assert reading.format == "telegram"
        assert turns(reading) == [[("user", "See https://example.org?"), ("assistant", "Aye.")]]
        assert "1 forwarded" in reading.result.warnings[-1]


def test_discord_follows_replies(tmp_path: Path) -> None:
    def message(number: int, name: str, text: str, **more: Any) -> dict[str, Any]:
        author = {"id": name, "name": name.lower(), "nickname": name, "isBot": name == "Beep"}
        stamp = f"2024-01-01T10:0{number}:00.000+00:00"
        return {"id": str(number), "type": "Default", "timestamp": stamp, "content": text, "author": author, **more}

    path = tmp_path / "channel.json"
    rows = [
        message(1, "Kim", "Is it raining?"),
        message(2, "Jo", "Who has the key?"),
        message(3, "Beep", "Level up!"),
        message(4, "Nan", "Aye.", type="Reply", reference={"messageId": "1"}),
        message(5, "Nan", "In the teapot.", type="Reply", reference={"messageId": "2"}),
        message(6, "Kim", "joined", type="GuildMemberJoin"),
    ]
    path.write_text(json.dumps({"guild": {}, "channel": {}, "messages": rows}))
    reading = read(path)
    assert reading.format == "discord"
    assert turns(reading) == [
        [("user", "Is it raining?"), ("assistant", "Aye.")],
        [("user", "Who has the key?"), ("assistant", "In the teapot.")],
    ]
    assert "1 messages of bots" in reading.result.warnings[-1]


def test_sillytavern(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    rows = [
        {"user_name": "Kim", "character_name": "Nan Tolliver", "chat_metadata": {}},
        {
            "name": "Nan Tolliver",
            "is_user": False,
            "mes": "Now then.",
            "swipes": ["Now then.", "Hello."],
            "swipe_id": 0,
        },
        {"name": "Kim", "is_user": True, "mes": "Hello!"},
        {"name": "System", "is_user": False, "is_system": True, "mes": "Summary."},
        {"name": "Nan Tolliver", "is_user": False, "mes": "Sit down."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    reading = read(path)
    assert reading.format == "sillytavern"
    assert turns(reading) == [[("assistant", "Now then."), ("user", "Hello!"), ("assistant", "Sit down.")]]
    assert "is with 'Nan Tolliver'" in reading.result.warnings[0]


def test_newer_sillytavern_headers_name_nobody(tmp_path: Path) -> None:
    rows = [
        {"user_name": "unused", "character_name": "unused", "chat_metadata": {}},
        {"name": "Kim", "is_user": True, "mes": "Where is the tea?"},
        {"name": "Nan Tolliver", "is_user": False, "mes": "Behind the flour, where it was never wanted."},
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    reading = read(path, "Nan Tolliver")
    assert reading.format == "sillytavern"
    assert turns(reading)[0][1] == ("assistant", "Behind the flour, where it was never wanted.")


def test_plain_texts_keep_their_split_and_a_short_one_costs_nothing(tmp_path: Path) -> None:
    text = " ".join(f"The kettle stood by the window for the {i}th time that long and rainy day." for i in range(30))
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"{text}\n\n{text} Again.", "split": split} for split in ("train", "test")]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"text": "Too short.", "split": "validation"}]))
    persona = Persona(id="nan", name="Nan", card={"data": {"name": "Nan"}})
    found = read_dataset(path, READERS, persona, "completion").result
    assert {c.split for c in found.conversations} == {"train", "test"}
    assert len(found.warnings) > 0


def test_completion_text_takes_chats_apart_and_keeps_passages(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    chat = "### Human: Is it raining?\n### Assistant: Aye, love.\n### Human: Still?\n### Assistant: Still.</s>"
    prose = " ".join(
        f"The kettle sang its {word} song, and nobody minded." for word in ["first", "second", "third", "fourth"]
    )
    rows = [{"text": chat}, {"text": "<|im_start|>user\nTea?<|im_end|>\n<|im_start|>assistant\nPlease.<|im_end|>"}]
    path.write_text(
        "\n".join(json.dumps(row) for row in [*rows, *({"text": f"{prose} {i} {prose}"} for i in range(4))])
    )
    reading = read(path)
    assert reading.format == "completion"
    assert turns(reading)[0][-1] == ("assistant", "Still.")
    assert turns(reading)[1] == [("user", "Tea?"), ("assistant", "Please.")]
    assert [c.made for c in reading.result.conversations[2:]] == ["instruction from a template"] * 4


def test_a_film_script(tmp_path: Path) -> None:
    path = tmp_path / "film.txt"
    scene = "INT. KITCHEN - DAY\n\nNan looks at the rain.\n\n          KIM\n     Is it raining?\n\n"
    reply = "          NAN (V.O.)\n     (not looking)\n     It's Harthwaite,\n     love.\n\nShe pours.\n\n"
    path.write_text(scene + reply + scene + reply.replace("love", "pet"))
    reading = read(path)
    assert reading.format == "screenplay"
    assert turns(reading) == [
        [("user", "Is it raining?"), ("assistant", "It's Harthwaite, love.")],
        [("user", "Is it raining?"), ("assistant", "It's Harthwaite, pet.")],
    ]


def test_the_play_as_a_raw_script_gives_the_pairs(test_data: Path, tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    try:
        import play
    finally:
        sys.path.pop(0)
    found, pairs = play.speeches(test_data / "lord_goring")
    path = tmp_path / "play.txt"
    path.write_text(play.as_printed(found, seed=3), encoding="utf-8")
    reading = read(path, "Lord Goring")
    assert reading.format == "script"
    share, lost = play.share_of_pairs(reading.result.conversations, pairs)
    assert share >= 0.95, lost
    assert not any("[" in c or "_" in c for talk in turns(reading) for _, c in talk)


def test_speakers_are_listed_by_number_of_lines(test_data: Path) -> None:
    assert speakers(IRCReader()._said(test_data / LOG))[:2] == ["imsickurdcure", "nomin"]
