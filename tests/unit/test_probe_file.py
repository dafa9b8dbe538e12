"""A user's own probes: read, checked, changed, undone; from the command line, and as probes of an evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from persona_lab.cli import app
from persona_lab.datasets.held_out import LEDGER, read_ledger
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, BadSetting, UnknownName
from persona_lab.evaluation.probes import build_probes, sample_probes
from persona_lab.home import Home
from persona_lab.personas.probe_file import (
    BACKUP,
    MAX_PROBES,
    MAX_TEXT,
    ProbeFile,
    ReplyProbe,
    as_lines,
    edit_probes,
    probes_of,
    read_probes,
    undo_probes,
    write_probes,
)
from persona_lab.personas.store import example_folders, load_persona, save_persona
from persona_lab.types import AdversarialPrompt, Conversation, Dataset, Fact, Message, Persona

Make = Callable[..., list[Conversation]]
FACT = Fact(id="hat", question="What hat?", paraphrases=("Which hat?",), answer="a bowler", wrong=("a fez", "a cap"))
ATTACK = AdversarialPrompt(id="mine", attack="identity", prompt="Are you a robot?")
LINE = ReplyProbe(
    id="tide", messages=(Message(role="user", content="When is high tide?"),), reply="When the drawer is shut, dear."
)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# --- the file -------------------------------------------------------------------------------------


def test_round_trip_and_the_persona_sees_its_facts(tmp_path: Path, persona_factory: Callable[..., Persona]) -> None:
    folder = tmp_path / "tamsin"
    save_persona(folder, persona_factory())
    before = probes_of(folder)
    edit_probes(folder, lambda file: file.added([FACT, ATTACK, LINE]))
    assert probes_of(folder).probes == (*before.probes, FACT, ATTACK, LINE)
    persona = load_persona(folder)
    assert persona.facts[-1] == FACT
    save_persona(folder, persona.model_copy(update={"facts": (FACT,)}))  # editing the card keeps the others
    assert probes_of(folder).probes == (FACT, ATTACK, LINE)


def test_the_shipped_examples_are_read_whole() -> None:
    for folder in example_folders().values():
        file = probes_of(folder)
        assert file.problems == ()
        assert file.facts == load_persona(folder).facts
        assert len(file.facts) >= 20


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ({"question": "q?"}, "answer"),
        ({"kind": "riddle", "question": "q?", "answer": "a"}, "the kinds are"),
        ({"question": " ", "answer": "a", "wrong": ["b"]}, "question is empty"),
        ({"question": "q?", "answer": "Rhea", "wrong": ["rhea."]}, "holds the right answer"),
        ({"question": "q?", "answer": "a", "wrong": ["B", "b"]}, "twice"),
        ({"question": "q?", "answer": "x" * (MAX_TEXT + 1), "wrong": ["b"]}, "4,001 characters"),
        ({"question": "q?", "answer": "a", "wrong": [str(i) for i in range(40)]}, "at most 32"),
        ({"question": 3, "answer": "a"}, "question"),
        ({"kind": "adversarial", "prompt": ""}, "prompt is empty"),
        ({"kind": "reply", "prompt": "Well?", "reply": "Yes."}, "too short"),
        ({"kind": "reply", "messages": [], "reply": "One two three four."}, "must end with a turn of the user"),
        ({"id": "a\nb", "kind": "adversarial", "prompt": "x"}, "short name"),
        ({"id": "good", "kind": "adversarial", "prompt": "x"}, "id 'good' of line 1"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_kept(tmp_path: Path, line: Any, says: str) -> None:
    good = {"id": "good", "question": "q?", "answer": "a", "wrong": ["b"]}
    file = read_probes(write(tmp_path / "p.jsonl", good, "", line, {"kind": "adversarial", "prompt": "Who?"}))
    assert [p.id for p in file.probes] == ["good", "attack-4"]
    assert [number for number, _ in file.problems] == [3]
    assert says in file.problems[0][1]


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    rows = ({"kind": "adversarial", "prompt": f"Number {i}?"} for i in range(MAX_PROBES + 5))
    file = read_probes(write(tmp_path / "p.jsonl", *rows))
    assert len(file.probes) == MAX_PROBES
    assert file.problems[0][0] == MAX_PROBES + 1
    with pytest.raises(BadInput, match="at most"):
        file.added([FACT])
    (tmp_path / "big.jsonl").write_bytes(b" {" * 3 * 2**20)
    with pytest.raises(BadInput, match="MiB"):
        read_probes(tmp_path / "big.jsonl")


def test_add_knows_what_is_there_and_remove_what_is_not() -> None:
    file = ProbeFile((FACT,)).added([FACT.model_copy(update={"id": "other", "answer": "A BOWLER."}), ATTACK])
    assert file.probes == (FACT, ATTACK)
    clash = FACT.model_copy(update={"question": "What coat?"})
    assert [p.id for p in file.added([clash]).probes] == ["hat", "mine", "fact-01"]
    assert file.removed(["hat"]).probes == (ATTACK,)
    with pytest.raises(UnknownName, match=r"'hut'.*'hat'"):
        file.removed(["mine", "hut"])
    assert ProbeFile((FACT, ATTACK)).replaced(clash).probes == (clash, ATTACK)
    with pytest.raises(UnknownName, match="'coat'"):
        file.replaced(FACT.model_copy(update={"id": "coat"}))


def test_every_problem_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    write_probes(tmp_path, ProbeFile((FACT,)))
    bad = ProbeFile((FACT.model_copy(update={"answer": ""}), ATTACK.model_copy(update={"id": "hat", "prompt": " "})))
    with pytest.raises(BadSetting) as error:
        write_probes(tmp_path, bad)
    assert [name for name, _ in error.value.problems] == ["hat.answer", "hat.prompt", "hat.id"]
    assert probes_of(tmp_path).probes == (FACT,)


def test_a_damaged_line_is_not_lost_by_a_save(tmp_path: Path) -> None:
    path = write(tmp_path / "probes.jsonl", as_lines([FACT]).strip(), '{"question": "half')
    text = path.read_text()
    with pytest.raises(BadInput, match="line 2"):
        write_probes(tmp_path, ProbeFile((ATTACK,)))
    assert path.read_text() == text
    assert probes_of(tmp_path).probes == (FACT,)


def test_undo_goes_back_and_forth(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no earlier version"):
        undo_probes(tmp_path)
    write_probes(tmp_path, ProbeFile((FACT,)))
    assert undo_probes(tmp_path).probes == ()
    assert undo_probes(tmp_path).probes == (FACT,)
    write_probes(tmp_path, ProbeFile((ATTACK,)))
    assert undo_probes(tmp_path).probes == (FACT,)
    assert (tmp_path / BACKUP).exists()


# --- in an evaluation -----------------------------------------------------------------------------


def test_own_lines_and_prompts_are_asked(persona_factory: Callable[..., Persona], conversations_factory: Make) -> None:
    rows = conversations_factory(300, "test")
    dataset = Dataset(
        id="d", persona="tamsin", version=1, name="d", conversations=tuple(rows), others=("A short one.",)
    )
    own = ProbeFile((FACT, ATTACK, LINE))
    probes = build_probes(persona_factory(), dataset, own=own)
    line = next(p for p in probes if p.id == "own:tide")
    assert (line.kind, line.reply, line.messages) == ("reply", LINE.reply, LINE.messages)
    assert line.other
    assert next(p for p in probes if p.id == "own:mine").attack == "identity"
    assert len({p.id for p in probes}) == len(probes)
    replies = [p for p in sample_probes(probes, quick=True) if p.kind == "reply"]
    assert len(replies) == 24
    assert line in replies
    assert [p.id for p in build_probes(persona_factory(), None, own=own) if p.kind == "reply"] == ["own:tide"]


# --- the engine and the command line --------------------------------------------------------------


@pytest.fixture
def engine(home: Home, persona_factory: Callable[..., Persona]) -> Iterator[Engine]:
    with Engine.open(home.root) as opened:
        opened.save_persona(persona_factory())
        yield opened


def import_chats(engine: Engine, path: Path, rows: list[Conversation]) -> Any:
    write(path, *({"messages": [m.model_dump() for m in c.messages]} for c in rows))
    return engine.import_dataset(path, "tamsin")


def test_own_lines_are_held_out_of_the_next_import(engine: Engine, tmp_path: Path, conversations_factory: Make) -> None:
    engine.edit_probes("tamsin", lambda file: file.added([LINE]))
    assert read_ledger(engine.home.persona("tamsin")).find(LINE.conversation) is not None
    extra = Conversation(
        id="x",
        messages=(
            Message(role="user", content="Say something."),
            Message(role="assistant", content="when the drawer is shut, DEAR"),
        ),
    )
    made = import_chats(engine, tmp_path / "a.jsonl", [*conversations_factory(30), extra])
    held = {m.content for c in engine.dataset(made.id).of("test") for m in c.messages}
    assert "when the drawer is shut, DEAR" in held
    assert any("1 conversation was held out before (in probes.jsonl)" in warning for warning in made.warnings)


def test_a_line_that_is_trained_on_cannot_become_a_probe(
    engine: Engine, tmp_path: Path, conversations_factory: Make
) -> None:
    made = import_chats(engine, tmp_path / "a.jsonl", conversations_factory(30))
    row = engine.dataset(made.id).of("train")[0]
    stolen = ReplyProbe(id="stolen", messages=row.messages[:1], reply=row.messages[1].content.upper())
    with pytest.raises(BadInput, match="stolen = "):
        engine.edit_probes("tamsin", lambda file: file.added([stolen]))
    assert engine.probes("tamsin").replies == ()
    engine.catalog.check_held_out(engine.dataset(made.id), "tamsin")


def test_an_edited_example_is_the_users_own(home: Home) -> None:
    with Engine.open(home.root) as engine:
        assert len(engine.probes("magpie").facts) >= 20
        engine.edit_probes("magpie", lambda file: file.removed(["fact-01"]))
        assert not engine.persona("magpie").example
        assert "fact-01" not in {fact.id for fact in engine.persona("magpie").facts}
        engine.undo_probes("magpie")
        assert "fact-01" in {fact.id for fact in engine.persona("magpie").facts}


def called(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    if code == 0:
        assert result.exception is None, result.exception
        return json.loads(result.stdout)
    assert result.exception is not None
    return result.exception


def test_the_command_line_lists_adds_removes_and_undoes(tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    listed = called("probes", "list", "magpie", *home)
    assert all({"id", "name", "kind", "answer", "source"} <= row.keys() for row in listed)
    assert all("prompt" in row or "question" in row for row in listed)
    kinds = [row["kind"] for row in listed]
    assert {kind: kinds.count(kind) >= 20 for kind in kinds} == {"fact": True, "adversarial": True, "reply": True}

    file = write(tmp_path / "mine.jsonl", as_lines([FACT, ATTACK]).strip(), '{"question": "half?"}')
    added = called("probes", "add", "magpie", "--file", str(file), *home)
    assert [row["id"] for row in added["added"]] == ["hat", "mine"]
    assert [row["line"] for row in added["skipped"]] == [3]
    assert called("probes", "add", "magpie", "--file", str(file), *home)["known"] == 2
    assert called("probes", "remove", "magpie", "hat", *home) == {"removed": ["hat"]}
    ids = {row["id"] for row in called("probes", "list", "magpie", *home)}
    assert "mine" in ids
    assert "hat" not in ids
    assert (
        called("probes", "undo", "magpie", *home)["facts"] == len(load_persona(example_folders()["magpie"]).facts) + 1
    )
    assert isinstance(called("probes", "remove", "magpie", "nothing", *home, code=2), UnknownName)
    assert isinstance(called("probes", "list", "nobody", *home, code=2), UnknownName)
    bad = write(tmp_path / "bad.jsonl", "{")
    assert "line 1" in str(called("probes", "add", "magpie", "--file", str(bad), *home, code=2))


@dataclass(frozen=True)
class Proposal:
    fact: Fact
    sentence: str
    kind: str


def test_proposals_are_saved_only_when_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coat = FACT.model_copy(update={"id": "coat", "question": "What coat?", "paraphrases": ()})
    module = ModuleType("persona_lab.personas.propose")
    proposals = [Proposal(FACT, "She wears a bowler.", "object"), Proposal(coat, "Her coat is long.", "object")]
    module.propose_facts = lambda persona, limit=40: proposals[:limit]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "persona_lab.personas.propose", module)
    home = ("--home", str(tmp_path / "home"))
    rows = called("probes", "propose", "magpie", *home)
    assert [(row["id"], row["source"], row["accepted"]) for row in rows] == [
        ("hat", "She wears a bowler.", False),
        ("coat", "Her coat is long.", False),
    ]
    assert not {"hat", "coat"} & {row["id"] for row in called("probes", "list", "magpie", *home)}
    called("probes", "propose", "magpie", "--accept", "coat", *home)
    assert [row["id"] for row in called("probes", "propose", "magpie", *home)] == ["hat"]
    assert isinstance(called("probes", "propose", "magpie", "--accept", "cot", *home, code=2), UnknownName)
    called("probes", "propose", "magpie", "--accept-all", *home)
    assert called("probes", "propose", "magpie", *home) == []
    assert (tmp_path / "home" / "personas" / "magpie" / LEDGER).exists()
