"""What a run tells the world: an append-only log of small JSON lines, `events.jsonl`, with one writer, the worker.

Readers keep a byte offset and ignore a last line without a newline, so they can follow a live run, and start over
after a restart, without ever seeing half a record.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from persona_lab.types import Frozen, now


class Event(Frozen):
    """Base of all events; `time` is ISO 8601 UTC."""

    time: str = Field(default_factory=now)


class Started(Event):
    """The worker is up. `birth` tells its process from a later one with the same pid."""

    kind: Literal["started"] = "started"
    pid: int
    created: float
    birth: str = ""
    """As `processes.birth`: unlike `created`, it stays the same when the clock is set."""
    oom_kills: int = 0
    """As `processes.oom_kills` of `oom_source`, when this worker began."""
    oom_source: str = ""
    """As `processes.oom_source`."""
    attempt: int = 1
    versions: dict[str, str] = Field(default_factory=dict)


class Phase(Event):
    """A new part of the work begins; `total` is its number of steps when known."""

    kind: Literal["phase"] = "phase"
    title: str
    total: int | None = None


class Step(Event):
    """Progress inside a phase. `loss` is the training loss in nats a token; memory is the process's peak so far."""

    kind: Literal["step"] = "step"
    step: int
    total: int
    stage: str = ""
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    eta_seconds: float | None = None


class Validation(Event):
    """The validation loss, nats a supervised token, after `step` steps."""

    kind: Literal["validation"] = "validation"
    step: int
    loss: float
    stage: str = ""
    best: bool = False


class Sample(Event):
    """A reply written during training, to watch the voice form."""

    kind: Literal["sample"] = "sample"
    step: int
    prompt: str
    reply: str
    stage: str = ""
    kept: bool = False
    """Said by the weights that the training keeps."""


class Log(Event):
    """A line for people."""

    kind: Literal["log"] = "log"
    level: Literal["info", "warning", "error"] = "info"
    message: str


class Checkpoint(Event):
    """Training can resume from here."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    stage: str = ""


class Done(Event):
    """Terminal: the work is finished; `result` is what the CLI prints, less what the engine adds."""

    kind: Literal["done"] = "done"
    result: dict[str, Any] = Field(default_factory=dict)


class Failed(Event):
    """Terminal: the work failed or was cancelled."""

    kind: Literal["failed"] = "failed"
    cause: str
    message: str
    fix: str = ""
    details: str = ""


AnyEvent = Annotated[
    Started | Phase | Step | Validation | Sample | Log | Checkpoint | Done | Failed, Field(discriminator="kind")
]
_adapter: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
TERMINAL = (Done, Failed)


class EventLog:
    """The writing end: one per worker.

    A previous worker may have died in the middle of a line; the log is cut back to its last whole line first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_partial_line(path)
        self._file = path.open("ab", buffering=0)

    def append(self, event: Event) -> None:
        """Write one event as one line, in a single write; terminal events are fsynced."""
        self._file.write(event.model_dump_json(exclude_none=True).encode() + b"\n")
        if isinstance(event, TERMINAL):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; appending afterwards raises ValueError."""
        self._file.close()


def drop_partial_line(path: Path) -> None:
    """Cut off half a line that a kill left at the end of a file: what is appended must not be joined to it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def read_events(path: Path, offset: int = 0) -> tuple[list[AnyEvent], int]:
    """Events from byte `offset` on, and the offset to read from next time.

    A line that is not an event (a newer version's, or damage) is skipped: later lines still count.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    events: list[AnyEvent] = []
    for line in data[:end].splitlines():
        try:
            events.append(_adapter.validate_json(line))
        except ValidationError:
            continue
    return events, offset + end


# --- what a log says in short ---------------------------------------------------------------------

KEPT_LOGS = 256
TAIL_BYTES = 64


@dataclass
class LogState:
    """What a run's log says by now, folded: it does not grow with the log."""

    started: Started | None = None
    """Of the newest attempt."""
    first: str = ""
    """When the first attempt began."""
    attempt: int = 0
    phase: str = ""
    step: Step | None = None
    """The newest of the phase."""
    terminal: Done | Failed | None = None
    """Of the newest attempt."""

    def add(self, events: Iterable[AnyEvent]) -> None:
        """Fold events in."""
        for event in events:
            if isinstance(event, Started):
                self.started, self.terminal = event, None
                self.attempt, self.first = self.attempt + 1, self.first or event.time
            elif isinstance(event, Phase):
                self.phase, self.step = event.title, None
            elif isinstance(event, Step):
                self.step = event
            elif isinstance(event, Done | Failed):
                self.terminal = event


@dataclass
class _Read:
    """How far a log was read, and how it was recognised."""

    state: LogState = field(default_factory=LogState)
    offset: int = 0
    tail: bytes = b""
    """What stood before `offset`."""
    size: int = -1
    changed: int = -1
    """Nanoseconds."""


class LogStates:
    """The states of runs' logs. Each byte of a log is read once, for it is asked for at every tick of a page and a long
    training writes a line a step; only the newest part is in memory. Thread-safe.

    A log that was put in place of another (a repair, a backup that was restored) is read anew.

    Args:
        kept: of how many logs the states are kept.
    """

    def __init__(self, kept: int = KEPT_LOGS) -> None:
        self._kept = kept
        self._read: OrderedDict[Path, _Read] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._read)

    def state(self, path: Path) -> LogState:
        """What the log says; that of an empty one where there is none."""
        with self._lock:
            known = self._read.pop(path, None) or _Read()
            try:
                known = _read_on(path, known)
            except (FileNotFoundError, NotADirectoryError):
                return LogState()
            self._read[path] = known
            while len(self._read) > self._kept:
                self._read.popitem(last=False)
            return replace(known.state)


def _read_on(path: Path, known: _Read) -> _Read:
    found = path.stat()
    if (found.st_size, found.st_mtime_ns) == (known.size, known.changed):
        return known
    if not _goes_on(path, known, found.st_size):
        known = _Read()
    events, known.offset = read_events(path, known.offset)
    known.state.add(events)
    known.tail = _before(path, known.offset)
    known.size, known.changed = found.st_size, found.st_mtime_ns
    return known


def _goes_on(path: Path, known: _Read, size: int) -> bool:
    """Whether a log is the one that was read, with more at its end."""
    return size != known.size and size >= known.offset and _before(path, known.offset) == known.tail


def _before(path: Path, offset: int) -> bytes:
    start = max(0, offset - TAIL_BYTES)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(offset - start)
