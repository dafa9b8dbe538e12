"""The doctor names what is damaged, puts it aside and never away, and puts right what can be."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from persona_lab import checkup
from persona_lab.checkup import Finding
from persona_lab.engine import Engine
from persona_lab.errors import HomeLocked
from persona_lab.home import Home

PAST = Path(__file__).parents[1] / "past_homes"


@pytest.fixture
def whole(home: Home) -> Home:
    """A home with a persona, data, two finished runs and their variants, a vote, a conversation and settings."""
    shutil.copytree(sorted(PAST.iterdir())[-1], home.root, dirs_exist_ok=True)
    with Engine.open(home.root) as engine:
        persona = engine.persona("tam")
        data = persona.card["data"] | {"description": "A mender of bells."}
        engine.save_persona(persona.model_copy(update={"card": persona.card | {"data": data}}))
        assert engine.votes.all()
    assert checkup.examine(home, deep=True) == []
    return home


def everything(home: Home) -> int:
    """Bytes of all files: what is put aside is still there."""
    return sum(path.stat().st_size for path in home.root.rglob("*") if path.is_file())


def listing(home: Home) -> dict[str, bytes]:
    return {p.relative_to(home.root).as_posix(): p.read_bytes() for p in home.root.rglob("*") if p.is_file()}


def fix(home: Home, deep: bool = False) -> list[Finding]:
    """Look twice without a change, repair, and look once more: all that can be mended must be."""
    before = listing(home)
    named = checkup.examine(home, deep)
    left = listing(home)
    left.pop("library.lock", None)
    before.pop("library.lock", None)
    assert left == before
    done = checkup.repair(home, deep)
    assert {f.path for f in named} <= {f.path for f in done}
    assert all(f.done for f in done if f.mendable)
    assert [f for f in checkup.examine(home, deep) if f.mendable] == []
    return done


def test_a_damaged_library_is_put_aside_and_made_again(whole: Home) -> None:
    for content in (
        '{"personas": {"1": {"id": "ta',
        "[]",
        "",
        '{"personas": {"1": 5}}',
        '{"personas": {"x": {"id": "a"}}}',
    ):
        whole.library.write_text(content)
        whole.library.with_suffix(".backup.json").write_text("also damaged")
        if content:  # an empty file is an empty library, which the files fill
            assert [f.kind for f in checkup.examine(whole)] == ["library"]
        done = checkup.repair(whole)
        assert not content or ("put aside" in done[0].done and done[0].kind == "library")
        with Engine.open(whole.root) as engine:
            assert [p.id for p in engine.personas() if p.installed] == ["tam"]
            assert len(engine.variants()) == 2
            assert len(engine.datasets()) == 1
            assert len(engine.votes.all()) == 1
            assert len(engine.library.all("votes")) == 1
    aside = [path.read_text() for path in (whole.root / "quarantine").rglob("library.json")]
    assert '{"personas": {"1": {"id": "ta' in aside


def test_the_backup_of_the_last_start_is_preferred(whole: Home) -> None:
    with Engine.open(whole.root) as engine:
        engine.library.put("runs", {"id": "only-in-rows", "kind": "train"})
    Engine.open(whole.root).close()
    whole.library.write_text("{")
    assert "backup of the last start" in checkup.repair(whole)[0].done
    with Engine.open(whole.root) as engine:
        assert engine.library.get("runs", "only-in-rows") is not None


def test_a_newer_library_is_left_alone(whole: Home) -> None:
    newer = json.dumps({"meta": {"1": {"schema": 99}}})
    whole.library.write_text(newer)
    done = checkup.repair(whole)
    assert (done[0].mendable, done[0].done) == (False, "")
    assert whole.library.read_text() == newer


NEWER = (
    "runs/tam-lora-1/job.json", "variants/tam-lora-1/variant.json", "personas/tam/datasets/tam-v1.summary.json",
    "settings.json",
)  # fmt: skip


@pytest.mark.parametrize("name", NEWER)
def test_what_a_newer_version_wrote_is_named_and_left_alone(whole: Home, name: str) -> None:
    path = whole.root / name
    newer = json.dumps({**json.loads(path.read_bytes()), "schema": 99})
    path.write_text(newer)
    found = [
        finding for finding in checkup.repair(whole, deep=True) if finding.path in (name, Path(name).parent.as_posix())
    ]
    assert [(finding.mendable, finding.done) for finding in found] == [(False, "")]
    assert "newer" in found[0].what
    assert "Update Persona Lab" in found[0].remedy
    assert path.read_text() == newer


def test_a_newer_dataset_is_left_alone(whole: Home) -> None:
    path = whole.root / "personas/tam/datasets/tam-v1.jsonl"
    first, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps({**json.loads(first), "schema": 99}) + "\n" + rest)
    before = path.read_bytes()
    found = [finding for finding in checkup.repair(whole, deep=True) if finding.path.endswith("tam-v1.jsonl")]
    assert [finding.mendable for finding in found] == [False], found
    assert path.read_bytes() == before


def test_a_home_in_use_is_looked_at_and_not_repaired(whole: Home) -> None:
    with Engine.open(whole.root):
        assert checkup.examine(whole) == []
        with pytest.raises(HomeLocked, match="not repaired"):
            checkup.repair(whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wreck_line(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[len(lines) // 2] = b"\x00\xff garbage"
    path.write_bytes(b"\n".join(lines))


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "personas/tam/card.json": (cut, "persona", "version before"),
    "personas/tam/held_out.jsonl": (wreck_line, "persona", "whole lines were kept"),
    "personas/tam/datasets/tam-v1.jsonl": (cut, "dataset", "put aside"),
    "personas/tam/datasets/tam-v1.summary.json": (cut, "dataset", "written again from the library"),
    "runs/tam-lora-1/job.json": (cut, "run", "put aside"),
    "runs/tam-lora-1/events.jsonl": (wreck_line, "run", "whole lines were kept"),
    "runs/tam-lora-1/exit.json": (cut, "run", "put aside"),
    "variants/tam-lora-1/variant.json": (cut, "variant", "written again from the records of its run"),
    "settings.json": (cut, "settings", "put aside"),
    "queue.json": (lambda path: path.write_text("[{"), "settings", "put aside"),
    "votes/*.json": (cut, "vote", "put aside"),
    "chats/*.json": (cut, "conversation", "put aside"),
}


@pytest.mark.parametrize("pattern", DAMAGE)
def test_what_is_damaged_is_named_put_aside_and_mended(whole: Home, pattern: str) -> None:
    wreck, kind, done = DAMAGE[pattern]
    path = next(whole.root.glob(pattern))
    wreck(path)
    damaged = path.read_bytes()
    found = fix(whole)
    mine = [
        f for f in found if f.kind == kind and f.path in (path.relative_to(whole.root).as_posix(), "runs/tam-lora-1")
    ]
    assert mine, found
    assert done in mine[0].done
    assert damaged in [p.read_bytes() for p in (whole.root / "quarantine").rglob("*") if p.is_file()]
    with Engine.open(whole.root) as engine:  # whatever it was, the others are all there
        assert [p.id for p in engine.personas() if p.installed] == ["tam"]
        assert len(engine.variants()) == 2
        engine.runs(), engine.datasets(), engine.reports()
    if kind == "persona" and "card" in pattern:
        assert json.loads(path.read_bytes())["data"]["description"] == "A mender of clocks."


@pytest.mark.parametrize("pattern", DAMAGE)
def test_damage_does_not_keep_the_home_from_opening(whole: Home, pattern: str) -> None:
    path = next(whole.root.glob(pattern))
    DAMAGE[pattern][0](path)
    with Engine.open(whole.root) as engine:
        engine.personas(), engine.runs(), engine.variants(), engine.votes.all(), engine.chats.all("me")


@pytest.mark.parametrize("how", [cut, Path.unlink], ids=["cut", "gone"])
def test_a_variant_that_cannot_be_read_hides_no_run(whole: Home, how: Callable[[Path], None]) -> None:
    with Engine.open(whole.root) as engine:
        before = [(run.id, run.status) for run in engine.runs()]
    assert ("tam-lora-1", "done") in before
    how(whole.variant("tam-lora-1") / "variant.json")
    with Engine.open(whole.root) as engine:
        assert [(run.id, run.status) for run in engine.runs()] == before
        assert engine.run("tam-lora-1").variant == ""
        assert engine.wait("tam-lora-1").status == "done"


def test_weights_are_compared_on_request_with_what_training_wrote(whole: Home) -> None:
    weights = whole.variant("tam-lora-1") / "weights"
    tensors = weights / "adapter_model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    assert checkup.examine(whole) == []
    found = checkup.examine(whole, deep=True)
    assert [(f.kind, f.path, f.mendable) for f in found] == [("variant", "variants/tam-lora-1/weights", False)]
    assert "seed 1" in found[0].remedy
    (weights.parent / "checksums.json").write_text(json.dumps({"adapter_config.json": "0" * 64}))
    assert "adapter_config.json is not what was written" in checkup.examine(whole, deep=True)[0].what
    shutil.rmtree(weights)
    assert checkup.examine(whole)[0].what == "Its weights are gone."


def test_a_log_that_is_cut_off_is_named(whole: Home) -> None:
    for wreck in (cut, lambda path: path.write_bytes(b"")):
        wreck(whole.run("tam-lora-1") / "events.jsonl")
        found = checkup.examine(whole)
        assert [(f.kind, f.path, f.mendable) for f in found] == [("run", "runs/tam-lora-1/events.jsonl", False)]
        with Engine.open(whole.root) as engine:
            assert len(engine.variants()) == 2


def test_rows_without_files_are_kept_aside(whole: Home) -> None:
    shutil.rmtree(whole.variant("tam-prompt-1"))
    done = fix(whole)
    assert [f.path for f in done] == ["variants row tam-prompt-1"]
    kept = next((whole.root / "quarantine").rglob("tam-prompt-1.json"))
    assert json.loads(kept.read_text())["strategy"] == "prompt"
    with Engine.open(whole.root) as engine:
        assert [v.strategy for v in engine.variants()] == ["lora"]


def test_leftovers_runs_without_a_job_checkpoints_and_models(whole: Home) -> None:
    old = time.time() - 3600
    (whole.root / "votes/.a.json.x.tmp").write_text("half")
    (whole.run("begun")).mkdir()
    checkpoint = whole.run("tam-lora-1") / "checkpoints/lora/step-000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "valid.json").write_text('{"signature": "x", "files": {"state.safetensors": "0"}}')
    half = whole.model("half")
    half.mkdir(parents=True)
    whole.score_cache.parent.mkdir(exist_ok=True)
    whole.score_cache.write_bytes(b"SQLite format 3\x00" + b"nonsense" * 500)
    fresh = whole.root / "votes/.b.json.x.tmp"
    fresh.write_text("being written now")
    os.utime(whole.root / "votes/.a.json.x.tmp", (old, old))
    before = everything(whole)
    done = {f.path: f for f in fix(whole)}
    assert set(done) == {
        "votes/.a.json.x.tmp", "runs/begun", "runs/tam-lora-1/checkpoints/lora/step-000010", "models/half",
        "cache/scores.sqlite",
    }  # fmt: skip
    assert fresh.exists()
    assert everything(whole) >= before
    notes = json.loads(next((whole.root / "quarantine").rglob("notes.json")).read_text())
    assert {note["path"] for note in notes} == set(done)


def test_a_whole_score_cache_is_left_alone(whole: Home) -> None:
    whole.score_cache.parent.mkdir(exist_ok=True)
    with sqlite3.connect(whole.score_cache) as connection:
        connection.execute("CREATE TABLE scores (key TEXT)")
    connection.close()
    assert checkup.examine(whole, deep=True) == []
