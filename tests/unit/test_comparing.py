"""Two runs side by side: only what differs, and curves over several stages."""

from __future__ import annotations

import json
import os
from typing import Any

import psutil
from typer.testing import CliRunner

from persona_lab.cli import app
from persona_lab.comparing import compared, curves_of
from persona_lab.events import EventLog, Started, Step, Validation
from persona_lab.home import Home
from persona_lab.types import Job, RunView, now
from persona_lab.ui.run_lists import comparison, filtered, none_left, queue_list


def run(run_id: str, strategy: str = "lora", **fields: Any) -> RunView:
    return RunView(
        id=run_id, kind="train", name=run_id, status=fields.pop("status", "done"), persona="tam", strategy=strategy,
        base="starter", dataset="tam-1", **fields,
    )  # fmt: skip


def test_only_differences_are_told_and_a_missing_setting_is_one() -> None:
    a = run("a", config={"rank": 16, "epochs": 2.0, "dropout": 0.0}, result={"loss": {"validation_after": 2.5}})
    b = run("b", "full", config={"epochs": 2.0, "low_memory": False}, seed=1)
    found = compared(a, b, [], [])
    assert [(row["setting"], row["a"], row["b"]) for row in found["differences"]] == [
        ("strategy", "lora", "full"),
        ("seed", 0, 1),
        ("rank", 16, None),
        ("dropout", 0.0, None),
        ("low_memory", None, False),
    ]
    assert found["same"] == ["persona", "base", "dataset", "epochs"]
    assert {"measure": "validation loss after", "a": 2.5, "b": None} in found["outcomes"]
    html = comparison(found)
    assert "low memory" in html
    assert "epochs" not in html.split("The same in both")[0]
    assert compared(a, a, [], [])["differences"] == []


def test_curves_lay_stages_end_to_end_and_count_a_repeated_step_once() -> None:
    events = [
        Validation(step=0, loss=4.0, stage="lora"),
        Step(step=1, total=2, loss=3.5, stage="lora"),
        Step(step=2, total=2, loss=3.0, stage="lora"),
        Step(step=2, total=2, loss=2.9, stage="lora"),
        Step(step=1, total=9, stage="rank"),
        Step(step=1, total=1, loss=2.5, stage="full"),
    ]
    assert curves_of(events) == {"train": [(1, 3.5), (2, 2.9), (3, 2.5)], "validation": [(0, 4.0)]}
    html = comparison(compared(run("a"), run("b"), events, events))
    assert html.count("<polyline") == 4


def test_filters_and_what_they_leave() -> None:
    runs = [run("a"), run("b", "full"), run("c", status="failed")]
    assert [r.id for r in filtered(runs, "", "", "")] == ["a", "b", "c"]
    assert [r.id for r in filtered(runs, "tam", "lora", "done")] == ["a"]
    assert "3 runs" in none_left(runs, filtered(runs, "nobody", "", ""))
    assert none_left([], []) == ""


def test_the_first_cannot_go_sooner_nor_the_last_later() -> None:
    html = queue_list([run("a"), run("b")])
    assert 'data-id="up:a" aria-label="Sooner: a" disabled' in html
    assert 'data-id="up:b" aria-label="Sooner: b">' in html
    assert 'data-id="down:b" aria-label="Later: b" disabled' in html
    assert queue_list([]) == ""


def test_the_command_compares_runs_and_ends_one_with_its_weights_kept(home: Home) -> None:
    for run_id, seed in (("one", 0), ("two", 5)):
        job = Job(id=run_id, kind="train", name=run_id, home=str(home.root), created=now(), strategy="lora", seed=seed)
        home.run(run_id).mkdir(parents=True)
        (home.run(run_id) / "job.json").write_text(job.model_dump_json())
    log = EventLog(home.run("one") / "events.jsonl")
    log.append(Started(pid=os.getpid(), created=psutil.Process().create_time()))  # this process plays the worker
    log.append(Step(step=1, total=9, loss=3.0))
    log.close()

    def command(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["runs", *arguments, "--home", str(home.root), "--json"])

    found = json.loads(command("compare", "one", "two").stdout)
    assert found["differences"] == [{"setting": "seed", "a": 0, "b": 5}]
    assert found["curves"]["a"]["train"] == [[1, 3.0]]
    assert json.loads(command("stop", "one", "--keep").stdout) == {"run": "one", "status": "running", "ending": True}
    assert (home.run("one") / "keep").exists()
    assert not (home.run("one") / "cancel").exists()
    refused = command("stop", "two", "--keep")
    assert "cannot be ended" in str(refused.exception)
    assert json.loads(command("show", "one").stdout)["ending"] is True
