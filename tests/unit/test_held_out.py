"""Held-out conversations are never trained on: not after another import, in another format, or by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from persona_lab.datasets.additions import sort_out
from persona_lab.datasets.held_out import (
    LEDGER,
    HeldOut,
    check_training,
    hold_out,
    normalised,
    read_ledger,
    sharing_lines,
    stock_phrases,
)
from persona_lab.datasets.splits import assign_splits
from persona_lab.datasets.store import load_dataset, save_dataset
from persona_lab.engine import Engine
from persona_lab.errors import BadInput
from persona_lab.evaluation.leaks import check_leaks, check_probes
from persona_lab.evaluation.probes import reply_probes
from persona_lab.home import Home
from persona_lab.plugins import Plugins
from persona_lab.types import Conversation, Dataset, DatasetSummary, Job, Message, Persona, Split

Make = Callable[..., list[Conversation]]
Factory = Callable[..., Persona]


def talk(name: str, split: Split | None, *turns: str, group: str = "") -> Conversation:
    messages = tuple(Message(role="assistant" if i % 2 else "user", content=turn) for i, turn in enumerate(turns))
    return Conversation(id=name, split=split, messages=messages, source=f"file.jsonl:{name}", group=group)


def data(*conversations: Conversation, name: str = "d1") -> Dataset:
    return Dataset(id=name, persona="tamsin", version=1, name="data", conversations=conversations)


@pytest.fixture
def engine(home: Home, persona_factory: Factory) -> Iterator[Engine]:
    with Engine.open(home.root) as opened:
        opened.save_persona(persona_factory())
        yield opened


def chat_rows(conversations: list[Conversation]) -> list[dict[str, Any]]:
    return [{"messages": [m.model_dump() for m in c.messages]} for c in conversations]


def import_rows(engine: Engine, path: Path, rows: list[dict[str, Any]]) -> DatasetSummary:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return engine.import_dataset(path, "tamsin")


def replies(dataset: Dataset, *splits: Split) -> set[str]:
    return {m.content for s in splits for c in dataset.of(s) for m in c.messages if m.role == "assistant"}


# --- fingerprints ---------------------------------------------------------------------------------


def test_small_changes_do_not_make_another_line() -> None:
    assert normalised("  *Don’t* fold the MAP -- please!") == normalised("don't fold the map, please")
    assert normalised("ﬁne _print_") == "fine print"
    assert normalised("?!") == ""


def test_a_reply_to_three_questions_is_a_stock_phrase() -> None:
    rows = [talk(str(i), None, f"Question {i}?", "I could not say, sir.") for i in range(3)]
    assert stock_phrases(rows) == {"i could not say sir"}
    assert stock_phrases([*rows[:2], rows[0]]) == frozenset()
    assert list(sharing_lines(rows)) == []
    assert list(sharing_lines(rows[:2])) == [(0, 1)]


def test_conversations_that_share_a_line_share_a_split() -> None:
    shared = "The tide keeps my appointments for me."
    for seed in range(5):
        rows = [
            talk(
                str(i), None, f"What about number {i} of {seed}?", f"Word{i} goes under {seed} bridge{i} twice, calmly."
            )
            for i in range(40)
        ]
        long = [
            talk(f"m{k}", None, f"Hello {k}?", f"Start{k} of one{k} thing{k} here{k}.", f"And {k}?", shared)
            for k in (0, 1)
        ]
        done = {c.id: c.split for c in assign_splits([*rows, *long]).conversations}
        assert done["m0"] == done["m1"]


# --- imports --------------------------------------------------------------------------------------


def test_another_order_and_another_format_hold_out_the_same(
    engine: Engine, tmp_path: Path, conversations_factory: Make
) -> None:
    rows = conversations_factory(60)
    first = import_rows(engine, tmp_path / "chats.jsonl", chat_rows(rows))
    held = replies(engine.dataset(first.id), "test")
    assert len(held) >= 6
    assert not any("held out before" in warning for warning in first.warnings)

    shuffled = random.Random(3).sample(rows, len(rows))
    second = import_rows(engine, tmp_path / "again.jsonl", chat_rows(shuffled))
    assert replies(engine.dataset(second.id), "test") == held

    pairs = [
        {"instruction": c.messages[i].content.upper(), "output": f"{c.messages[i + 1].content}  "}
        for c in shuffled
        for i in range(0, len(c.messages), 2)
    ]
    third = import_rows(engine, tmp_path / "alpaca.jsonl", pairs)
    again = engine.dataset(third.id)
    assert third.format != first.format
    assert held <= replies(again, "test")
    assert not held & replies(again, "train", "validation")
    warning = next(w for w in third.warnings if "held out before" in w)
    assert f"{len(held)} conversations" in warning
    assert "tamsin-v1" in warning
    assert sum(len(again.of(s)) for s in ("train", "validation", "test")) == len(pairs)  # none is dropped


def test_the_files_own_split_does_not_bring_held_out_rows_into_training(
    engine: Engine, tmp_path: Path, conversations_factory: Make
) -> None:
    first = import_rows(engine, tmp_path / "a.jsonl", chat_rows(conversations_factory(40)))
    held = engine.dataset(first.id).of("test")
    rows = [row | {"split": "train"} for row in chat_rows(conversations_factory(40))]
    second = import_rows(engine, tmp_path / "b.jsonl", rows)
    assert replies(engine.dataset(second.id), "test") >= replies(engine.dataset(first.id), "test")
    assert any(f"although the file marks {len(held)} of them for training" in w for w in second.warnings)
    engine.catalog.check_held_out(engine.dataset(second.id), "tamsin")


def test_a_larger_file_tests_on_rows_no_earlier_variant_saw(
    engine: Engine, tmp_path: Path, conversations_factory: Make
) -> None:
    first = import_rows(engine, tmp_path / "a.jsonl", chat_rows(conversations_factory(40)))
    second = import_rows(engine, tmp_path / "b.jsonl", chat_rows(conversations_factory(80)))
    before, after = engine.dataset(first.id), engine.dataset(second.id)
    assert len(after.of("test")) > len(before.of("test"))
    check_leaks(after, before)  # a variant made with the first version can still be scored


def test_a_file_of_held_out_rows_only_is_refused_with_the_reason(
    engine: Engine, tmp_path: Path, conversations_factory: Make
) -> None:
    first = import_rows(engine, tmp_path / "a.jsonl", chat_rows(conversations_factory(40)))
    held = list(engine.dataset(first.id).of("test"))
    with pytest.raises(BadInput, match="because they were held out before"):
        import_rows(engine, tmp_path / "b.jsonl", chat_rows(held))


def test_groups_of_held_out_rows_stay_together() -> None:
    rows = [
        talk(str(i), None, f"Ask {i}?", f"Answer {i} has its own {i} words{i}.", group=f"g{i // 4}") for i in range(24)
    ]
    done = assign_splits(rows, held_out=[5]).conversations
    assert [c.split for c in done[4:8]] == ["test"] * 4


# --- the ledger -----------------------------------------------------------------------------------


def test_the_ledger_grows_and_says_where_from(tmp_path: Path) -> None:
    hold_out(tmp_path, data(talk("a", "test", "Who?", "The keeper of small hours."), talk("b", "train", "Eh?", "No.")))
    before = (tmp_path / LEDGER).read_text()
    hold_out(tmp_path, data(talk("c", "test", "Where?", "Under the third stair, usually."), name="d2"))
    hold_out(tmp_path, data(talk("c", "test", "Where?", "Under the third stair, usually."), name="d3"))
    after = (tmp_path / LEDGER).read_text()
    assert after.startswith(before)
    rows = [json.loads(line) for line in after.splitlines()]
    assert {(row["row"], row["dataset"]) for row in rows} == {("file.jsonl:a", "d1"), ("file.jsonl:c", "d2")}
    assert all(len(row["key"]) == 64 and int(row["key"], 16) for row in rows)
    assert "keeper" not in after
    entry = read_ledger(tmp_path).find(talk("x", None, "who", "the KEEPER of small hours"))
    assert entry is not None
    assert entry.row == "file.jsonl:a"


def test_a_damaged_ledger_is_named_not_ignored(tmp_path: Path) -> None:
    hold_out(tmp_path, data(talk("a", "test", "Who?", "The keeper of small hours.")))
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"key": \n')
    with pytest.raises(BadInput, match="line 4"):
        read_ledger(tmp_path)


def test_data_older_than_the_ledger_is_held_out_from_its_newest_version(
    engine: Engine, tmp_path: Path, conversations_factory: Make
) -> None:
    rows = chat_rows(conversations_factory(40))
    first = import_rows(engine, tmp_path / "a.jsonl", rows)
    ledger = engine.home.persona("tamsin") / LEDGER
    written = ledger.read_text()
    ledger.unlink()
    second = import_rows(engine, tmp_path / "b.jsonl", rows[::-1])
    assert ledger.read_text() == written
    assert replies(engine.dataset(second.id), "test") == replies(engine.dataset(first.id), "test")


def test_the_ledger_goes_and_comes_back_with_its_persona(
    engine: Engine, tmp_path: Path, conversations_factory: Make
) -> None:
    import_rows(engine, tmp_path / "a.jsonl", chat_rows(conversations_factory(40)))
    ledger = engine.home.persona("tamsin") / LEDGER
    written = ledger.read_text()
    engine.delete_persona("tamsin")
    assert not ledger.exists()
    engine.undo_delete()
    assert ledger.read_text() == written


# --- before training ------------------------------------------------------------------------------


def test_a_hand_edited_file_is_refused_by_the_engine_and_by_the_worker(
    engine: Engine, tmp_path: Path, conversations_factory: Make, reporter: Any
) -> None:
    summary = import_rows(engine, tmp_path / "a.jsonl", chat_rows(conversations_factory(40)))
    path = engine.catalog.dataset_path(summary.id)
    dataset = load_dataset(path)
    stolen = dataset.of("test")[0]
    moved = [c.model_copy(update={"split": "train"}) if c.id == stolen.id else c for c in dataset.conversations]
    save_dataset(path, dataset.model_copy(update={"conversations": tuple(moved)}))
    with pytest.raises(BadInput, match=stolen.source) as error:
        engine.train("tamsin", "prompt")
    assert "1 conversation" in str(error.value)
    assert str(path) in error.value.fix
    assert engine.runs() == []

    from persona_lab.training.run import run

    job = Job(
        id="tamsin-prompt-1",
        kind="train",
        name="t",
        home=str(engine.home.root),
        created="",
        persona=engine.persona("tamsin"),
        dataset=str(path),
        strategy="prompt",
    )
    with pytest.raises(BadInput, match=stolen.source):
        run(job, reporter, Plugins.load())
    assert reporter.messages == []  # before the base model is touched


def test_a_copied_line_in_the_validation_split_is_refused() -> None:
    held = data(talk("a", "test", "Who?", "The keeper of small hours."))
    copied = data(talk("b", "validation", "Something else?", "The keeper, of small hours!"), name="d2")
    with pytest.raises(BadInput, match=r"validation file\.jsonl:b = held-out file\.jsonl:a"):
        check_training(copied, read_ledger(Path("/nonexistent")).with_test_of(held))


def test_short_lines_are_everybodys() -> None:
    dataset = data(
        talk("a", "test", "Hello?", "Yes.", "Who?", "The keeper of small hours."), talk("b", "train", "Hello?", "Yes.")
    )
    check_training(dataset, read_ledger(Path("/nonexistent")))
    check_leaks(dataset, dataset)


def test_many_leaks_are_counted() -> None:
    turns = [(f"Ask {i}?", f"Answer number {i} is folded.") for i in range(9)]
    dataset = data(*(talk(f"{s}{i}", s, *turn) for i, turn in enumerate(turns) for s in ("test", "train")))
    with pytest.raises(BadInput, match=r"9 conversations .*and 4 more"):
        check_training(dataset, read_ledger(Path("/nonexistent")))


# --- before an evaluation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "reply"),
    [
        ("Who ARE you", "i am the keeper... of SMALL hours"),
        ("Something else?", "I am the *keeper* of small hours!"),
    ],
)
def test_a_copied_reply_is_a_leak(question: str, reply: str) -> None:
    held = data(talk("a", "test", "Hello?", "Good evening to you.", "Who are you?", "I am the keeper of small hours."))
    trained = data(talk("b", "train", question, reply), name="d2")
    for check in (lambda: check_leaks(held, trained), lambda: check_probes(reply_probes(held), trained)):
        with pytest.raises(BadInput, match=r"= train file.jsonl:b"):
            check()


def test_a_stock_phrase_is_a_leak_only_with_its_question_and_never_a_probe() -> None:
    said = [talk(str(i), "train", f"Question {i}?", "I could not say, sir.") for i in range(3)]
    held = talk("t", "test", "Another?", "I could not say, sir.", "Why?", "It is folded too small.")
    dataset = data(*said, held)
    check_leaks(dataset, dataset)
    assert [p.reply for p in reply_probes(dataset)] == ["It is folded too small."]
    copied = data(*said, held, talk("c", "train", "Another", "I could not say, sir!"))
    with pytest.raises(BadInput, match=r"test file\.jsonl:t = train file\.jsonl:c"):
        check_leaks(copied, copied)


def test_every_copy_of_a_held_out_row_is_refused_when_rows_are_added() -> None:
    said = "The harbour bell rang twice before the fog came in and took the whole quay away"

    def row(name: str, reply: str, split: str | None = None) -> Conversation:
        messages = (Message(role="user", content=f"What of it, {name}?"), Message(role="assistant", content=reply))
        return Conversation(id=name, messages=messages, split=split)

    newest = Dataset(id="a-v1", persona="a", version=1, name="a", conversations=(row("held", f"{said}.", "test"),))
    copies = [row("one", f"{said}, sir."), row("two", f"{said}, SIR!"), row("fine", "Quite another story of a goat.")]
    found = sort_out(copies, newest, [], HeldOut({}))
    assert [good.id for good in found.good] == ["fine"]
    assert set(found.refused) == {"one", "two"}
