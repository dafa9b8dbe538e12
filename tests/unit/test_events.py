"""The event log is followed by offset, never shows half a record, and survives a writer that died in a line."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from persona_lab.events import Done, EventLog, Log, Sample, Step, read_events


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
