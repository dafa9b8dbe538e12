"""The curve and the fold of events it is drawn from."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from persona_lab.events import EventLog, Failed, Phase, Sample, Step, Validation, read_events
from persona_lab.ui.curve import loss_chart, smooth, thin, ticks
from persona_lab.ui.follow import Follower, RunPicture


def test_smooth_keeps_a_constant_and_the_first_value() -> None:
    assert [round(y, 9) for _, y in smooth([(i, 3.0) for i in range(20)])] == [3.0] * 20
    assert smooth([(1, 7.5)]) == [(1, 7.5)]


def test_thin_keeps_the_ends() -> None:
    points = [(float(i), 0.0) for i in range(5000)]
    kept = thin(points)
    assert len(kept) <= 401
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]


def test_ticks_are_round_and_inside() -> None:
    rng = random.Random(0)
    for _ in range(200):
        low = rng.uniform(-5, 5)
        high = low + 10 ** rng.uniform(-3, 3)
        marks = ticks(low, high)
        assert 1 <= len(marks) <= 7
        assert all(low - 1e-6 <= mark <= high + 1e-6 for mark in marks)


def test_chart_counts_its_points_and_is_valid_xml() -> None:
    chart = loss_chart([(1, 3.0), (2, 2.5), (3, 2.2)], [(0, 3.4), (3, 2.4)], [(2, "a<b")])
    root = ElementTree.fromstring(chart)
    assert root.attrib["data-train-points"] == "3"
    assert root.attrib["data-validation-points"] == "2"
    assert root.attrib["data-validation-first"] == "3.400"
    assert "validation went from 3.400 to 2.400" in root.find("svg").attrib["aria-label"]  # type: ignore[union-attr]
    assert len(root.findall(".//circle")) == 2
    assert "a&lt;b" in chart


def test_one_point_and_none_can_be_drawn() -> None:
    ElementTree.fromstring(loss_chart([(1, 3.0)], []))
    ElementTree.fromstring(loss_chart([], [(0, 3.0)]))
    assert "No loss yet" in loss_chart([], [])


def test_every_dot_is_inside_the_frame_even_with_a_wild_loss() -> None:
    chart = ElementTree.fromstring(loss_chart([(i, 3.0) for i in range(1, 99)], [(0, 90.0), (50, 3.0), (99, 2.9)]))
    assert all(16 <= float(dot.attrib["cy"]) <= 260 for dot in chart.findall(".//circle"))


def test_stages_are_laid_end_to_end_and_a_resumed_step_counts_once() -> None:
    picture = RunPicture()
    picture.add([Validation(step=0, loss=4.0, stage="lora"), Step(step=1, total=2, loss=3.0, stage="lora")])
    picture.add([Step(step=2, total=2, loss=2.8, stage="lora"), Step(step=2, total=2, loss=2.7, stage="lora")])
    picture.add([Step(step=1, total=5, stage="rank"), Step(step=1, total=1, loss=2.5, stage="full")])
    train, validation, borders = picture.curves()
    assert train == [(1, 3.0), (2, 2.7), (3, 2.5)]
    assert validation == [(0, 4.0)]
    assert borders == [(2, "full")]


def test_follower_reads_each_event_once_and_a_new_session_sees_the_whole(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    reads: list[int] = []

    def read(run_id: str, offset: int):  # type: ignore[no-untyped-def]
        reads.append(offset)
        return read_events(tmp_path / "events.jsonl", offset)

    follower = Follower(read)
    log.append(Phase(title="Training"))
    log.append(Step(step=1, total=2, loss=3.0))
    assert follower.picture("r").count == 2
    log.append(Sample(step=1, prompt="p", reply="r"))
    log.append(Failed(cause="bug", message="broke", details="trace"))
    picture = follower.picture("r")
    log.close()
    assert picture.count == 4
    assert picture.details == "trace"
    assert picture.lines == [("phase", "Training"), ("error", "broke")]
    assert reads[0] == 0
    assert reads[1] > 0
    assert Follower(read).picture("r").curves() == picture.curves()
