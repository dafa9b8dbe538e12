"""A backup holds what cannot be made again, is checked before anything is changed, and replaces nothing for good."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from persona_lab import backup
from persona_lab.chats.records import Candidate, SavedChat, SavedPane, SavedTurn, Vote
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, DiskFull
from persona_lab.home import Home
from persona_lab.types import Job, Message, Persona, Variant, now

ENDED = '{"kind": "failed", "cause": "cancelled", "message": "Stopped."}\n'


@pytest.fixture
def full_home(home: Home, persona_factory: Callable[..., Persona], tmp_path: Path) -> Home:
    """A home with a persona, data, a vote, a conversation, a finished run and its variant."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What of {n}?"},
                {"role": "assistant", "content": f"It is {n * 7}!"},
            ]
        }
        for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with Engine.open(home.root) as engine:
        engine.save_persona(persona_factory("tam"))
        engine.import_dataset(tmp_path / "rows.jsonl", "tam")
        asked = (Message(role="user", content="Hello"),)
        two = tuple(Candidate(reply=f"r{v}", variant=v, messages=asked, text=f"I am {v}") for v in "ab")
        engine.votes.cast(
            Vote(id="x", persona="tam", voter="me", candidates=two, outcome="win", winner=0, created=now())
        )
        turn = SavedTurn(role="user", text="Hello there")
        pane = SavedPane(variant="a", turns=(turn,))
        engine.chats.save(SavedChat(id="c1", persona="tam", owner="me", created=now(), panes=(pane,)))
        run = home.run("tam-lora-1")
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "big").write_bytes(b"x" * 1000)
        job = Job(id="tam-lora-1", kind="train", name="Tam", home=str(home.root), created=now())
        (run / "job.json").write_text(job.model_dump_json())
        (run / "events.jsonl").write_text(ENDED)
        made = home.variant("tam-lora-1")
        (made / "weights").mkdir(parents=True)
        (made / "weights" / "adapter_model.safetensors").write_bytes(b"weights" * 100)
        fields = {"id": "tam-lora-1", "name": "Tam", "persona": "tam", "base": "b", "strategy": "lora"}
        variant = Variant(kind="adapter", path=str(made / "weights"), created=now(), **fields)
        (made / "variant.json").write_text(variant.model_dump_json())
        engine.catalog.recover()
    (home.root / "owner.json").write_text('{"password": "hash"}')
    home.plugins.mkdir()
    (home.plugins / "mine.py").write_text("print('hello')")
    return home


def test_what_was_held_out_since_stays_held_out(full_home: Home, tmp_path: Path) -> None:
    ledger = full_home.persona("tam") / "held_out.jsonl"
    before = ledger.read_bytes()
    backup.back_up(full_home, tmp_path / "b.zip")
    later = [*before.splitlines()[1:], b'{"kind": "reply", "key": "later", "row": "r", "dataset": "tam-v2"}']
    ledger.write_bytes(b"\n".join(later) + b"\n")  # one line went, one came
    with Engine.open(full_home.root) as engine:
        done = engine.restore(tmp_path / "b.zip")
    assert set(ledger.read_bytes().splitlines()) == {*before.splitlines(), later[-1]}
    assert (Path(done.replaced) / "personas/tam/held_out.jsonl").read_bytes() == b"\n".join(later) + b"\n"


def test_a_file_that_cannot_be_read_is_said(full_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's refusal is put in its place: root, as whom tests may run, is refused nothing."""
    opened = backup._patiently

    def refused(source: Path) -> IO[bytes]:
        if source.name == "card.json":
            raise PermissionError(13, "Permission denied", str(source))
        return opened(source)

    monkeypatch.setattr(backup, "_patiently", refused)
    with pytest.raises(BadInput, match=r"card.json cannot be read"):
        backup.back_up(full_home, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Engine]:
    """An engine on another, empty home."""
    with Engine.open(tmp_path / "other") as engine:
        yield engine


def held(file: Path) -> set[str]:
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_there_and_back_while_the_page_has_the_home(full_home: Home, other: Engine, tmp_path: Path) -> None:
    with Engine.open(full_home.root) as page, Engine.open(full_home.root, readonly=True) as reader:
        made = reader.back_up(tmp_path / "b.zip")
        before = page.personas(), page.datasets(), page.dataset("tam-v1"), page.votes.all(), page.chats.all("me")
        runs = [run.id for run in page.runs()]
    assert (made.personas, made.variants, made.runs, made.weights) == (1, 1, 1, False)
    done = other.restore(tmp_path / "b.zip")
    assert (done.replaced, done.unchanged, done.left) == ("", 0, 0)
    after = other.personas(), other.datasets(), other.dataset("tam-v1"), other.votes.all(), other.chats.all("me")
    assert [p.model_copy(update={"avatar": None}) for p in after[0]] == [
        p.model_copy(update={"avatar": None}) for p in before[0]
    ]
    assert after[1:] == before[1:]
    assert [run.id for run in other.runs()] == runs
    assert other.variant("tam-lora-1").path == str(other.home.variant("tam-lora-1") / "weights")
    again = other.restore(tmp_path / "b.zip")
    assert (again.restored, again.replaced) == (0, "")


def test_what_is_held_and_what_is_not(full_home: Home, other: Engine, tmp_path: Path) -> None:
    backup.back_up(full_home, tmp_path / "light.zip")
    backup.back_up(full_home, tmp_path / "heavy.zip", weights=True)
    light, heavy = held(tmp_path / "light.zip"), held(tmp_path / "heavy.zip")
    assert heavy - light == {"variants/tam-lora-1/weights/adapter_model.safetensors"}
    assert light >= {"library.json", "personas/tam/card.json", "runs/tam-lora-1/events.jsonl", "backup.json"}
    assert not [p for p in heavy if "checkpoints" in p or "plugins" in p or "owner" in p or p.endswith(".lock")]
    other.restore(tmp_path / "heavy.zip")
    weights = "variants/tam-lora-1/weights/adapter_model.safetensors"
    assert (other.home.root / weights).read_bytes() == (full_home.root / weights).read_bytes()


def test_nothing_is_overwritten_and_what_is_replaced_is_kept(full_home: Home, tmp_path: Path) -> None:
    backup.back_up(full_home, tmp_path / "b.zip")
    with pytest.raises(BadInput, match="there already"):
        backup.back_up(full_home, tmp_path / "b.zip")
    with Engine.open(full_home.root) as engine:
        edited = engine.persona("tam")
        data = edited.card["data"] | {"description": "Somebody else now."}
        engine.save_persona(edited.model_copy(update={"card": edited.card | {"data": data}}))
        card = (full_home.persona("tam") / "card.json").read_bytes()
        (full_home.run("tam-lora-1") / "events.jsonl").write_text(ENDED + '{"kind": "log", "message": "more"}\n')
        (full_home.variant("tam-lora-1") / "weights" / "adapter_model.safetensors").write_bytes(b"still here")
        done = engine.restore(tmp_path / "b.zip")
        assert "Somebody else" not in engine.persona("tam").field("description")
    aside = Path(done.replaced)
    assert (aside / "personas/tam/card.json").read_bytes() == card
    assert json.loads((aside / "library.json").read_text())["personas"]
    assert done.left == 2  # the run's records are newer than the backup
    assert "more" in (full_home.run("tam-lora-1") / "events.jsonl").read_text()
    assert (full_home.variant("tam-lora-1") / "weights" / "adapter_model.safetensors").read_bytes() == b"still here"
    assert not list(full_home.root.glob(".restore-*"))


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """The backup with its files changed, and a manifest that is left as it is."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            made = change(name, old.read(name))
            if made is not None:
                new.writestr(*made)
    return target


def manifest_with(path: str, **fields: Any) -> Callable[[str, bytes], tuple[str, bytes]]:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if name == backup.MANIFEST:
            document = json.loads(content)
            document["files"][path] = {"bytes": 1, "sha256": "0" * 64}
            return name, json.dumps(document | fields).encode()
        return name, content

    return change


def test_a_backup_that_was_changed_is_refused_and_nothing_happens(
    full_home: Home, other: Engine, tmp_path: Path
) -> None:
    good = tmp_path / "b.zip"
    backup.back_up(full_home, good)
    assert backup.check(good).personas == 1
    card = "personas/tam/card.json"
    cases: dict[str, Callable[[str, bytes], tuple[str, bytes] | None]] = {
        "was changed since": lambda n, c: (n, c + b" ") if n == card else (n, c),
        "is missing": lambda n, c: None if n == card else (n, c),
        "which it does not name": lambda n, c: (n, c) if n != backup.LIBRARY else ("personas/tam/extra.json", c),
        "no place of ours": manifest_with("personas/../../evil"),
        "place of ours": manifest_with("plugins/evil.py"),
        "newer Persona Lab": manifest_with("personas/x/card.json", version=99),
    }
    for number, (told, change) in enumerate(cases.items()):
        bad = rewritten(good, tmp_path / f"bad-{number}.zip", change)
        if told == "which it does not name":
            told = "is missing|which it does not name"
        with pytest.raises(BadInput, match=told):
            other.restore(bad)
    (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "flipped.zip").write_bytes(good.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05", 1))
    for name in ("cut.zip", "flipped.zip", "none.zip"):
        with pytest.raises(BadInput):
            other.restore(tmp_path / name)
    assert [persona.id for persona in other.personas() if persona.installed] == []
    assert not list(other.home.root.glob(".restore-*"))
    assert not list(other.home.root.glob("personas/*"))


def test_a_bomb_unpacks_no_further_than_it_says(full_home: Home, other: Engine, tmp_path: Path) -> None:
    good = tmp_path / "b.zip"
    backup.back_up(full_home, good)
    bomb = rewritten(
        good, tmp_path / "bomb.zip", lambda n, c: (n, b"0" * 50_000_000) if n.endswith("card.json") else (n, c)
    )
    with pytest.raises(BadInput, match="was changed"):
        other.restore(bomb)


def test_too_little_room_is_said_before_anything_is_written(
    full_home: Home, other: Engine, tmp_path: Path, monkeypatch: Any
) -> None:
    backup.back_up(full_home, tmp_path / "b.zip")
    monkeypatch.setattr("persona_lab.home.free_disk", lambda folder: 1000)
    with pytest.raises(DiskFull, match="MB are needed"):
        other.restore(tmp_path / "b.zip")
    assert not list(other.home.root.glob("personas/*"))


def test_a_home_that_lost_everything_comes_back(full_home: Home, tmp_path: Path) -> None:
    backup.back_up(full_home, tmp_path / "b.zip", weights=True)
    shutil.rmtree(full_home.root)
    with Engine.open(full_home.root) as engine:
        engine.restore(tmp_path / "b.zip")
        assert [variant.id for variant in engine.variants()] == ["tam-lora-1"]
        assert len(engine.votes.all("tam")) == 1
