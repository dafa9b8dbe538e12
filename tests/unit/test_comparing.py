"""Two runs side by side: only what differs, and curves over several stages."""

from __future__ import annotations

from typing import Any

from persona_lab.comparing import compared, curves_of
from persona_lab.events import Step, Validation
from persona_lab.types import RunView
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
