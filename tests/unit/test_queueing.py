"""The order of what waits: moved, kept in a file, taken up after a restart."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from persona_lab.errors import BadInput
from persona_lab.events import EventLog, Failed, Started
from persona_lab.home import Home
from persona_lab.jobs import Supervisor, ask_to_keep, view
from persona_lab.queueing import in_order, moved, read_order, write_order
from persona_lab.types import Job, RunView, now


def test_a_move_keeps_everybody_else_in_order_and_stops_at_the_ends() -> None:
    rng = random.Random(0)
    for _ in range(200):
        order = rng.sample("abcdefg", rng.randint(1, 7))
        one, by = rng.choice(order), rng.randint(-9, 9)
        after = moved(order, one, by)
        assert [x for x in after if x != one] == [x for x in order if x != one]
        assert after.index(one) == min(max(order.index(one) + by, 0), len(order) - 1)


def test_the_kept_order_comes_first_and_forgets_what_is_gone(tmp_path: Path) -> None:
    write_order(tmp_path / "queue.json", ["c", "gone", "a"])
    assert in_order(read_order(tmp_path / "queue.json"), ["a", "b", "c"]) == ["c", "a", "b"]
    (tmp_path / "queue.json").write_text("{damaged")
    assert read_order(tmp_path / "queue.json") == []


class _Idle(Supervisor):
    """Starts nothing, so that what waits stays."""

    def _ensure_thread(self) -> None:
        pass


def job(home: Home, run_id: str) -> Job:
    return Job(id=run_id, kind="train", name=run_id, home=str(home.root), created=now(), strategy="lora")


def test_the_queue_outlives_the_page(home: Home) -> None:
    first = _Idle(home)
    for run_id in ("one", "two", "three"):
        first.submit(job(home, run_id))
    assert first.move("three", -2) == ["three", "one", "two"]
    first.stop("one")
    assert view(home.run("one")).status == "cancelled"
    # one that ran before and was asked to go on waits too, though its folder still tells of its first attempt
    log = EventLog(home.run("one") / "events.jsonl")
    log.append(Started(pid=1, created=0.0))
    log.append(Failed(cause="cancelled", message="Stopped."))
    log.close()
    first.resume("one")
    assert first.move("one", -1) == ["three", "one", "two"]

    again = _Idle(home)
    again.adopt()
    assert again.queued() == ["three", "one", "two"]
    again.stop("one")
    third = _Idle(home)
    third.adopt()
    assert third.queued() == ["three", "two"]
    with pytest.raises(BadInput, match="does not wait"):
        third.move("one", 1)


def test_only_a_training_in_progress_can_be_ended_and_kept(home: Home) -> None:
    _Idle(home).submit(job(home, "one"))
    folder = home.run("one")
    with pytest.raises(BadInput, match="queued"):
        ask_to_keep(view(folder), folder)
    assert not (folder / "keep").exists()
    ask_to_keep(RunView(id="one", kind="train", name="one", status="running"), folder)
    assert (folder / "keep").exists()
