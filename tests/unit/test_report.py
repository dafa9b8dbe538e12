"""The report: complete, opens offline, and user text in it stays text."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.evaluation.compare import compare_all
from persona_lab.evaluation.history import history_of, repeat_command
from persona_lab.evaluation.plots import Curve, Dot, curve_plot, interval_plot
from persona_lab.evaluation.report import Evaluated, write_report
from persona_lab.evaluation.statistics import mean_metric, missing_metric
from persona_lab.events import Done, EventLog, Step, Validation
from persona_lab.home import Home
from persona_lab.types import ItemScore, Job, Machine, Message, Persona, Probe, Variant

MACHINE = Machine(
    device="cpu", device_name="Some <CPU>", cores=2, memory_bytes=1, memory_free_bytes=1, disk_free_bytes=1, bf16=True
)
HOSTILE = '<script>alert("x")</script> & $\\frac{a}{b}$ | `x`'


def variant(name: str, kind: Any = "adapter", run: str = "") -> Variant:
    return Variant(
        id=f"id-{len(name)}", name=name, persona="tamsin", base="starter", strategy="lora", kind=kind, run=run, seed=3
    )


@pytest.fixture
def evaluated(persona_factory: Callable[..., Persona], home: Home) -> Evaluated:
    log = EventLog(home.run("r1") / "events.jsonl")
    for step in range(1, 9):
        log.append(Step(step=step, total=8, loss=4 - step / 4, stage="lora"))
    log.append(Step(step=8, total=8, loss=1.5, stage="lora"))  # said again after a resume
    log.append(Validation(step=8, loss=2.5, stage="lora", best=True))
    log.append(Step(step=1, total=2, loss=1.9, stage="full"))
    log.append(Done(result={"seconds": {"total": 61.5}, "trainable_parameters": 4_884_480, "peak_memory_bytes": 1.6e9}))
    log.close()
    job = Job(
        id="r1",
        kind="train",
        name="t",
        home=str(home.root),
        created="",
        config={"epochs": 1.5, "targets": "all linear"},
    )
    (home.run("r1") / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    variants = [variant("base", "base"), variant(HOSTILE, run="r1")]
    metrics = {
        v.id: [
            mean_metric(
                "held_out_gain",
                "specificity",
                [ItemScore(id=str(i), cluster=str(i), value=index + i / 100) for i in range(20)],
                "nats/byte",
                "higher",
                reference=0.0,
                note=f"What it means. Said of number {index} only.",
            ),
            missing_metric("break_character", "minor", "share", "lower", "Withheld: the AUC is low."),
        ]
        for index, v in enumerate(variants)
    }
    probe = Probe(
        id="p", kind="reply", cluster="c", messages=(Message(role="user", content=f"Why? {HOSTILE}"),), reply="So."
    )
    return Evaluated(
        job=Job(id="e1", kind="evaluate", name="e", home=str(home.root), created="", dataset_id="d-1", quick=True),
        persona=persona_factory(),
        machine=MACHINE,
        home=home,
        variants=variants,
        metrics=metrics,
        failed={variants[1].id: [{"evaluator": "mine", "message": f"raised {HOSTILE}"}]},
        comparisons=compare_all(variants, metrics),
        probes=[probe],
        samples=[(probe, {v.id: f"said {HOSTILE}\nand more" for v in variants})],
    )


def test_the_page_is_whole_offline_and_escaped(evaluated: Evaluated, tmp_path: Path) -> None:
    paths = write_report(evaluated, tmp_path / "report")
    html = Path(paths["html"]).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html)
    assert not re.search(r"@import|url\((?!#)", html)
    for heading in (
        "Measured",
        "At a glance",
        "What is different",
        "Training",
        "What it took",
        "Sample replies",
        "repeat it",
    ):
        assert heading in html
    assert "is better than base on specificity" in html
    assert "1 min 2 s" in html or "62 s" in html
    assert "4,884,480" in html
    assert "A quick look" in html
    assert "prefers-color-scheme: dark" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_markdown_and_json_hold_the_same_numbers(evaluated: Evaluated, tmp_path: Path) -> None:
    paths = write_report(evaluated, tmp_path)
    document = json.loads(Path(paths["json"]).read_text(encoding="utf-8"))
    row = next(r for group in document["evaluators"] for r in group["rows"] if r["metric"] == "specificity")
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| Specificity |")]
    for cell in row["cells"].values():
        assert f"{cell['value']:.3f}" in lines[0]
    assert "<script>" not in text.split("## How to repeat it")[0]  # a command stands in a code block, as it is
    assert row["note"] == "What it means."
    assert document["variants"][1]["name"] == HOSTILE
    assert document["failed"][0]["evaluator"] == "mine"
    assert "persona-lab compare id-4" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table[:3]}) == 1


def test_history_lays_stages_end_to_end_and_counts_resumed_steps_once(evaluated: Evaluated, home: Home) -> None:
    history = history_of(evaluated.variants[1], home)
    assert len(history.train) == 9
    assert history.train[7:] == [(8, 1.5), (9, 1.9)]
    assert history.validation == [(8, 2.5)]
    assert history.cost(evaluated.variants[1])["seconds"] == 61.5
    assert history_of(evaluated.variants[0], home).train == []
    command = repeat_command(evaluated.variants[1], home)
    assert "--seed 3" in command
    assert "--set epochs=1.5 --set 'targets=all linear'" in command


def test_plots_are_valid_svg_in_the_colours_of_the_page() -> None:
    dots = [
        Dot("base", 0.2, 0.1, 0.3, 0),
        Dot("a $x_ name", 0.4, None, None, 1),
        Dot("withheld one", None, None, None, 2),
    ]
    curves = [
        Curve("one", [(i, 4 - i / 100) for i in range(1000)], [(500, 3.0), (1000, 2.5)], 0),
        Curve("two", [(1, 2.0)], [], 1),
    ]
    for svg in (
        interval_plot("p", dots, "nats", 0.0),
        interval_plot("s", dots, "share", None, share=True),
        curve_plot("c", curves),
    ):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(--ink)" in svg
        assert "#010203" not in svg
