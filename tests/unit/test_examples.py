"""Every shipped persona is held to the same bar: card, avatar, conversations, facts and adversarial prompts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from persona_lab_builtin.readers.openai_messages import OpenAIMessagesReader

from persona_lab.api import DatasetReader
from persona_lab.datasets.build import build_dataset
from persona_lab.datasets.reading import read_dataset
from persona_lab.datasets.rows import read_rows
from persona_lab.datasets.similarity import jaccard, near_duplicates, shingles
from persona_lab.personas.cards import check_avatar, read_card
from persona_lab.personas.prompt import greeting, system_prompt
from persona_lab.personas.store import adversarial_prompts, example_folders, load_persona
from persona_lab.types import Conversation

READERS: list[DatasetReader] = [OpenAIMessagesReader()]
EXAMPLES = example_folders()


@pytest.fixture(params=sorted(EXAMPLES))
def folder(request: pytest.FixtureRequest) -> Path:
    return EXAMPLES[request.param]


def raw_conversations(folder: Path) -> tuple[Conversation, ...]:
    return read_dataset(folder / "dataset.jsonl", READERS, load_persona(folder)).result.conversations


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_there_are_three() -> None:
    assert len(EXAMPLES) == 3


def test_card_is_v3_and_complete(folder: Path) -> None:
    raw: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert (raw["spec"], raw["spec_version"]) == ("chara_card_v3", "3.0")
    read = read_card(folder / "card.json")
    assert read.card == raw, "the card lacks fields that V3 requires"
    assert read.warnings == ()
    persona = load_persona(folder)
    assert persona.example
    for field in ("description", "personality", "scenario", "first_mes", "mes_example", "creator_notes"):
        assert persona.field(field).strip(), field
    assert "{{" not in system_prompt(persona) + greeting(persona)


def test_avatar_can_be_shown(folder: Path) -> None:
    assert check_avatar((folder / "avatar.png").read_bytes(), folder.name) == (512, 512)


def test_enough_conversations_a_third_with_several_turns(folder: Path) -> None:
    conversations = raw_conversations(folder)
    train = [c for c in conversations if c.split == "train"]
    held_out = [c for c in conversations if c.split == "test"]
    several = [c for c in train if sum(m.role == "assistant" for m in c.messages) > 1]
    assert len(train) >= 120
    assert len(held_out) >= 30
    assert len(several) >= len(train) / 3
    assert {c.split for c in conversations} <= {"train", "validation", "test"}
    assert len({c.id for c in conversations}) == len(conversations)


def test_nothing_leaks_between_splits(folder: Path) -> None:
    conversations = raw_conversations(folder)
    crossing = [
        (conversations[a].id, conversations[b].id)
        for a, b in near_duplicates(conversations)
        if conversations[a].split != conversations[b].split
    ]
    assert crossing == []
    persona = load_persona(folder)
    reading = read_dataset(folder / "dataset.jsonl", READERS, persona)
    dataset, summary = build_dataset(reading, persona.id, 1, persona.name, "shipped")
    assert (summary.counts["duplicates"], summary.counts["skipped"], summary.warnings) == (0, 0, ())
    assert len(dataset.of("validation")) >= 10


def test_enough_facts_with_wrong_answers_and_paraphrases(folder: Path) -> None:
    facts = load_persona(folder).facts
    assert len(facts) >= 20
    for fact in facts:
        assert len(fact.wrong) >= 3, fact.id
        assert len(fact.paraphrases) >= 2, fact.id
        answers = [plain(text) for text in (fact.answer, *fact.wrong)]
        assert len(set(answers)) == len(answers), fact.id
        questions = [plain(text) for text in (fact.question, *fact.paraphrases)]
        assert len(set(questions)) == len(questions), fact.id


def test_no_question_about_a_fact_is_trained_on(folder: Path) -> None:
    asked = {
        plain(text): shingles(text)
        for fact in load_persona(folder).facts
        for text in (fact.question, *fact.paraphrases)
    }
    for conversation in raw_conversations(folder):
        if conversation.split == "test":
            continue
        for message in conversation.messages:
            if message.role == "user":
                assert plain(message.content) not in asked, (conversation.id, message.content)
                near = [q for q, known in asked.items() if jaccard(shingles(message.content), known) >= 0.7]
                assert near == [], (conversation.id, message.content)


def test_forty_adversarial_prompts_are_shared() -> None:
    prompts = adversarial_prompts()
    assert len(prompts) == 40
    assert len({plain(prompt.prompt) for prompt in prompts}) == 40
    assert len({prompt.attack for prompt in prompts}) >= 4
    trained = {
        plain(message.content)
        for folder in EXAMPLES.values()
        for conversation in raw_conversations(folder)
        for message in conversation.messages
        if message.role == "user"
    }
    assert [prompt.id for prompt in prompts if plain(prompt.prompt) in trained] == []


def test_no_reply_speaks_as_an_assistant(folder: Path) -> None:
    """Replies in which the character is a language model would teach it to break."""
    for conversation in raw_conversations(folder):
        for message in conversation.messages:
            if message.role == "assistant":
                assert not re.search(r"\bas an AI\b|language model|\{\{", message.content), conversation.id


def test_probe_rows_are_facts_only(folder: Path) -> None:
    rows = [row for _, row in read_rows(folder / "probes.jsonl").rows]
    assert {row["kind"] for row in rows} == {"fact"}
