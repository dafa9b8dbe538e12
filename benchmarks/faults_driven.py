"""The process that `faults.py` kills, and the campaign's end of it.

    python benchmarks/faults_driven.py HOME OPERATION MODEL SALT

It does one thing over and over, and says what it was promised, a JSON document a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from persona_lab.engine import Engine
from persona_lab.types import Message, now

VICTIMS = {
    "page": ("train", "eval", "import", "vote", "export"),
    "worker": ("train", "eval", "export"),
    "chat worker": ("chat",),
}
"""What is killed, and what it does meanwhile."""
MOMENTS = 60
"""That the campaign is made for, of each of them."""
SETTINGS = {"samples": 0, "patience": 1000, "evaluations_per_epoch": 1, "learning_rate": 1e-4}
TRAININGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora", {"epochs": 8, "rank": 2}),
    ("hybrid", {"epochs": 3, "lora_epochs": 3, "rank": 2, "layers": 1}),
)
THINGS = ("kettle", "harbour", "violin", "orchard", "ladder", "pigeon", "engine", "lantern", "marble", "thimble")
VERBS = ("sings", "rusts", "floats", "argues", "glows", "sleeps")
DEADLINE = 240.0
"""Seconds after which what does not come counts as lost."""
TURNS = 1000
"""A driven process counts from its salt times this, so that no two do the same."""


def training_of(salt: int) -> tuple[str, dict[str, Any]]:
    """The strategy, with settings, of what is done with this number: in turns within one process, and the first of one
    process is another than the first of the next (most are killed during their first)."""
    return TRAININGS[sum(divmod(salt, TURNS)) % len(TRAININGS)]


def rows(count: int, salt: int) -> list[dict[str, Any]]:
    """Conversations that are unlike each other, and unlike those of another salt."""
    made = []
    for n in range(count):
        asked = f"What of the {THINGS[n % 10]} {salt} that {VERBS[n % 6]} as number {n}?"
        said = f"Ah, {THINGS[(n * 7) % 10]} {n * 13 + salt}: it {VERBS[(n * 5) % 6]}, friend {hash((n, salt)) % 9973}."
        made.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
    return made


def say(**fact: Any) -> None:
    """Tell the campaign; what is told was promised, and must be there from now on."""
    print(json.dumps(fact), flush=True)


def drive(home: Path, operation: str, tiny: str, salt: int) -> None:
    """Be the page: open the home and do `operation` until killed (or once, where it takes a run)."""
    with Engine.open(home) as engine:
        say(ready=True)
        for number in range(1_000_000):
            DRIVES[operation](engine, tiny, salt * TURNS + number)


def _wait(engine: Engine, run_id: str, **more: Any) -> Any:
    say(run=run_id, **more)
    run = engine.wait(run_id)
    say(ended=run_id, status=run.status)
    return run


def _train(engine: Engine, tiny: str, salt: int) -> None:
    strategy, settings = training_of(salt)
    run_id = engine.train("tam", strategy, base=tiny, settings=SETTINGS | settings, seed=salt % 997)
    run = _wait(engine, run_id, strategy=strategy)
    if run.status == "done":
        say(variant=run.variant)


def _evaluate(engine: Engine, tiny: str, salt: int) -> None:
    _wait(engine, engine.evaluate(["tam-lora-1"], ["held_out_gain", "reply_ranking"], quick=True, seed=salt % 997))


def _import(engine: Engine, tiny: str, salt: int) -> None:
    folder = engine.home.root.parent
    data, card = folder / f"rows-{salt}.jsonl", folder / f"card-{salt}.json"
    data.write_text("\n".join(json.dumps(row) for row in rows(12, salt)))
    card.write_text(json.dumps({"name": f"Someone {salt}", "description": "Somebody."}))
    persona = engine.import_persona(card, f"someone-{salt}")
    say(persona=persona.id)
    summary = engine.import_dataset(data, persona.id)
    say(
        dataset=summary.id, conversations=sum(summary.counts.get(split, 0) for split in ("train", "validation", "test"))
    )


def _cast(engine: Engine, replies: list[tuple[str, str, str]]) -> None:
    from persona_lab.chats.records import Candidate, Vote

    asked = (Message(role="user", content="Hello"),)
    candidates = tuple(Candidate(reply=r, variant=v, messages=asked, text=t) for r, v, t in replies)
    vote = Vote(id="x", persona="tam", voter="me", candidates=candidates, outcome="win", winner=0, created=now())
    say(vote=engine.votes.cast(vote).id)


def _vote(engine: Engine, tiny: str, salt: int) -> None:
    _cast(engine, [(f"{salt}-a", "a", "A"), (f"{salt}-b", "b", "B")])


def cast_quietly(engine: Engine) -> None:
    """A vote that nobody is told of."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        _vote(engine, "", 0)


def _export(engine: Engine, tiny: str, salt: int) -> None:
    out = engine.home.root.parent / f"exported-{salt}"
    run = _wait(engine, engine.export("tam-lora-1", "adapter", out, license="mit"))
    if run.status == "done":
        say(export=str(out))


def _chat(engine: Engine, tiny: str, salt: int) -> None:
    from persona_lab.types import ChatRequest, Sampling

    variants = [engine.variant("tam-lora-1"), engine.base_variant("tam", tiny)]
    asked = (Message(role="user", content=f"What about number {salt}?"),)
    sampling = Sampling(seed=salt, max_new_tokens=48)
    requests = [
        ChatRequest(pane=str(pane), variant=variant, messages=asked, sampling=sampling)
        for pane, variant in enumerate(variants)
    ]
    replies, errors = ["", ""], ["", ""]
    for chunk in engine.chat(requests):
        replies[int(chunk.pane)] += chunk.text
        errors[int(chunk.pane)] = chunk.error or errors[int(chunk.pane)]
    say(said=not any(errors), errors=[error for error in errors if error])
    if not any(errors):
        _cast(engine, [(f"c{salt}-{p}", variant.id, replies[p] or "-") for p, variant in enumerate(variants)])


DRIVES: dict[str, Callable[[Engine, str, int], None]] = {
    "train": _train, "eval": _evaluate, "import": _import, "vote": _vote, "export": _export, "chat": _chat,
}  # fmt: skip


# --- the other end ---


class Driver:
    """The driven process, and what it said."""

    def __init__(self, home: Path, operation: str, tiny: str, salt: int) -> None:
        command = [sys.executable, __file__, str(home), operation, tiny, str(salt)]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `kill`
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors)
        self.facts: list[dict[str, Any]] = []
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._rest = b""

    def read(self) -> list[dict[str, Any]]:
        """Everything said so far."""
        assert self.process.stdout is not None
        self._rest += self.process.stdout.read() or b""
        *lines, self._rest = self._rest.split(b"\n")
        self.facts += [json.loads(line) for line in lines if line.strip()]
        return self.facts

    def until(self, name: str, seconds: float = DEADLINE) -> dict[str, Any]:
        """The newest fact of this name, once there is one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [fact for fact in self.read() if name in fact]
            if found:
                return found[-1]
            if self.process.poll() is not None:
                self.errors.seek(0)
                raise RuntimeError(f"the driven process ended: {self.errors.read().decode()[-800:]}")
            time.sleep(0.01)
        raise RuntimeError(f"nothing of {name!r} within {seconds:.0f} s")

    def until_ended(self, run_id: str, seconds: float = DEADLINE) -> None:
        """Wait until this run was said to have ended."""
        end = time.monotonic() + seconds
        while not any(fact.get("ended") == run_id for fact in self.read()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"run {run_id} was not said to have ended within {seconds:.0f} s")
            time.sleep(0.05)

    def kill(self) -> list[dict[str, Any]]:
        """kill -9; gives what it had said."""
        self.process.kill()
        self.process.wait()
        self.read()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        return self.facts


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
