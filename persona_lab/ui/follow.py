"""Folds a run's event log into what the page shows, reading each byte of it once. Draws nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from persona_lab.events import AnyEvent, Failed, Log, Phase, Sample, Step, Validation

KEPT_RUNS = 16
KEPT_LINES = 400
MEASURED = ("learning_rate", "tokens_per_second", "memory_bytes")


@dataclass
class RunPicture:
    """What happened in a run so far. Losses are nats a token; keys are (stage, step), so a resumed run overwrites."""

    train: dict[tuple[str, int], float] = field(default_factory=dict)
    validation: dict[tuple[str, int], float] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    measures: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)
    """Learning rate, tokens a second and memory (bytes) of each step, by name."""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(level, text) of the log, oldest first."""
    last: Step | None = None
    details: str = ""
    """The traceback of a failure."""
    count: int = 0

    def add(self, events: Iterable[AnyEvent]) -> None:
        """Fold events in."""
        for event in events:
            self.count += 1
            self._add(event)

    def _add(self, event: AnyEvent) -> None:
        if isinstance(event, Step):
            self.last = event
            if event.loss is not None:
                self._stage(event.stage)
                self.train[event.stage, event.step] = event.loss
                for name in MEASURED:
                    value = getattr(event, name)
                    if value is not None:
                        self.measures.setdefault(name, {})[event.stage, event.step] = float(value)
        elif isinstance(event, Validation):
            self._stage(event.stage)
            self.validation[event.stage, event.step] = event.loss
        elif isinstance(event, Sample):
            self.samples.append(event)
        elif isinstance(event, Phase):
            self._say("phase", event.title)
        elif isinstance(event, Log):
            self._say(event.level, event.message)
        elif isinstance(event, Failed):
            self.details = event.details
            self._say("error", event.message)

    def _stage(self, stage: str) -> None:
        if stage not in self.stages:
            self.stages.append(stage)

    def _say(self, level: str, text: str) -> None:
        self.lines.append((level, text))
        del self.lines[:-KEPT_LINES]

    def measure(self, name: str) -> list[tuple[float, float]]:
        """(number of the step over all stages, value) of one of MEASURED."""
        values = self.measures.get(name, {})
        order = sorted(values, key=lambda key: (self.stages.index(key[0]), key[1]))
        return [(float(number), values[key]) for number, key in enumerate(order)]

    def pairs(self) -> list[tuple[str, str, str]]:
        """(prompt, reply before training, newest reply): of the kept weights, once the training is over."""
        begun = next((sample.stage for sample in self.samples if sample.step == 0), None)
        before = {s.prompt: s.reply for s in self.samples if s.step == 0 and s.stage == begun}
        later = [s for s in self.samples if s.step]
        shown = [s for s in later if s.kept] or later
        after = {s.prompt: s.reply for s in shown if (s.stage, s.step) == (shown[-1].stage, shown[-1].step)}
        return [(prompt, before[prompt], reply) for prompt, reply in after.items() if prompt in before]

    def curves(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, str]]]:
        """(step, loss) of training and validation, stages laid end to end, and where each later stage begins."""
        train: list[tuple[float, float]] = []
        validation: list[tuple[float, float]] = []
        borders: list[tuple[float, str]] = []
        begin = 0
        for stage in self.stages:
            if begin:
                borders.append((begin, stage))
            mine = [(begin + s, loss) for (name, s), loss in sorted(self.train.items()) if name == stage]
            checks = [(begin + s, loss) for (name, s), loss in sorted(self.validation.items()) if name == stage]
            train += mine
            validation += checks
            begin = int(max([x for x, _ in mine + checks], default=begin))
        return train, validation, borders


class Follower:
    """Pictures of the runs being watched, shared by all browser sessions; safe to call from several threads.

    Args:
        read: `Engine.events`: (run id, byte offset) -> (events, new offset).
    """

    def __init__(self, read: Callable[[str, int], tuple[list[AnyEvent], int]]) -> None:
        self._read = read
        self._pictures: OrderedDict[str, tuple[RunPicture, int]] = OrderedDict()
        self._lock = threading.Lock()

    def picture(self, run_id: str) -> RunPicture:
        """What happened in the run up to now."""
        with self._lock:
            picture, offset = self._pictures.pop(run_id, (RunPicture(), 0))
            events, offset = self._read(run_id, offset)
            picture.add(events)
            self._pictures[run_id] = (picture, offset)
            while len(self._pictures) > KEPT_RUNS:
                self._pictures.popitem(last=False)
            return picture
