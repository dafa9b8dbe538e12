"""The measured page: values with intervals, what is withheld and why, spans of costs, harmless user text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from persona_lab.bench import measure
from persona_lab.bench.measure import BASE, CONTROL, Measured, Plan
from persona_lab.bench.page import write_page
from persona_lab.errors import WillNotFit
from persona_lab.types import Comparison, DatasetSummary, Machine, Metric

MACHINE = Machine(
    device="cpu", device_name="a test", cores=2, memory_bytes=1, memory_free_bytes=1, disk_free_bytes=1, bf16=False
)


def metric(evaluator: str, name: str, value: float | None, **changes: Any) -> Metric:
    low, high = (None, None) if value is None else (value - 0.01, value + 0.01)
    made = Metric(
        evaluator=evaluator,
        metric=name,
        value=value,
        low=low,
        high=high,
        n=9,
        unit="x",
        better="higher",
    )
    return made.model_copy(update=changes)


def measured() -> Measured:
    summary = DatasetSummary(
        id="d-v1",
        name="d",
        persona="tam",
        version=1,
        source="",
        format="x",
        why="",
        created="",
        fingerprint="f",
        counts={"train": 20, "test": 6, "others": 9},
    )
    cost = {"trainable_parameters": 4_900_000, "peak_memory_bytes": 2_500_000_000, "artifact_bytes": 9_400_000}
    return Measured(
        persona="tam",
        name="Tam | <b>",
        dataset=summary,
        groups={BASE: [[]], "lora": [[], [], []], CONTROL: [[]]},
        costs={"lora": [cost | {"seconds": s} for s in (150.0, 160.0, 170.0)]},
        losses={"lora": [{"validation_before": 3.6, "validation_after": 3.0}] * 3},
        problems=["full, seed 1: memory ran out | <script>"],
        run="r",
        control_of="Cato, lora",
    )


def test_the_page_gives_values_reasons_costs_and_verdicts(tmp_path: Path) -> None:
    combined = {
        BASE: [
            metric("held_out_gain", "specificity", 0.0),
            metric("break_character", "aligned", 0.95),
            metric("break_character", "real_aligned", 0.9),
        ],
        "lora": [
            metric("held_out_gain", "specificity", 0.107),
            metric("voice", "percentile", None, note="What it is. Withheld: the AUC is 0.61."),
            metric("break_character", "aligned", 0.9),
        ],
        CONTROL: [metric("held_out_gain", "specificity", -0.02)],
    }
    apart = Comparison(
        a="lora",
        b=BASE,
        evaluator="held_out_gain",
        metric="specificity",
        difference=0.1,
        low=0.05,
        high=0.15,
        n=9,
        p=0.001,
        p_holm=0.004,
        verdict="lora is better than base on specificity (p = 0.004).",
    )
    same = apart.model_copy(
        update={"b": CONTROL, "p_holm": 0.4, "verdict": "lora and x cannot be told apart on specificity."}
    )
    paths = write_page(
        [measured()], {"tam": combined}, {"tam": [apart, same]}, MACHINE, ["persona-lab bench-strategies"], tmp_path
    )
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "| lora | 3 | 0.107 [0.097, 0.117] | withheld |" in text
    assert "| wrong character | 1 | −0.020 [−0.030, −0.010] | – |" in text
    assert "Withheld: percentile: the AUC is 0.61." in text
    assert "| *its real lines* | | 0.900 [0.890, 0.910] |" in text
    assert "| lora | 4.9 M | 2.5 GB | 160 s (150 s to 170 s) | 9 MB | 3.600 → 3.000 |" in text
    told, not_told = text.split("<details>")
    assert "lora is better than base" in told
    assert "cannot be told apart on specificity." in not_told
    assert "<script>" not in text
    document = json.loads(Path(paths["json"]).read_text(encoding="utf-8"))
    assert document["personas"][0]["groups"]["lora"]["seeds"] == 3
    assert document["personas"][0]["wrong_character"] == "Cato, lora"


def test_a_measure_that_nobody_took_is_no_column(tmp_path: Path) -> None:
    combined = {BASE: [metric("held_out_gain", "specificity", 0.0)]}
    paths = write_page([measured()], {"tam": combined}, {"tam": []}, MACHINE, [], tmp_path)
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "ranking" not in text
    assert text.count("Not measured.") == 2
    assert "Nothing: no difference is beyond chance." in text


def test_a_strategy_that_does_not_fit_is_noted_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*asked: Any, **more: Any) -> str:
        raise WillNotFit("It needs 90 GB; 4 GB are free.", "Use `lora`.")

    monkeypatch.setattr(measure, "_finished", lambda *asked: None)
    plan = Plan(("tam",), ("full",), seeds=2)
    engine: Any = SimpleNamespace(train=train)
    said: list[str] = []
    follow: Any = None
    made = measure._train_all(engine, plan, "tam", "full", follow, said.append)
    assert made.variants == []
    assert len(made.problems) == 2
    assert "90 GB" in made.problems[0]
