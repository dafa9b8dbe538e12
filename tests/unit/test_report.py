"""The report: complete, opens offline, and user text in it stays text."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.cli.terminal import print_metrics
from persona_lab.evaluation.compare import compare_all
from persona_lab.evaluation.document import build_document
from persona_lab.evaluation.figures import (
    Bar,
    Cells,
    Fade,
    Point,
    Spread,
    fade_plot,
    map_plot,
    plane_plot,
    scale_of,
    scale_plot,
    stack_plot,
)
from persona_lab.evaluation.headline import headline
from persona_lab.evaluation.history import history_of, repeat_command
from persona_lab.evaluation.plots import Curve, Dot, curve_plot, interval_plot
from persona_lab.evaluation.report import Evaluated, render_html, render_markdown, write_report
from persona_lab.evaluation.statistics import mean_metric, missing_metric, share_metric
from persona_lab.evaluation.wording import number, own_note, shared_note, signed
from persona_lab.events import Done, EventLog, Step, Validation
from persona_lab.home import Home
from persona_lab.types import ItemScore, Job, Machine, Message, Metric, Persona, Probe, Variant
from persona_lab.ui import scores

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


# --- what a whole suite says ----------------------------------------------------------------------


def some(name: str, kind: Any = "adapter", **changes: Any) -> Variant:
    return Variant(id=name, name=name, persona="tamsin", base="starter", strategy="lora", kind=kind, **changes)


def measured(evaluator: str, name: str, values: Any, better: Any = "higher", **changes: Any) -> Metric:
    """A metric with an item a value; items are each their own cluster."""
    items = [ItemScore(id=f"p{i}", cluster=f"c{i}", value=float(v), text="wrote", note="a reason") for i, v in values]
    made = mean_metric(evaluator, name, items, "nats", better, 0.0, "What it means.")
    return made.model_copy(update={"title": f"{name} title", **changes})


def suite(gain: float, moved: float, aligned: int) -> list[Metric]:
    """A little of every evaluator for one variant; aligned of 20."""
    step = [(i, (i % 7) / 100) for i in range(20)]
    flags = [
        ItemScore(id=f"p{i}", cluster=f"c{i}", value=float(i < aligned), text="As an AI", note="assistant phrase")
        for i in range(20)
    ]
    layers = [ItemScore(id=f"l{i}.q", cluster=str(i), value=moved / 9 + 0.001 * i, note="q_proj") for i in range(4)]
    return [
        measured("held_out_gain", "specificity", [(i, gain + v) for i, v in step], title="Specificity"),
        measured("voice", "percentile", step, title="Sounds right, by style"),
        share_metric("break_character", "aligned", flags, "higher").model_copy(update={"title": "Stays in character"}),
        share_metric(
            "break_character", "off", [f.model_copy(update={"value": 1 - f.value}) for f in flags], "lower"
        ).model_copy(update={"compared": False}),
        *(
            measured("drift", f"g_at_{k}", [(i, gain - k / 999 + v) for i, v in step], compared=False)
            for k in (16, 0, 4)
        ),
        measured(
            "forgetting",
            "kl_text",
            [(i, moved + v * (moved > 0)) for i, v in step],
            "lower",
            title="Moved on generic text",
        ),
        missing_metric("facts", "margin", "nats", "higher", "Margins. Withheld: there are no facts."),
        mean_metric("geometry", "relative_update", layers, "share", "none")
        if moved
        else missing_metric("geometry", "relative_update", "share", "none", "Nothing was changed."),
    ]


@pytest.fixture
def whole(evaluated: Evaluated) -> Evaluated:
    variants = [some("base", "base"), some("lora"), some("full", "weights"), some("socrates", control=True)]
    metrics = dict(
        zip(
            [v.id for v in variants],
            [suite(0, 0, 12), suite(0.5, 0.2, 19), suite(0.5, 0.9, 19), suite(-0.4, 0.2, 2)],
            strict=True,
        )
    )
    probes = [
        Probe(
            id=f"p{i}",
            kind="reply",
            cluster=f"c{i}",
            messages=(Message(role="user", content=f"question {i}"),),
            reply=f"line {i}",
            other=f"other {i}",
        )
        for i in range(20)
    ]
    return dataclasses.replace(
        evaluated,
        variants=variants,
        metrics=metrics,
        comparisons=compare_all(variants, metrics),
        failed={},
        probes=probes,
        samples=[(probes[0], {"lora": "said"})],
        notes=["A line was left out."],
    )


def blocks_of(evaluated: Evaluated) -> dict[str, Any]:
    found = headline(evaluated.variants, evaluated.metrics, evaluated.comparisons)
    return {str(block["title"]): block["lines"] for block in found}


def test_the_headline_says_only_what_the_comparisons_say(whole: Evaluated) -> None:
    blocks = blocks_of(whole)
    assert blocks["Gained over the base"][0] == (
        "lora is better than its base on: specificity (+0.500 nats); stays in character (+35 points)."
    )
    assert blocks["What it cost"][1].startswith("full is worse than its base on: moved on generic text (+0.9")
    assert blocks["Between the variants"] == ["lora is better than full on: moved on generic text."]
    assert blocks["Against a wrong character"][0] == (
        "lora beats socrates (wrong character) on: specificity, stays in character. It does not on: sounds right; a "
        "good score there is no proof of this character."
    )
    assert "lora and base, on: sounds right." in blocks["Cannot be told apart"]
    assert blocks["Not measured"] == ["Withheld for every variant: margin. The table says why."]
    for comparison in whole.comparisons:
        if comparison.p_holm >= 0.05:
            title = {"percentile": "sounds right", "aligned": "stays in character"}.get(comparison.metric)
            pair = {comparison.a, comparison.b}
            claims = [
                line for line in [*blocks["Gained over the base"], *blocks["What it cost"]] if title and title in line
            ]
            assert not [line for line in claims if pair == {"base", line.split()[0]}]


def test_a_run_without_a_base_or_without_enough_items_says_so(whole: Evaluated) -> None:
    alone = [v for v in whole.variants if v.kind != "base"]
    lines = headline(alone, whole.metrics, compare_all(alone, whole.metrics))
    assert any("base was not measured" in line for block in lines for line in block["lines"])
    small = {
        v.id: [measured("held_out_gain", "specificity", [(i, n + i / 9) for i in range(4)])]
        for n, v in enumerate(whole.variants)
    }
    few = headline(whole.variants, small, compare_all(whole.variants, small))
    assert any("Too few items for any difference" in line for block in few for line in block["lines"])
    nothing = headline(whole.variants, {}, [])
    assert nothing[-1]["lines"][0].startswith("Nothing could be compared")


def test_too_few_items_is_said_only_where_no_tested_difference_could_survive() -> None:
    variants = [some("base", "base"), some("prompt", "prompt"), some("lora")]
    gains = {"base": 0, "prompt": 0, "lora": 1}

    def said(metrics: dict[str, list[Metric]], comparisons: int) -> str:
        found = compare_all(variants, metrics)
        assert len(found) == comparisons
        return " ".join(str(line) for block in headline(variants, metrics, found) for line in block["lines"])

    def gain(of: str, items: int) -> Metric:
        return measured("held_out_gain", "specificity", [(i, gains[of] + i / 9) for i in range(items)])

    same = measured("voice", "percentile", [(i, i / 9) for i in range(7)])
    # the same on every item: four of these six were no tests, and seven items are enough for the other two
    assert "Too few" not in said({v.id: [gain(v.id, 7), same] for v in variants}, 6)
    assert "correction for 2 comparisons" in said({v.id: [gain(v.id, 5), same] for v in variants}, 6)
    withheld = missing_metric("held_out_gain", "specificity", "nats", "higher", "Withheld.")
    assert "Too few" not in said({"base": [gain("base", 20)], "lora": [gain("lora", 20)], "prompt": [withheld]}, 1)


def test_the_worst_items_stand_with_what_was_asked_and_written(whole: Evaluated, tmp_path: Path) -> None:
    document = build_document(whole, {v.id: history_of(v, whole.home) for v in whole.variants}, tmp_path)
    worst = {(group["variant"], group["metric"]): group["items"] for group in document["worst"]}
    assert {variant for variant, _ in worst} == {"lora", "full"}
    assert [item["id"] for item in worst["lora", "specificity"]] == ["p0", "p7", "p14"]
    assert worst["lora", "specificity"][0] | {"note": "", "wrote": ""} == {
        "id": "p0",
        "value": 0.5,
        "asked": "question 0",
        "true": "line 0",
        "other": "other 0",
        "wrote": "",
        "note": "",
    }
    assert [(item["id"], item["wrote"], item["note"]) for item in worst["lora", "aligned"]] == [
        ("p19", "As an AI", "assistant phrase")
    ]


def test_the_page_of_a_whole_suite_draws_labels_and_explains(whole: Evaluated, tmp_path: Path) -> None:
    paths = write_report(whole, tmp_path)
    html, text = (Path(paths[kind]).read_text(encoding="utf-8") for kind in ("html", "markdown"))
    document = json.loads(Path(paths["json"]).read_text(encoding="utf-8"))
    for heading in (
        "Learnt and forgotten",
        "Under attack",
        "Over a long chat",
        "Where the update sits",
        "The worst, to read",
    ):
        assert heading in html
    for page in (html, text):
        assert "wrong character (control)" in page
        assert "there are no facts" in page
        assert "Nothing was changed" in page
        assert "A line was left out" in page
    assert html.count("socrates (control)") >= 5  # in the drawings too
    assert [row["variant"] for row in document["plane"]] == ["base", "lora", "full", "socrates"]
    assert [level["turns"] for level in document["drift"][0]["levels"]] == [0, 4, 16]
    assert [row["variant"] for row in document["map"]] == ["lora", "full", "socrates"]
    assert document["breaks"][1] == {
        "name": "lora",
        "variant": "lora",
        "aligned": 0.95,
        "minor": None,
        "off": pytest.approx(0.05),
        "n": 20,
    }
    assert len(document["samples"][0]["replies"]) == 1  # the others' weights may be damaged


@pytest.mark.parametrize(
    "gone", ["held_out_gain", "voice", "break_character", "drift", "forgetting", "facts", "geometry", ""]
)
def test_a_report_does_without_any_evaluator(whole: Evaluated, tmp_path: Path, gone: str) -> None:
    metrics = {v: [m for m in found if gone and m.evaluator != gone] for v, found in whole.metrics.items()}
    left = dataclasses.replace(whole, metrics=metrics, comparisons=compare_all(whole.variants, metrics))
    document = build_document(left, {v.id: history_of(v, whole.home) for v in whole.variants}, tmp_path)
    html, text = render_html(document, {}), render_markdown(document)
    drawn = {"drift": "Over a long chat", "break_character": "Under attack", "geometry": "Where the update sits"}
    assert (drawn.get(gone, "no such heading")) not in html
    assert "How to repeat it" in text


def test_where_variants_stand_along_traits_is_drawn(whole: Evaluated, tmp_path: Path) -> None:
    def along(name: str, value: float | None) -> Metric:
        if value is None:
            return missing_metric("traits", name, "vector lengths", "none", "Blank.")
        items = [(i, value + 0.01 * (i % 5)) for i in range(20)]
        return measured("traits", name, items, "none", title="Mood (<b>cheerful</b> to grumpy)", compared=False)

    places = {"base": 0.0, "lora": 0.5, "full": None, "socrates": -0.3}
    metrics = {
        v: [*found, along("grumpy", places[v]), along("grumpy.real", 0.8), along("grumpy.card", None)]
        for v, found in whole.metrics.items()
    }
    histories = {v.id: history_of(v, whole.home) for v in whole.variants}
    document = build_document(dataclasses.replace(whole, metrics=metrics), histories, tmp_path)
    (row,) = document["traits"]
    assert [line["name"] for line in row["lines"]] == ["base", "lora", "socrates (control)", "its real lines"]
    assert row["lines"][1]["value"] == pytest.approx(0.52)
    assert 0.5 < row["lines"][1]["low"] < 0.52 < row["lines"][1]["high"] < 0.54
    html = render_html(document, {})
    assert "Mood (&lt;b&gt;cheerful&lt;/b&gt; to grumpy)" in html
    assert "<b>cheerful</b>" not in html
    (drawing,) = re.findall(r"<svg[^>]*>(?:(?!</svg>).)*traits-grumpy(?:(?!</svg>).)*</svg>", html, flags=re.DOTALL)
    assert "its real lines" in drawing
    nothing = {v: [*found, along("positions", None)] for v, found in whole.metrics.items()}
    empty = build_document(dataclasses.replace(whole, metrics=nothing), histories, tmp_path)
    assert empty["traits"] == []
    assert "traits-" not in render_html(empty, {})


def test_all_drawings_are_valid_svg_in_the_colours_of_the_page() -> None:
    spread, bare = Spread(0.2, 0.1, 0.4), Spread(0.0, None, None)
    cells = Cells(
        ["0", "1", "embedding"], ["q_proj", "$k_"], {("0", "q_proj"): 0.01, ("1", "$k_"): 0.5, ("1", "q_proj"): 0.0}
    )
    for scale in (scale_of([cells]), (0.0, 0.5, False)):
        for svg in (map_plot("m", cells, scale), scale_plot("k", scale, "size")):
            assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert scale_of([cells]) == (0.01, 0.5, True)
    assert scale_of([Cells([], [], {})]) == (0.0, 1.0, False)
    for svg in (
        plane_plot("p", [Point("a", spread, spread, 0), Point("b", bare, bare, 1)], "x", "y"),
        stack_plot("s", [Bar("a", (0.9, None, 0.1), 10), Bar("real", (0.5, 0.4, 0.1), 9, True)], ("x", "y", "z")),
        fade_plot("f", [Fade("a", [(0, spread), (4, bare)], 0), Fade("b", [(0, bare)], 1)], "x", "y"),
    ):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(--ink)" in svg
        assert "var(--v0)" in svg
        assert not re.search(r"#0072b2|#010203", svg, flags=re.IGNORECASE)


def test_numbers_and_notes_in_words() -> None:
    assert [
        number(v, u)
        for v, u in [(None, ""), (0.5, "share"), (0.0123, "share"), (-0.5, ""), (0.00123, ""), (1234.5, "")]
    ] == ["–", "50%", "1.2%", "−0.500", "0.0012", "1,234"]
    assert [signed(0.12, "share"), signed(-0.1, "nats"), signed(2, "nats")] == [
        "+12 points",
        "−0.100 nats",
        "+2.000 nats",
    ]
    notes = ["It means this. Said of one.", "It means this. Said of two."]
    assert shared_note(notes) == "It means this."
    assert own_note(notes[0], "It means this.") == "Said of one."
    assert shared_note(["One thing.", "Another."]) == ""


def result_of(whole: Evaluated) -> dict[str, Any]:
    """What an evaluate run hands to the page and to the command line."""
    entries = [
        {"variant": v.id, "metrics": [m.model_dump(mode="json", exclude={"items"}) for m in whole.metrics[v.id]]}
        for v in whole.variants
    ]
    return {"variants": entries, "comparisons": [c.model_dump(mode="json") for c in whole.comparisons]}


def test_the_page_uses_titles_folds_second_views_and_gives_reasons(whole: Evaluated) -> None:
    result = result_of(whole)
    html = scores.metric_table(result["variants"], {"lora": "My <LoRA>"})
    first, folded = html.split("<details", 1)
    assert "Sounds right, by style" in first
    assert "My &lt;LoRA&gt;" in first
    assert "withheld" in first
    assert "there are no facts" in first
    assert "g_at_16 title" in folded
    assert "g_at_16 title" not in first
    assert "Nothing was changed" in folded
    said, open_ones = scores.comparison_list(result["comparisons"]).split("<details", 1)
    assert "lora is better than base on specificity" in said
    assert "cannot be told apart" not in said
    assert "cannot be told apart on stays in character" in open_ones


def test_the_command_line_gives_each_reason_once_and_differences_first(
    whole: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    print_metrics(result_of(whole))
    shown = capsys.readouterr().out
    assert "Specificity" in shown
    assert shown.count("there are no facts") == 1
    assert "Withheld for every variant: facts.margin. there are no facts." in shown
    assert "Withheld for base: geometry.relative_update. Nothing was changed." in shown
    assert shown.index("is better than") < shown.index("cannot be told apart")
    assert shown.rindex("is better than") < shown.index("cannot be told apart")
