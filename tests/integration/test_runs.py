"""Runs in real workers: done, cancelled, killed, resumed, queued, found again after the page was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from persona_lab.engine import Engine
from persona_lab.errors import BadInput, BadSetting, UnknownName
from persona_lab.events import Step
from persona_lab.home import Home

DEADLINE = 90


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {DEADLINE} s: {what}")


def worker_pid(engine: Engine, run_id: str) -> int:
    return [event.pid for event in engine.events(run_id)[0] if event.kind == "started"][-1]


def steps(engine: Engine, run_id: str) -> list[int]:
    return [event.step for event in engine.events(run_id)[0] if isinstance(event, Step)]


def test_a_run_becomes_a_variant(engine: Engine, tiny_model: Path) -> None:
    run_id = engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 3}, name="Tick")
    run = engine.wait(run_id)
    assert run.status == "done", run.message
    variant = engine.variant("Tick")
    assert variant.id == run.variant
    assert (variant.strategy, variant.kind, variant.persona) == ("slow", "prompt", "tam")
    engine.delete_variant(variant.id)
    assert engine.variants() == []
    assert engine.undo_delete() == variant.id
    assert engine.variants() == [variant]


def test_cancel_stops_at_the_next_step_and_resume_finishes(engine: Engine, tiny_model: Path) -> None:
    run_id = engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 60})
    wait_for(lambda: len(steps(engine, run_id)) > 3, "steps")
    assert engine.run(run_id).eta_seconds is not None
    engine.stop(run_id)
    run = engine.wait(run_id)
    assert (run.status, run.resumable) == ("cancelled", True)
    assert engine.variants() == []
    engine.resume(run_id)
    run = engine.wait(run_id)
    assert (run.status, run.attempt) == ("done", 2)
    assert len(engine.variants()) == 1


def test_a_worker_that_does_not_listen_is_ended_by_force(engine: Engine, tiny_model: Path) -> None:
    from persona_lab.jobs import stop_worker

    run_id = engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 2000, "deaf": True})
    wait_for(lambda: engine.run(run_id).phase == "Counting", "the worker to count")
    stop_worker(engine.home.run(run_id), grace=0.5)
    assert engine.wait(run_id).status == "cancelled"


def test_kill_9_of_the_worker_is_interrupted_and_can_be_resumed(engine: Engine, tiny_model: Path) -> None:
    run_id = engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 100})
    wait_for(lambda: len(steps(engine, run_id)) > 3, "steps")
    os.kill(worker_pid(engine, run_id), signal.SIGKILL)
    run = engine.wait(run_id)
    assert (run.status, run.resumable) == ("interrupted", True)
    assert "resume" in run.fix
    with Engine.open(engine.home.root, readonly=True) as reader:  # another process, after a restart, says the same
        assert reader.run(run_id).status == "interrupted"
    engine.resume(run_id)
    assert engine.wait(run_id).status == "done"


def test_kill_9_of_the_page_leaves_the_run_to_be_found_with_its_whole_curve(ready_home: Home, tiny_model: Path) -> None:
    code = f"""
import time
from persona_lab.engine import Engine
engine = Engine.open({str(ready_home.root)!r})
print(engine.train("tam", "slow", base={str(tiny_model)!r}, settings={{"steps": 120}}), flush=True)
print(engine.train("tam", "slow", base={str(tiny_model)!r}, settings={{"steps": 2}}), flush=True)
time.sleep(600)
"""
    page = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert page.stdout is not None
    running, queued = page.stdout.readline().strip(), page.stdout.readline().strip()
    try:
        with Engine.open(ready_home.root, readonly=True) as reader:
            wait_for(lambda: len(steps(reader, running)) > 3, "steps")
            before = steps(reader, running)
    finally:
        page.kill()
        page.wait()
        page.stdout.close()
    with Engine.open(ready_home.root) as restarted:
        assert restarted.run(running).status == "running"
        assert restarted.run(queued).status == "queued"
        assert restarted.wait(running).status == "done"
        after = steps(restarted, running)
        assert after[: len(before)] == before
        assert after == sorted(after)
        assert after[-1] == 120
        assert restarted.wait(queued).status == "done"
        assert {v.run for v in restarted.variants()} == {running, queued}


def test_a_run_that_finished_while_no_page_was_there_becomes_a_variant(ready_home: Home, tiny_model: Path) -> None:
    with Engine.open(ready_home.root) as engine:
        run_id = engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 30})
        wait_for(lambda: len(steps(engine, run_id)) > 1, "steps")
        pid = worker_pid(engine, run_id)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "the end")
    with Engine.open(ready_home.root) as engine:
        assert [variant.run for variant in engine.variants()] == [run_id]


def test_a_plugin_that_raises_in_train_fails_alone(ready_home: Home, tiny_model: Path) -> None:
    source = (Path(__file__).parents[1] / "example_plugin/src/persona_lab_example/raises.py").read_text()
    (ready_home.plugins / "raises.py").write_text(source)
    with Engine.open(ready_home.root) as engine:
        run = engine.wait(engine.train("tam", "explodes", base=str(tiny_model)))
        assert (run.status, run.cause) == ("failed", "plugin")
        assert "ZeroDivisionError: the fuse was too short" in run.message
        assert "'explodes'" in run.message
        failed = engine.events(run.id)[0][-1]
        assert "Traceback" in failed.details
        # its observer raises too: reported once, and the next run goes on
        assert any("persona_lab_run_event" in info.problem for info in engine.plugin_infos())
        assert engine.wait(engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 2})).status == "done"


def test_what_cannot_work_is_refused_before_anything_starts(engine: Engine, tiny_model: Path) -> None:
    with pytest.raises(UnknownName, match="lora"):
        engine.train("tam", "lorra")
    with pytest.raises(BadSetting, match="did you mean 'steps'"):
        engine.train("tam", "slow", settings={"stepps": 3})
    with pytest.raises(UnknownName, match="tam"):
        engine.train("tom", "slow")
    with pytest.raises(BadInput, match="cannot be resumed"):
        engine.resume(engine.wait(engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 1})).id)
    assert len(engine.runs()) == 1


def test_a_library_put_back_from_an_old_backup_loses_nothing(ready_home: Home, tiny_model: Path) -> None:
    with Engine.open(ready_home.root) as engine:
        run_id = engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 1})
        engine.wait(run_id)
    ready_home.library.write_text(json.dumps({"meta": {"1": {"schema": 1}}}))
    with Engine.open(ready_home.root) as engine:
        assert [persona.id for persona in engine.personas() if persona.installed] == ["tam"]
        assert [dataset.id for dataset in engine.datasets()] == ["tam-v1"]
        assert [variant.run for variant in engine.variants()] == [run_id]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A tmpfs of 3 MB; needs the right to mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="uses a Linux tmpfs")
def test_a_full_disk_is_named_and_leaves_the_library_whole(
    small_disk: Path, ready_home: Home, cli, tiny_model: Path
) -> None:
    import shutil

    # the embedding model alone would fill it
    shutil.copytree(ready_home.root, small_disk / "home", dirs_exist_ok=True, ignore=shutil.ignore_patterns("models"))
    home = small_disk / "home"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    (small_disk / "ballast").write_bytes(b"x" * (free - 8192))
    before = (home / "library.json").read_text()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more").write_bytes(b"x" * 65536)
    (small_disk / "more").unlink()
    (small_disk / "ballast2").write_bytes(b"x" * 4096)
    arguments = ("train", "--persona", "tam", "--strategy", "lora", "--base", str(tiny_model), "--set", "max_tokens=64")
    result = cli(*arguments, home_folder=home)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "disk" in result.stderr.lower()
    assert "Traceback" not in result.stderr
    assert json.loads((home / "library.json").read_text())
    after = json.loads((home / "library.json").read_text())
    assert after["personas"] == json.loads(before)["personas"]
    (small_disk / "ballast").unlink()
    (small_disk / "ballast2").unlink()
    again = cli(
        "train",
        "--persona",
        "tam",
        "--strategy",
        "slow",
        "--set",
        "steps=1",
        "--base",
        str(tiny_model),
        home_folder=home,
    )
    assert again.returncode == 0, again.stderr


def test_a_killed_training_goes_on_from_its_last_checkpoint(engine: Engine, tiny_model: Path) -> None:
    settings = {"epochs": 80, "patience": 1000, "evaluations_per_epoch": 1, "samples": 0, "learning_rate": 1e-4}
    run_id = engine.train("tam", "lora", base=str(tiny_model), settings=settings)

    def checkpoints() -> list[int]:
        return [event.step for event in engine.events(run_id)[0] if event.kind == "checkpoint"]

    wait_for(lambda: len(checkpoints()) >= 2, "two checkpoints")
    os.kill(worker_pid(engine, run_id), signal.SIGKILL)
    assert engine.wait(run_id).status == "interrupted"
    offset, last = engine.events(run_id)[1], checkpoints()[-1]
    engine.resume(run_id)
    run = engine.wait(run_id)
    assert run.status == "done", run.message
    again = [event for event in engine.events(run_id, offset)[0] if isinstance(event, Step) and event.loss is not None]
    assert again[0].step == last + 1
    assert again[-1].step == again[-1].total
    assert engine.variant(run_id).kind == "adapter"


def test_a_variant_that_cannot_be_registered_is_said_and_found_at_the_next_start(
    ready_home: Home, tiny_model: Path
) -> None:
    from persona_lab.errors import WorkFailed

    with Engine.open(ready_home.root) as engine:
        (ready_home.root / "variants").write_text("a file where the folder should be")
        run_id = engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 1})
        with pytest.raises(WorkFailed, match="could not be put into the library"):
            engine.wait(run_id)
    (ready_home.root / "variants").unlink()
    with Engine.open(ready_home.root) as engine:
        assert [variant.run for variant in engine.variants()] == [run_id]


def test_a_variant_that_saw_the_probes_is_not_scored(engine: Engine, tiny_model: Path, tmp_path: Path) -> None:
    run = engine.wait(engine.train("tam", "slow", base=str(tiny_model), settings={"steps": 1}))
    assert run.status == "done", run.message
    seen = engine.dataset("tam-v1").of("train")[0]
    rows = [{"messages": [m.model_dump() for m in c.messages]} for c in engine.dataset("tam-v1").conversations]
    for row in rows:
        row["split"] = "test" if row["messages"][0]["content"] == seen.messages[0].content else "train"
    (tmp_path / "again.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    engine.import_dataset(tmp_path / "again.jsonl", "tam")
    scored = engine.wait(engine.evaluate([run.variant], quick=True))
    assert (scored.status, scored.cause) == ("failed", "bad_data")
    assert "trained on" in scored.message
