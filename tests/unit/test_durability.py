"""What is written stays whole and is found again: checkpoints, runs with damaged files, clocks that are set back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock

from persona_lab import formats, home, jobs, processes
from persona_lab.catalog import Catalog, newest_first, read_variant
from persona_lab.checkup.looking import checkpoint_damage
from persona_lab.errors import DiskFull
from persona_lab.events import EventLog, Failed, Started, read_events
from persona_lab.formats import Format, NewerFormat, upgrade, upgraded, written
from persona_lab.home import Home, need_disk, write_atomic
from persona_lab.jobs import EXIT_TAKEN, Supervisor, cheaper, read_job, view, worker_process
from persona_lab.library import Library
from persona_lab.models.weights import folder_bytes
from persona_lab.processes import birth
from persona_lab.training import checkpoints
from persona_lab.training.checkpoints import CheckpointStore
from persona_lab.types import DatasetSummary, Job, Variant

TENSORS = {"weight.a": torch.arange(64.0)}


def store(folder: Path, **signature: Any) -> CheckpointStore:
    return CheckpointStore(folder / "lora", {"seed": 1} | signature)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "lora").iterdir())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)


def make_job(at: Home, run_id: str = "tam-lora-1", **fields: Any) -> Path:
    folder = at.run(run_id)
    folder.mkdir(parents=True)
    job = Job(id=run_id, kind="train", name="Tam", home=str(at.root), created="2026-01-01T00:00:00", **fields)
    write_atomic(folder / "job.json", job.model_dump_json())
    return folder


# --- checkpoints ----------------------------------------------------------------------------------


def test_rotation_keeps_two_and_never_the_damaged_ones_in_place_of_whole_ones(tmp_path: Path) -> None:
    first = store(tmp_path)
    for step in (10, 20, 30):
        first.write(step, {"step": step}, TENSORS, TENSORS)
    assert names(tmp_path) == ["step-000020", "step-000030"]
    damage(tmp_path / "lora/step-000030/state.safetensors")
    assert checkpoint_damage(tmp_path / "lora/step-000030", deep=False) == ""
    assert checkpoint_damage(tmp_path / "lora/step-000030", deep=True) == "state.safetensors is not what was written."

    resumed = store(tmp_path)
    saved = resumed.newest()
    assert saved is not None
    assert saved.state == {"step": 20}
    assert "step-000030 is damaged" in resumed.passed_over[0]
    # the damaged one is of a later step: by names alone, rotation would keep it and delete what can be gone on from
    resumed.write(25, {"step": 25}, TENSORS, TENSORS)
    assert names(tmp_path) == ["step-000020", "step-000025"]


def test_a_whole_checkpoint_outlives_newer_damaged_ones_at_every_write(tmp_path: Path) -> None:
    store(tmp_path).write(10, {"step": 10}, TENSORS, TENSORS)
    for step in (20, 30):
        store(tmp_path).write(step, {"step": step}, TENSORS, TENSORS)
        damage(tmp_path / f"lora/step-{step:06d}/state.safetensors")
    saved = store(tmp_path).newest()
    assert saved is not None
    assert saved.state == {"step": 10}


def test_a_full_disk_costs_a_checkpoint_and_none_that_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    kept = store(tmp_path)
    kept.write(10, {"step": 10}, TENSORS, TENSORS)
    monkeypatch.setattr(home, "free_disk", lambda folder: checkpoints.RESERVE_BYTES)
    with pytest.raises(DiskFull, match="17 MB are free"):
        kept.write(20, {"step": 20}, TENSORS, TENSORS)
    assert names(tmp_path) == ["step-000010"]
    assert store(tmp_path).newest() is not None


def test_where_two_checkpoints_fit_and_no_third_the_older_one_makes_room(tmp_path: Path, monkeypatch: Any) -> None:
    """A disk with room for two: what plans count."""
    folder = tmp_path / "lora"
    written = store(tmp_path)
    written.write(10, {"step": 10}, TENSORS, TENSORS)
    one = folder_bytes(folder)

    def with_room_for(size: int) -> None:
        space = checkpoints.RESERVE_BYTES + size
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=space - folder_bytes(folder)))

    with_room_for(2 * one)
    for step in (20, 30):
        written.write(step, {"step": step}, TENSORS, TENSORS)
        assert names(tmp_path) == [f"step-{step - 10:06d}", f"step-{step:06d}"]
    # after an interruption nobody knows yet which are whole
    damage(folder / "step-000030/state.safetensors")
    resumed = store(tmp_path)
    resumed.write(25, {"step": 25}, TENSORS, TENSORS)
    assert names(tmp_path) == ["step-000020", "step-000025"]
    with_room_for(one)
    with pytest.raises(DiskFull):
        resumed.write(35, {"step": 35}, TENSORS, TENSORS)
    assert names(tmp_path) == ["step-000020", "step-000025"], "dropping one would not have been enough"


def test_checkpoints_of_other_settings_or_formats_are_named_and_left_alone(tmp_path: Path) -> None:
    store(tmp_path).write(10, {"step": 10}, TENSORS, TENSORS)
    other = store(tmp_path, seed=2)
    assert other.newest() is None
    assert "other settings" in other.passed_over[0]
    marker = tmp_path / "lora/step-000010/valid.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format": 99}))
    assert store(tmp_path).newest() is None
    assert names(tmp_path) == ["step-000010"]


def test_room_is_asked_for_by_name(tmp_path: Path) -> None:
    need_disk(tmp_path / "not" / "there", 1)
    with pytest.raises(DiskFull, match="MB are free"):
        need_disk(tmp_path, 1 << 60)


# --- runs -----------------------------------------------------------------------------------------


def started(**fields: Any) -> Started:
    own = psutil.Process()
    return Started(pid=own.pid, created=own.create_time(), **fields)


def die(folder: Path) -> None:
    """As if the run's worker had begun and was gone."""
    log = EventLog(folder / "events.jsonl")
    log.append(started(birth="gone:1"))
    log.close()


def test_a_clock_that_is_set_does_not_make_a_living_worker_dead() -> None:
    born = processes.birth(psutil.Process())
    # an hour between what was noted then and what the clock says now
    jumped = started(birth=born).model_copy(update={"created": psutil.Process().create_time() - 3600})
    assert worker_process(jumped) is not None
    assert worker_process(jumped.model_copy(update={"birth": "another boot:1"})) is None
    assert worker_process(jumped.model_copy(update={"birth": ""})) is None  # all that older records say


def test_damaged_files_of_one_run_hide_no_other(home: Home) -> None:
    make_job(home, "good")
    broken = make_job(home, "broken")
    (broken / "job.json").write_text('{"id": "bro')
    odd = make_job(home, "odd")
    die(odd)
    (odd / "exit.json").write_text('{"returnco')
    assert view(odd).status == "interrupted"
    supervisor = Supervisor(home)
    supervisor._ensure_thread = lambda: None  # type: ignore[method-assign]
    supervisor.adopt()
    assert supervisor.queued() == ["good"]
    library = Library(home)
    Catalog(home, library).recover()
    library.close()


def test_every_interrupted_run_can_be_resumed(home: Home) -> None:
    folder = make_job(home, "tam-eval-1")
    job = read_job(folder)
    write_atomic(folder / "job.json", job.model_copy(update={"kind": "evaluate"}).model_dump_json())
    die(folder)
    run = view(folder)
    assert (run.status, run.resumable) == ("interrupted", True)
    assert "persona-lab runs resume tam-eval-1" in run.fix


def test_memory_that_ran_out_is_named_with_what_would_fit(home: Home) -> None:
    folder = make_job(home)
    die(folder)
    killed = {"returncode": -9, "oom": True}
    run = view(folder, killed)
    assert (run.status, run.cause) == ("failed", "out_of_memory")
    assert "smaller batch_size" in run.fix
    (folder / jobs.CHEAPER).write_text(json.dumps({"told": "What would fit: --set batch_size=1."}))
    assert view(folder, killed).fix == cheaper(folder) == "What would fit: --set batch_size=1."
    from persona_lab.worker import describe

    inside = describe(MemoryError(), read_job(folder))
    assert isinstance(inside, Failed)
    assert (inside.cause, inside.fix) == ("out_of_memory", "What would fit: --set batch_size=1.")
    cuda = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert describe(cuda, read_job(folder)).fix == "What would fit: --set batch_size=1."


def test_a_kill_is_put_down_to_memory_only_where_the_kernel_counted_one(home: Home, tmp_path: Path) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom 3\noom_kill 2\n")
    for run_id, kills, code, memory in (("a", 1, 9, True), ("b", 2, 9, False), ("c", 1, 15, False)):
        folder = make_job(home, run_id)
        log = EventLog(folder / "events.jsonl")
        log.append(started(birth="gone:1", oom_kills=kills, oom_source=str(counter)))
        log.close()
        supervisor = Supervisor(home)
        ended = subprocess.Popen([sys.executable, "-c", f"import os; os.kill(os.getpid(), {code})"])
        ended.wait()
        supervisor._process = ended
        supervisor._record_exit(run_id)
        assert json.loads((folder / "exit.json").read_text())["oom"] is memory
        assert view(folder).cause == ("out_of_memory" if memory else "interrupted")
    assert processes.oom_kills("") == 0
    assert processes.oom_kills(str(tmp_path / "none")) == 0


def test_one_run_has_one_worker(home: Home) -> None:
    folder = make_job(home)
    with FileLock(folder / ".worker.lock"):
        code = (
            "import persona_lab.worker as w, sys, pathlib\n"
            "w.LOCK_SECONDS = 0.1; sys.exit(w.main(pathlib.Path(sys.argv[1])))"
        )
        second = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert second.returncode == EXIT_TAKEN, second.stderr
    assert not (folder / "events.jsonl").exists()


def test_a_worker_that_had_not_spoken_when_its_page_was_killed_is_the_only_one(home: Home, tiny_model: Path) -> None:
    folder = make_job(home, "fetch-1", base=str(tiny_model))
    write_atomic(folder / "job.json", read_job(folder).model_copy(update={"kind": "fetch"}).model_dump_json())
    command = [sys.executable, "-P", "-m", "persona_lab.worker", str(folder), "0"]
    ended = threading.Event()
    # the page that was killed had started a worker, which comes to its end before this page's worker has its turn
    supervisor = Supervisor(
        home,
        on_end=lambda run_id: ended.set(),
        before_start=lambda: subprocess.run(command, check=True, capture_output=True),
    )
    try:
        supervisor.adopt()
        assert ended.wait(60)
    finally:
        supervisor.close()
    kinds = [event.kind for event in read_events(folder / "events.jsonl")[0]]
    assert kinds.count("started") == kinds.count("done") == 1
    assert supervisor.view("fetch-1").status == "done"


def test_a_page_whose_worker_gave_up_watches_the_one_at_work(home: Home) -> None:
    folder = make_job(home)
    supervisor, over = Supervisor(home, on_end=lambda run_id: over.append(run_id)), list[str]()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        process = psutil.Process(other.pid)
        log = EventLog(folder / "events.jsonl")
        log.append(Started(pid=other.pid, created=process.create_time(), birth=birth(process)))
        log.close()
        supervisor._current = folder.name
        supervisor._process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({EXIT_TAKEN})"])
        supervisor._process.wait()
        for _ in range(3):
            supervisor._watch()
        assert (supervisor.busy(), over, view(folder).status) == (folder.name, [], "running")
        other.communicate(b"\n")
    supervisor._watch()
    assert (supervisor.busy(), over, view(folder).status) == (None, [folder.name], "interrupted")


def test_a_moved_home_finds_its_own_files(home: Home, tmp_path: Path) -> None:
    folder = make_job(home, dataset=str(home.persona("tam") / "datasets/tam-v1.jsonl"), out="/elsewhere")
    moved = Home.resolve(tmp_path / "moved")
    os.rename(home.root / "runs", moved.root / "runs")
    job = read_job(moved.run(folder.name))
    assert job.home == str(moved.root)
    assert job.dataset == str(moved.persona("tam") / "datasets/tam-v1.jsonl")
    assert job.out == "/elsewhere"
    variant = Variant(id="v", name="v", persona="tam", base="b", strategy="lora", kind="adapter", path="/old/weights")
    write_atomic(moved.variant("v") / "variant.json", variant.model_dump_json())
    assert read_variant(moved.variant("v")).path == str(moved.variant("v") / "weights")


# --- time -----------------------------------------------------------------------------------------


def summary(persona: str, version: int, created: str) -> DatasetSummary:
    fields = {"id": f"{persona}-v{version}", "persona": persona, "version": version, "name": "x", "created": created}
    known = {name: value for name, value in fields.items() if name in DatasetSummary.model_fields}
    return DatasetSummary.model_validate(
        {"source": "x", "format": "x", "why": "", "counts": {}, "fingerprint": ""} | known
    )


def test_the_newest_data_is_the_last_version_whatever_the_clock_said() -> None:
    found = [summary("a", 1, "2026-05-01"), summary("a", 2, "2026-01-01"), summary("b", 1, "2026-03-01")]
    assert [s.id for s in newest_first(found)] == ["a-v2", "a-v1", "b-v1"]


# --- formats --------------------------------------------------------------------------------------


def test_past_formats_are_led_up_step_by_step_and_newer_ones_refused(monkeypatch: Any) -> None:
    steps = {1: lambda d: d | {"name": d.pop("called")}, 2: lambda d: d | {"seed": d["seed"] + 1}}
    monkeypatch.setitem(formats.FORMATS, "variant", Format(3, steps))
    variant = Variant(id="v", name="v", persona="tam", base="b", strategy="lora", kind="adapter", seed=2)
    first = json.loads(variant.model_dump_json()) | {"called": "v", "seed": 1}
    del first["name"]
    assert upgraded("variant", json.dumps(first), Variant) == variant
    second = json.loads(variant.model_dump_json()) | {"schema": 2, "seed": 1}
    assert upgraded("variant", json.dumps(second), Variant) == variant
    text = written("variant", variant)
    assert json.loads(text)["schema"] == 3
    assert upgraded("variant", text, Variant) == variant
    with pytest.raises(NewerFormat, match="update Persona Lab"):
        upgrade("variant", {"schema": 4})
    for nonsense in ("2", True, 0, None):
        with pytest.raises(ValueError, match="no version"):
            upgrade("variant", {"schema": nonsense})


def test_every_format_has_a_step_from_every_past_version() -> None:
    for kind, known in formats.FORMATS.items():
        assert set(known.steps) == set(range(1, known.current)), kind


# --- writing --------------------------------------------------------------------------------------


def test_a_kill_while_writing_leaves_the_old_or_the_new_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    code = (
        "import sys; from pathlib import Path; from persona_lab.home import write_atomic\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1; write_atomic(Path(sys.argv[1]), str(number % 10) * 300_000)\n"
    )
    for pause in (0.02, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", code, str(target)])
        while not target.exists():
            time.sleep(0.01)
        time.sleep(pause)
        process.kill()
        process.wait()
        content = target.read_text()
        assert len(content) == 300_000
        assert len(set(content)) == 1
        target.unlink()


def test_a_training_that_memory_was_not_enough_for_is_started_again_with_the_cheapest_change(home: Home) -> None:
    from persona_lab.errors import BadInput
    from persona_lab.parts.queueing import Queueing
    from persona_lab.testing import made_up_persona
    from persona_lab.types import Change

    config = {"batch_size": 4, "epochs": 2.0}
    folder = make_job(home, strategy="full", persona=made_up_persona(), config=config, seed=3, dataset_id="d")
    die(folder)
    (folder / "exit.json").write_text(json.dumps({"returncode": -9, "oom": True}))
    started_with: list[Any] = []

    class Recorded(Queueing):
        """The part as it is, on an engine of which only what it uses is there."""

        def run(self, run_id: str) -> Any:
            return view(home.run(run_id))

        def train(self, *given: Any, **named: Any) -> str:
            started_with.append((given, named))
            return "next"

    Recorded.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    part = Recorded()  # type: ignore[abstract]
    part.home = home
    with pytest.raises(BadInput, match="Nothing is known"):
        part.retry_smaller(folder.name)
    change = Change(set={"batch_size": 1}, strategy="full", peak_memory_bytes=1, seconds=1.0)
    note = {"strategy": "full", "changes": [change.model_dump()], "told": "What would fit: --set batch_size=1."}
    (folder / jobs.CHEAPER).write_text(json.dumps(note))
    assert view(folder).fix.endswith("persona-lab runs retry tam-lora-1.")
    assert part.smaller(folder.name) == change
    assert part.retry_smaller(folder.name) == "next"
    given, named = started_with[0]
    assert given[1:] == ("full", "starter", {"batch_size": 1, "epochs": 2.0})
    assert (named["seed"], named["dataset_id"]) == (3, "d")
