"""The event log is followed by offset, never shows half a record, and survives a writer that died in a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_lab import events
from persona_lab.events import Done, EventLog, Failed, Log, LogStates, Phase, Sample, Started, Step, read_events


def test_events_come_back_in_order_from_an_offset(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(Step(step=1, total=3, loss=2.5))
    first, offset = read_events(log.path)
    log.append(Step(step=2, total=3, loss=2.25))
    second, end = read_events(log.path, offset)
    assert [event.loss for event in first + second] == [2.5, 2.25]
    assert read_events(log.path, end) == ([], end)
    log.close()


def test_a_half_written_line_is_not_seen_and_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(Log(message="whole"))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "log", "mess')
    assert [e.message for e in read_events(path)[0]] == ["whole"]
    again = EventLog(path)
    again.append(Done(result={"ok": 1}))
    again.close()
    assert [event.kind for event in read_events(path)[0]] == ["log", "done"]


def test_an_unknown_kind_of_event_does_not_hide_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "of a newer version"}\n{"kind": "log", "message": "still here"}\n')
    assert [e.message for e in read_events(path)[0]] == ["still here"]


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(0, 60))
def test_any_text_survives_and_any_cut_gives_whole_records(texts: list[str], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        log = EventLog(path)
        for text in texts:
            log.append(Sample(step=1, prompt=text, reply=text))
        log.close()
        assert [e.reply for e in read_events(path)[0]] == texts
        path.write_bytes(path.read_bytes()[: -cut or None])
        kept = [e.reply for e in read_events(path)[0]]
        assert kept == texts[: len(kept)]


# --- what a log says in short ---------------------------------------------------------------------


def written(path: Path, *new: events.Event) -> None:
    log = EventLog(path)
    for event in new:
        log.append(event)
    log.close()


def test_a_log_is_folded(tmp_path: Path) -> None:
    path, logs = tmp_path / "events.jsonl", LogStates()
    assert logs.state(path) == events.LogState()
    written(path, Started(pid=1, created=1.0, time="a"), Phase(title="Training"), Step(step=1, total=9, loss=1.0))
    assert (logs.state(path).phase, logs.state(path).attempt) == ("Training", 1)
    assert logs.state(path).step == read_events(path)[0][-1]
    written(path, Failed(cause="bug", message="no"))
    failed = logs.state(path)
    assert failed.terminal == read_events(path)[0][-1]
    written(path, Started(pid=2, created=2.0, time="b"), Phase(title="Again"))
    again = logs.state(path)
    assert (again.terminal, again.step, again.attempt, again.first) == (None, None, 2, "a")
    assert again.started is not None
    assert again.started.pid == 2
    assert failed.terminal is not None, "what was given out stays as it was"


def test_each_byte_of_a_log_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = []

    def reading(path: Path, offset: int = 0) -> tuple[list[events.AnyEvent], int]:
        offsets.append(offset)
        return read_events(path, offset)

    monkeypatch.setattr(events, "read_events", reading)
    path, logs = tmp_path / "events.jsonl", LogStates()
    sizes = [0]
    for number in range(1, 4):
        written(path, Step(step=number, total=9, loss=1.0))
        for _ in range(3):
            found = logs.state(path).step
            assert found is not None
            assert found.step == number
        sizes.append(path.stat().st_size)
    assert offsets == sizes[:-1]


def test_a_half_written_line_is_folded_when_it_is_whole(tmp_path: Path) -> None:
    path, logs = tmp_path / "events.jsonl", LogStates()
    written(path, Phase(title="one"))
    whole = Phase(title="two").model_dump_json().encode()
    with path.open("ab") as file:
        file.write(whole[:9])
    assert logs.state(path).phase == "one"
    with path.open("ab") as file:
        file.write(whole[9:] + b"\n")
    assert logs.state(path).phase == "two"
    with path.open("ab") as file:
        file.write(whole[:9])
    assert logs.state(path).phase == "two"
    written(path, Phase(title="three"))  # cuts the half line off first
    assert logs.state(path).phase == "three"


@pytest.mark.parametrize("titles", [["x"], ["x", "y"], ["x", "y", "z"], ["a much longer title than before", "w"]])
def test_a_log_in_place_of_another_is_read_anew(tmp_path: Path, titles: list[str]) -> None:
    path, logs = tmp_path / "events.jsonl", LogStates()
    written(path, Started(pid=1, created=1.0), Phase(title="a"), Phase(title="b"))
    assert logs.state(path).attempt == 1
    path.write_text("".join(Phase(title=title).model_dump_json() + "\n" for title in titles))
    assert logs.state(path) == _fresh(path)
    path.unlink()
    assert logs.state(path) == events.LogState()


def test_a_log_of_the_same_length_is_read_anew(tmp_path: Path) -> None:
    path, logs = tmp_path / "events.jsonl", LogStates()
    written(path, Phase(title="a", time="t"), Log(message="x" * 200, time="t"))
    assert logs.state(path).phase == "a"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    os.utime(path, ns=(1, 1))
    assert logs.state(path).phase == "b"


def test_only_so_many_logs_are_kept(tmp_path: Path) -> None:
    logs = LogStates(kept=2)
    for name in "abc":
        written(tmp_path / name, Phase(title=name))
        assert logs.state(tmp_path / name).phase == name
    assert len(logs) == 2
    assert logs.state(tmp_path / "a").phase == "a"


def _fresh(path: Path) -> events.LogState:
    return LogStates().state(path)
