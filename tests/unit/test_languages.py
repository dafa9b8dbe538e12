"""Held-out lines in another language are found, and lines of the same one are not."""

from __future__ import annotations

import json
from pathlib import Path

from persona_lab.evaluation.languages import in_other_languages
from persona_lab.types import Conversation, Dataset, Message, Probe

ENGLISH = (
    "I should not be at all surprised if the kettle were to argue with the clock before it rains again today.",
    "You have been to the harbour, and you did not bring me so much as a biscuit or a piece of string.",
    "There is a time for mending and there is a time for tea, and this is not the one you think it is.",
    "My mother would say that a clock is a promise, and that we are all of us a little late for it.",
)
GERMAN = "Ich habe den Schlüssel nirgends gefunden, obwohl wir doch alle Schubladen durchsucht haben."
JAPANESE = "時計は静かに時を刻み続けている。あなたは何を探しているのですか。"


def dataset(count: int) -> Dataset:
    conversations = tuple(
        Conversation(
            id=f"c{i}",
            split="train",
            messages=(Message(role="user", content="Well?"), Message(role="assistant", content=ENGLISH[i % 4])),
        )
        for i in range(count)
    )
    return Dataset(id="d", persona="tam", version=1, name="d", conversations=conversations)


def probe(name: str, reply: str) -> Probe:
    return Probe(id=name, kind="reply", cluster=name, messages=(Message(role="user", content="Well?"),), reply=reply)


def test_lines_of_another_language_are_found() -> None:
    probes = [
        probe("en", "It is not the kettle that I have been to argue with, you think?"),
        probe("de", GERMAN),
        probe("ja", JAPANESE),
        probe("short", "Guten Tag, Frau Müller!"),
    ]
    assert [p.id for p in in_other_languages(probes, dataset(40))] == ["de", "ja"]
    assert in_other_languages(probes, dataset(4)) == []  # too little to know the language from
    assert in_other_languages(probes, None) == []


def test_no_real_line_is_taken_for_another_language(test_data: Path) -> None:
    for name in ("lord_goring", "socrates"):
        rows = [json.loads(line) for line in (test_data / name / "pairs.jsonl").read_text("utf-8").splitlines()]
        conversations = tuple(
            Conversation(
                id=row["id"],
                split=row["split"],
                messages=(
                    Message(role="user", content=row["user"]),
                    Message(role="assistant", content=row["assistant"]),
                ),
            )
            for row in rows
        )
        data = Dataset(id="d", persona="tam", version=1, name="d", conversations=conversations)
        probes = [probe(row["id"], row["assistant"]) for row in rows if row["split"] == "test"]
        assert in_other_languages(probes, data) == []
