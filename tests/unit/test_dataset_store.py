"""From reading to dataset to disk and back; and the examples for a prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.api import ReadResult
from persona_lab.datasets.build import build_dataset, fingerprint
from persona_lab.datasets.examples import best_examples
from persona_lab.datasets.reading import Reading
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.datasets.store import load_dataset, save_dataset
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Dataset, DatasetSummary, Message

Make = Callable[..., list[Conversation]]


def build(conversations: list[Conversation], **rest: Any) -> tuple[Dataset, DatasetSummary]:
    reading = Reading(ReadResult(conversations=tuple(conversations), **rest), "columns", "Rows, because you said so")
    return build_dataset(reading, "tamsin", 3, "Tamsin's table", "talk.csv")


def test_counts_and_identity(conversations_factory: Make) -> None:
    rows = conversations_factory(30)
    repeated = rows[0].model_copy(update={"id": "again"})
    skipped = ((7, "has no reply"), (9, "has no reply"))
    dataset, summary = build([*rows, repeated], others=("Aye.", "Aye.", " ", "No."), skipped=skipped)
    assert (dataset.id, dataset.persona, dataset.version) == ("tamsin-v3", "tamsin", 3)
    assert dataset.others == ("Aye.", "No.")
    counts = summary.counts
    assert counts["train"] + counts["validation"] + counts["test"] == len(dataset.conversations) == 30
    assert (counts["duplicates"], counts["skipped"], counts["others"], counts["turns"]) == (1, 2, 2, 40)
    assert "2 rows were skipped: 2 because it has no reply." in summary.warnings
    assert summary.why == "Rows, because you said so"


def test_lines_of_others_that_the_character_says_too_are_no_negatives(conversations_factory: Make) -> None:
    rows = conversations_factory(12)
    dataset, _ = build(rows, others=(rows[0].messages[1].content, "Somebody else."))
    assert dataset.others == ("Somebody else.",)


def test_repeated_ids_are_made_unique(conversations_factory: Make) -> None:
    names = ("a", "a", "a~2", "a")
    rows = [c.model_copy(update={"id": name}) for c, name in zip(conversations_factory(4), names, strict=True)]
    dataset, _ = build(rows)
    assert [c.id for c in dataset.conversations] == ["a", "a~3", "a~2", "a~4"]


def test_fingerprint_is_of_content_not_of_order(conversations_factory: Make) -> None:
    rows = conversations_factory(20)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert build(rows)[1].fingerprint == build(shuffled)[1].fingerprint
    dataset, summary = build(rows)
    assert summary.fingerprint == fingerprint(dataset)
    assert build(rows[:-1])[1].fingerprint != summary.fingerprint
    assert build(rows, others=("x",))[1].fingerprint != summary.fingerprint


def test_all_held_out_is_refused(conversations_factory: Make) -> None:
    with pytest.raises(BadInput, match=r"none to train on.*Mark some rows"):
        build(conversations_factory(5, "test"))


def test_placeholders_are_pointed_out(conversations_factory: Make) -> None:
    row = Conversation(
        id="p",
        messages=(Message(role="user", content="Hi"), Message(role="assistant", content="I am {{name}}, <BOT>.")),
    )
    _, summary = build([*conversations_factory(12), row])
    assert any("{{name}}, <BOT>" in warning for warning in summary.warnings)


def test_round_trip(tmp_path: Path, conversations_factory: Make) -> None:
    odd = Conversation(
        id="odd",
        messages=(Message(role="user", content='a\u2028b\x85c\n"d"'), Message(role="assistant", content="é 😀")),
        group="g",
        source="x:1",
    )
    dataset, _ = build([*conversations_factory(15), odd], others=("l\u2028ine\nof another",))
    save_dataset(tmp_path / "new" / "dataset.jsonl", dataset)
    assert load_dataset(tmp_path / "new" / "dataset.jsonl") == dataset


def test_damaged_files_are_refused(tmp_path: Path, conversations_factory: Make) -> None:
    path = tmp_path / "dataset.jsonl"
    save_dataset(path, build(conversations_factory(15))[0])
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for damaged in ("".join(lines[:-1]), "".join(lines)[:-10], "".join(lines[1:]), "[1]\n", '{"kind": "other"}\n'):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(BadInput, match="damaged"):
            load_dataset(path)
    with pytest.raises(BadInput, match="no file"):
        load_dataset(tmp_path / "none.jsonl")


def test_best_examples_are_single_exchanges_of_train_within_the_budget(
    tiny_model: Path, conversations_factory: Make
) -> None:
    renderer = ChatRenderer(tiny_model)
    dataset, _ = build(conversations_factory(40))
    train = {c.id for c in dataset.of("train")}
    chosen = best_examples(dataset, 4, renderer, 400)
    assert len(chosen) == 4
    assert {c.id for c in chosen} <= train
    assert all([m.role for m in c.messages] == ["user", "assistant"] for c in chosen)
    assert chosen == best_examples(dataset, 4, renderer, 400)
    assert len({c.messages[0].content.split()[2] for c in chosen}) == 4  # four different things are asked about
    sizes = [len(renderer.render(c.messages).ids) for c in chosen]
    assert sum(sizes) <= 400


def test_best_examples_with_little_room_or_nothing_to_show(tiny_model: Path, conversations_factory: Make) -> None:
    renderer = ChatRenderer(tiny_model)
    dataset, _ = build(conversations_factory(20))
    size = len(renderer.render(dataset.of("train")[0].messages[:2]).ids)
    assert len(best_examples(dataset, 8, renderer, int(2.5 * size))) <= 2
    assert best_examples(dataset, 8, renderer, 3) == ()
    assert best_examples(dataset, 0, renderer, 500) == ()
    empty = dataset.model_copy(update={"conversations": ()})
    assert best_examples(empty, 4, renderer, 500) == ()


def test_real_character_keeps_its_own_split(test_data: Path, persona_factory: Callable[..., Any]) -> None:
    from persona_lab_builtin.readers.columns import ColumnsReader

    from persona_lab.datasets.reading import read_dataset

    reading = read_dataset(test_data / "lord_goring", [ColumnsReader()], persona_factory(name="Lord Goring"))
    dataset, summary = build_dataset(reading, "goring", 1, "Goring", "lord_goring")
    counts = summary.counts
    assert counts["test"] == 80
    assert counts["train"] + counts["validation"] == 238
    assert 20 <= counts["validation"] <= 28
    assert counts["others"] > 650
    assert {c.id for c in dataset.of("test")} == {c.id for c in reading.result.conversations if c.split == "test"}
