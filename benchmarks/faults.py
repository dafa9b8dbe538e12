"""The fault campaign: kill -9, full disks and damaged files, at random moments, and what is lost (nothing may be).

    python benchmarks/faults.py --n 60 --out docs [--parts kill full damage] [--minutes 30] [--seed 0] [--work DIR]

`kill`: the page, the worker of a run and the chat worker are each killed at `--n` random moments, spread over training
(lora and hybrid in turns), evaluation, import, votes, export and chat. `full`: a small file system (Linux, needs the
right to mount one) is left with 20 different amounts of room. `damage`: files are cut, emptied, zeroed and flipped.

After each moment the home is opened again and everything that was acknowledged before (datasets, votes, characters,
finished variants and exports) is read and compared; runs that were cut off must say so and finish when they are
resumed; then the doctor must find nothing that it does not mend. On a tiny random model, so that a moment takes
seconds. Results are written as they come, and what is there is not done again: give the same --out to go on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from persona_lab import checkup
from persona_lab.checkup import looking
from persona_lab.engine import Engine
from persona_lab.errors import PersonaLabError
from persona_lab.events import Started, read_events
from persona_lab.home import Home, write_atomic
from persona_lab.jobs import ACTIVE
from persona_lab.testing import make_tiny_model
from persona_lab.types import Message, now

VICTIMS = {
    "page": ("train", "eval", "import", "vote", "export"),
    "worker": ("train", "eval", "export"),
    "chat worker": ("chat",),
}
DEADLINE = 240.0
"""Seconds after which a run that does not end counts as lost."""
FULL_POINTS = 20
SMALL_DISK = 96 * 2**20
SETTINGS = {"samples": 0, "patience": 1000, "evaluations_per_epoch": 1, "learning_rate": 1e-4}
TRAININGS = (("lora", {"epochs": 8, "rank": 2}), ("hybrid", {"epochs": 3, "lora_epochs": 3, "rank": 2, "layers": 1}))
THINGS = ("kettle", "harbour", "violin", "orchard", "ladder", "pigeon", "engine", "lantern", "marble", "thimble")
VERBS = ("sings", "rusts", "floats", "argues", "glows", "sleeps")


# --- the process that is killed: does one thing over and over, and says what it was promised ------


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
            DRIVES[operation](engine, tiny, salt * 1000 + number)


def _wait(engine: Engine, run_id: str) -> Any:
    say(run=run_id)
    run = engine.wait(run_id)
    say(ended=run_id, status=run.status)
    return run


def _train(engine: Engine, tiny: str, salt: int) -> None:
    strategy, settings = TRAININGS[salt % len(TRAININGS)]
    run = _wait(engine, engine.train("tam", strategy, base=tiny, settings=SETTINGS | settings, seed=salt % 997))
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


# --- the campaign ---------------------------------------------------------------------------------


class Driver:
    """The driven process, and what it said."""

    def __init__(self, home: Path, operation: str, tiny: str, salt: int) -> None:
        command = [sys.executable, __file__, "--drive", str(home), operation, tiny, str(salt)]
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

    def kill(self) -> list[dict[str, Any]]:
        """kill -9; gives what it had said."""
        self.process.kill()
        self.process.wait()
        self.read()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        return self.facts


class Campaign:
    """One campaign, with its results.

    Args:
        work: a folder for homes; emptied before and after.
    """

    def __init__(self, out: Path, work: Path, seed: int, minutes: float) -> None:
        self.file = out / "faults.json"
        self.document: dict[str, Any] = {"moments": [], "full": [], "damage": [], "sessions": []}
        if self.file.exists():
            self.document |= json.loads(self.file.read_text())
        self.work, self.seed = work, seed
        self.end = time.monotonic() + 60 * minutes
        self.document["sessions"].append({"date": now()[:16], "machine": machine(), "command": command()})
        self.base = self._base()

    def _base(self) -> Path:
        """A home with a character, data, a finished variant and a vote; copied for each cell."""
        self.tiny = str(make_tiny_model(self.work / "tiny", "llama"))
        base = self.work / "base"
        card, data = self.work / "tam.json", self.work / "tam.jsonl"
        card.write_text(json.dumps({"name": "Tam", "description": "A mender of clocks."}))
        data.write_text("\n".join(json.dumps(row) for row in rows(24, 0)))
        with Engine.open(base) as engine:
            engine.import_persona(card, "tam")
            engine.import_dataset(data, "tam")
            run = engine.wait(engine.train("tam", "lora", base=self.tiny, settings=SETTINGS | {"epochs": 1, "rank": 2}))
            assert run.status == "done", run.message
            _cast_quietly(engine)
        return base

    def fresh(self, name: str) -> Path:
        """A copy of the base in a folder of its own."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base, folder / "home")
        return folder / "home"

    def keep(self) -> None:
        """Write what there is."""
        write_atomic(self.file, json.dumps(self.document, indent=1) + "\n")
        write_atomic(self.file.with_suffix(".md"), page(self.document))

    def late(self) -> bool:
        return time.monotonic() > self.end

    # --- kill -9 -------------------------------------------------------------------------------------

    def kills(self, count: int) -> None:
        """`count` moments a victim, spread over what it does, one after the other so that each cell grows alike."""
        plan = [
            (victim, operations[number % len(operations)])
            for number in range(count)
            for victim, operations in VICTIMS.items()
        ]
        homes: dict[tuple[str, str], Path] = {}
        done = {cell: len(self._cell(*cell)) for cell in set(plan)}
        for number, cell in enumerate(plan):
            if done[cell] > 0 and self._planned_before(plan, number) < len(self._cell(*cell)):
                continue
            if self.late():
                return
            if cell not in homes or len(list(homes[cell].glob("runs/*"))) > 12:
                homes[cell] = self.fresh("-".join(cell).replace(" ", "-"))
            moment = len(self._cell(*cell))
            chance = random.Random(f"{self.seed} {cell} {moment}")
            found = self.moment(*cell, homes[cell], chance, 1 + moment)
            self.document["moments"].append({"victim": cell[0], "operation": cell[1], **found})
            print(json.dumps(self.document["moments"][-1]), flush=True)
            self.keep()

    def _planned_before(self, plan: list[tuple[str, str]], number: int) -> int:
        return sum(1 for cell in plan[:number] if cell == plan[number])

    def _cell(self, victim: str, operation: str) -> list[dict[str, Any]]:
        return [m for m in self.document["moments"] if (m["victim"], m["operation"]) == (victim, operation)]

    def moment(self, victim: str, operation: str, home: Path, chance: random.Random, salt: int) -> dict[str, Any]:
        """Drive, kill, open again, compare; gives what happened."""
        began = time.monotonic()
        driver = Driver(home, operation, self.tiny, salt)
        where = ""
        try:
            driver.until("ready")
            if victim == "page":
                self._hit_page(driver, operation, chance)
            elif victim == "worker":
                where = self._hit_worker(driver, home, chance)
            else:
                self._hit_chat(driver, chance)
        finally:
            facts = driver.kill()
        found = verify(home, facts, resume=True)
        found["where"] = where or found.pop("where", "")
        return {**found, "seconds": round(time.monotonic() - began, 1)}

    def _hit_page(self, driver: Driver, operation: str, chance: random.Random) -> None:
        if operation in ("import", "vote"):
            time.sleep(chance.uniform(0, 2.0))
            return
        driver.until("run")
        time.sleep(chance.uniform(0, 9.0))

    def _hit_worker(self, driver: Driver, home: Path, chance: random.Random) -> str:
        run_id = driver.until("run")["run"]
        folder = home / "runs" / run_id
        end = time.monotonic() + DEADLINE
        while not (pids := _workers(folder)) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 8.0))
        phases = [e.title for e in read_events(folder / "events.jsonl")[0] if e.kind == "phase"]
        with _may_be_gone():
            os.kill(pids[-1], signal.SIGKILL)
        driver.until("ended")
        return phases[-1] if phases else "Starting"

    def _hit_chat(self, driver: Driver, chance: random.Random) -> None:
        end = time.monotonic() + DEADLINE
        while not (workers := _chat_workers(driver.process.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 8.0))
        said = len([fact for fact in driver.read() if "said" in fact])
        for worker in workers:
            with _may_be_gone():
                worker.kill()
        while time.monotonic() < end:  # the reply that was being written says so, and the next message is answered
            after = [fact for fact in driver.read() if "said" in fact][said:]
            if any(fact["said"] for fact in after):
                return
            time.sleep(0.05)
        raise RuntimeError("no reply after the chat worker was killed")

    # --- full disks ----------------------------------------------------------------------------------

    def full_disks(self) -> None:
        """FULL_POINTS amounts of room, over training, import, votes and export."""
        operations = ("train", "train", "import", "vote", "export")
        done = {entry["point"] for entry in self.document["full"]}
        for point in sorted(set(range(FULL_POINTS)) - done):
            if self.late():
                return
            operation = operations[point % len(operations)]
            chance = random.Random(f"{self.seed} full {point}")
            with small_disk(self.work / "small") as folder:
                if folder is None:
                    print("no small file system can be mounted here: the part `full` is left out", flush=True)
                    return
                shutil.copytree(self.base, folder / "home")
                free = int(10 ** chance.uniform(2, 6.3))
                ballast = folder / "ballast"
                _fill(ballast, free)
                driver = Driver(folder / "home", operation, self.tiny, 1 + point)
                stop = time.monotonic() + 40
                while time.monotonic() < stop and driver.process.poll() is None:
                    if any("ended" in fact for fact in driver.read()):
                        break
                    time.sleep(0.1)
                driver.errors.seek(0)
                said = driver.errors.read().decode(errors="replace").strip().splitlines()
                facts = driver.kill()
                ballast.unlink()
                found = verify(folder / "home", facts, resume=True)
            entry = {
                "point": point,
                "operation": operation,
                "free_bytes": free,
                "said": (said or [""])[-1][:160],
                **found,
            }
            self.document["full"].append(entry)
            print(json.dumps(entry), flush=True)
            self.keep()

    # --- damaged files -------------------------------------------------------------------------------

    def damage(self) -> None:
        """Every kind of file, damaged in four ways; then the doctor, and everything else must be there."""
        if self.document["damage"]:
            return
        for pattern in DAMAGED:
            for how, wreck in WAYS.items():
                home = self.fresh("damage")
                path = next(home.glob(pattern))
                wreck(path)
                entry = {"file": pattern, "how": how, **examined(home)}
                self.document["damage"].append(entry)
        for how, wreck in WAYS.items():
            entry = {"file": "runs/*/checkpoints/*/step-*/state.safetensors", "how": how, **self._checkpoint(wreck)}
            self.document["damage"].append(entry)
            print(json.dumps(entry), flush=True)
        self.keep()

    def _checkpoint(self, wreck: Callable[[Path], None]) -> dict[str, Any]:
        """A training is killed after two checkpoints, the newer one is damaged, and the training is resumed."""
        home = self.fresh("checkpoint")
        driver = Driver(home, "train", self.tiny, 0)
        folder = home / "runs" / driver.until("run")["run"]
        end = time.monotonic() + DEADLINE
        while len(list(folder.glob("checkpoints/*/step-*/valid.json"))) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(_workers(folder)[-1], signal.SIGKILL)
        facts = driver.kill()
        time.sleep(0.3)
        wreck(sorted(folder.glob("checkpoints/*/step-*/state.safetensors"))[-1])
        found = verify(home, facts, resume=True)
        said = [e.message for e in read_events(folder / "events.jsonl")[0] if e.kind == "log"]
        named = any("is damaged" in message and "passed over" in message for message in said)
        gone_on = any("Resumed stage" in message for message in said)
        return {**found, "named": named, "gone_on": gone_on}


def _cast_quietly(engine: Engine) -> None:
    from contextlib import redirect_stdout

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        _vote(engine, "", 0)


@contextmanager
def _may_be_gone() -> Iterator[None]:
    try:
        yield
    except (ProcessLookupError, psutil.NoSuchProcess):
        return


def _workers(folder: Path) -> list[int]:
    return [event.pid for event in read_events(folder / "events.jsonl")[0] if isinstance(event, Started)]


def _chat_workers(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        with _may_be_gone():
            if "persona_lab.inference.chat_worker" in child.cmdline():
                found.append(child)
    return found


# --- what must be there ---------------------------------------------------------------------------


def verify(home: Path, facts: list[dict[str, Any]], resume: bool) -> dict[str, Any]:
    """Open the home again, compare it with what was promised, and finish what was cut off.

    Returns:
        {"acknowledged", "lost": [...], "interrupted", "named", "resumed", "where", "mended"}
    """
    lost: list[str] = []
    result: dict[str, Any] = {"acknowledged": 0, "interrupted": 0, "named": 0, "resumed": 0, "where": ""}
    try:
        json.loads((home / "library.json").read_text())
    except (OSError, ValueError) as error:
        lost.append(f"library: {error}")
    try:
        with Engine.open(home) as engine:
            _settle(engine)
            runs = [run for run in engine.runs() if run.status not in ("done", *ACTIVE)]
            result["interrupted"] = len(runs)
            result["named"] = sum(bool(run.cause and run.message and run.fix) for run in runs)
            result["where"] = ", ".join(run.cause for run in runs)
            for run in runs if resume else ():
                engine.resume(run.id)
                ended = _ended(engine, run.id)
                if ended.status == "done":
                    result["resumed"] += 1
                else:
                    lost.append(f"run {run.id}: {ended.status} {ended.message}")
            lost += _missing(engine, facts)
    except (PersonaLabError, OSError, ValueError) as error:
        lost.append(f"the home does not open: {type(error).__name__}: {error}")
    looking.LEFTOVER_SECONDS = 0.0
    found = checkup.repair(Home(home), deep=True)
    left = checkup.examine(Home(home), deep=True)
    lost += [f"not mended: {f.path}: {f.what}" for f in left]
    lost += [f"damaged by the fault: {f.path}: {f.what}" for f in found if f.kind not in ("leftover", "run")]
    names = ("persona", "dataset", "vote", "variant", "export")
    result["acknowledged"] = sum(any(name in fact for name in names) for fact in facts) + 4
    return {**result, "mended": len(found), "lost": lost}


def _settle(engine: Engine) -> None:
    """Runs whose worker outlived the page, or that wait, come to their end."""
    for run in engine.runs():
        if run.status in ACTIVE:
            _ended(engine, run.id)


def _ended(engine: Engine, run_id: str) -> Any:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        run = engine.run(run_id)
        if run.status not in ACTIVE and (run.status != "done" or run.kind != "train" or run.variant):
            return run
        time.sleep(0.1)
    return engine.run(run_id)


def _missing(engine: Engine, facts: list[dict[str, Any]]) -> list[str]:
    """What was promised, or was in the base, and is not there."""
    missing = []
    personas = {persona.id for persona in engine.personas() if persona.installed}
    variants = {variant.id for variant in engine.variants()}
    votes, indexed = {vote.id for vote in engine.votes.all()}, {row["id"] for row in engine.library.all("votes")}
    if not votes:
        missing.append("the vote of the base")
    for fact in [{"persona": "tam"}, {"dataset": "tam-v1", "conversations": 24}, {"variant": "tam-lora-1"}, *facts]:
        if "persona" in fact and fact["persona"] not in personas:
            missing.append(f"persona {fact['persona']}")
        if "vote" in fact and not {fact["vote"]} <= votes & indexed:
            missing.append(f"vote {fact['vote']}")
        if "variant" in fact and fact["variant"] not in variants:
            missing.append(f"variant {fact['variant']}")
        if "dataset" in fact:
            count = len(engine.dataset(fact["dataset"]).conversations)
            if count != fact["conversations"]:
                missing.append(f"dataset {fact['dataset']}: {count} of {fact['conversations']} conversations")
        if "export" in fact and not _whole_export(Path(fact["export"])):
            missing.append(f"export {fact['export']}")
    # an export that was cut off is whole or not there
    for folder in engine.home.root.parent.glob("exported-*"):
        if not _whole_export(folder):
            missing.append(f"half an export in {folder}")
    return missing


def _whole_export(folder: Path) -> bool:
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = dict(reversed(line.split("  ", 1)) for line in lines)
        return bool(sums) and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == known for name, known in sums.items()
        )
    except OSError:
        return False


# --- full disks and damaged files -----------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of SMALL_DISK bytes; None where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    if (
        sys.platform != "linux"
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _fill(path: Path, leave: int) -> None:
    state = os.statvfs(path.parent)
    with path.open("wb") as file:
        left = max(0, state.f_bavail * state.f_frsize - leave)
        while left > 0:
            left -= file.write(b"x" * min(left, 1 << 20))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), max(1, len(content) // 7)):
        content[place] ^= 0x55
    path.write_bytes(content)


WAYS: dict[str, Callable[[Path], None]] = {
    "cut in half": _cut,
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "bytes flipped": _flip,
}
DAMAGED = (
    "library.json", "runs/*/events.jsonl", "runs/*/job.json", "runs/*/exit.json", "variants/*/variant.json",
    "personas/*/card.json", "personas/*/held_out.jsonl", "personas/*/datasets/*.jsonl",
    "personas/*/datasets/*.summary.json", "votes/*.json",
)  # fmt: skip


def examined(home: Path) -> dict[str, Any]:
    """What the doctor says of a damaged home, and whether it opens before and after."""
    opens = _opens(home)
    named = checkup.examine(Home(home), deep=True)
    before = {path.read_bytes() for path in home.rglob("*") if path.is_file()}
    done = checkup.repair(Home(home), deep=True)
    after = {path.read_bytes() for path in home.rglob("*") if path.is_file()}
    kept = all(content in after for content in before if content and not _replaced(content))
    left = [f.path for f in checkup.examine(Home(home), deep=True) if f.mendable]
    return {
        "opened_before": opens,
        "named": [f"{f.path}: {f.what}"[:160] for f in named],
        "mended": [f.done[:160] for f in done if f.done],
        "opened_after": _opens(home),
        "kept": kept,
        "lost": [f"not mended: {path}" for path in left] + ([] if _opens(home) else ["the home does not open"]),
    }


def _replaced(content: bytes) -> bool:
    """The library and its backup are rewritten at each opening; everything else that was there must still be there."""
    return content.lstrip().startswith(b'{"meta"') or content.isdigit()


def _opens(home: Path) -> bool:
    try:
        with Engine.open(home) as engine:
            engine.personas(), engine.datasets(), engine.variants(), engine.runs(), engine.votes.all(), engine.reports()
    except (PersonaLabError, ValueError, OSError):
        return False
    return True


# --- the page -------------------------------------------------------------------------------------


def machine() -> str:
    """What it ran on."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def command() -> str:
    """How it was started, without the folders of this machine."""
    hidden = {"--out", "--work"}
    shown = [a for n, a in enumerate(sys.argv[1:]) if a not in hidden and sys.argv[n] not in hidden]
    return " ".join(["python benchmarks/faults.py --out docs", *shown])


def page(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Faults",
        "",
        "What is lost when processes are killed, disks fill up and files are damaged, counted by",
        "[`benchmarks/faults.py`](../benchmarks/faults.py); every moment is in [faults.json](faults.json). Runs are of",
        "a tiny random model: what is tested is what is written and found again, not the model. It wrote this page.",
        "",
        *(f"- {s['date']} UTC: `{s['command']}` ({s['machine']})" for s in document["sessions"]),
        "",
        "## kill -9 at random moments",
        "",
        "*Acknowledged*: datasets, characters, votes, variants and exports that somebody had been told of, and those",
        "the home began with. *Cut off*: runs that the kill interrupted; each must say so (*named*) and come to its",
        "end when it is resumed (*resumed*). *Lost*: anything acknowledged that is gone or changed, a library that",
        "cannot be read, a run that cannot be resumed, or damage that the doctor does not mend.",
        "",
        "| killed | while it | moments | acknowledged | cut off | named | resumed | lost |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    total = [0] * 6
    for victim, operations in VICTIMS.items():
        for operation in operations:
            cell = [m for m in document["moments"] if (m["victim"], m["operation"]) == (victim, operation)]
            names = ("acknowledged", "interrupted", "named", "resumed")
            counts = [len(cell), *(sum(m[n] for m in cell) for n in names), sum(len(m["lost"]) for m in cell)]
            total = [a + b for a, b in zip(total, counts, strict=True)]
            lines.append(f"| {victim} | {operation} | {' | '.join(map(str, counts))} |")
    lines += [f"| **all** | | {' | '.join(f'**{n}**' for n in total)} |", ""]
    places: dict[str, int] = {}
    for moment in document["moments"]:
        if moment["victim"] == "worker":
            places[moment["where"]] = places.get(moment["where"], 0) + 1
    if places:
        told = ", ".join(f"{name} ({count})" for name, count in sorted(places.items(), key=lambda p: -p[1]))
        lines += [f"Workers were killed in these phases: {told}.", ""]
    lines += ["## Full disks", ""]
    if document["full"]:
        lines += [
            "A file system with so much room left; afterwards the room is given back, and what was cut off is resumed.",
            "",
            "| bytes left | while it | cut off, as | resumed | lost |",
            "|--:|---|---|--:|--:|",
        ]
        for m in sorted(document["full"], key=lambda m: (m["operation"], m["free_bytes"])):
            what = m["where"] or ("refused" if m["said"] else "went well")
            lines.append(f"| {m['free_bytes']:,} | {m['operation']} | {what} | {m['resumed']} | {len(m['lost'])} |")
        lines += [""]
    else:
        lines += ["Not run yet.", ""]
    lines += ["## Damaged files", ""]
    if document["damage"]:
        lines += [
            "Each damage is made in a fresh home; then `persona-lab doctor`, then `doctor --repair`. *Opens*: the home",
            "opens and lists everything else, before and after the repair. *Kept*: the bytes of every other file, and",
            "of the damaged one, are still in the home.",
            "",
            "| file | damage | opens | named | repaired | kept | lost |",
            "|---|---|---|---|---|---|--:|",
        ]
        for m in document["damage"]:
            if "gone_on" in m:
                cells = ("yes", _yes(m["named"]), f"passed over, {m['resumed']} resumed", "yes")
            else:
                opens = f"{_yes(m['opened_before'])}, {_yes(m['opened_after'])}"
                cells = (opens, _yes(m["named"]), _yes(m["mended"]), _yes(m["kept"]))
            lines.append(f"| `{m['file']}` | {m['how']} | {' | '.join(cells)} | {len(m['lost'])} |")
        lines += [""]
    else:
        lines += ["Not run yet.", ""]
    lost = [entry for part in ("moments", "full", "damage") for m in document[part] for entry in m["lost"]]
    lines += ["## What was lost", "", *([f"- {entry}" for entry in lost] or ["Nothing."])]
    return "\n".join(lines) + "\n"


def _yes(value: object) -> str:
    return "yes" if value else "no"


def main() -> None:
    if sys.argv[1:2] == ["--drive"]:
        drive(Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60, help="moments for each of the three that are killed")
    parser.add_argument("--parts", nargs="+", default=["damage", "full", "kill"], choices=["kill", "full", "damage"])
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so long; go on with the same --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="a folder for homes; default: a temporary one")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    work = given.work or Path(tempfile.mkdtemp(prefix="persona-lab-faults-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        campaign = Campaign(given.out, work, given.seed, given.minutes)
        if "damage" in given.parts:
            campaign.damage()
        if "full" in given.parts:
            campaign.full_disks()
        if "kill" in given.parts:
            campaign.kills(given.n)
        campaign.keep()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(page(campaign.document))


if __name__ == "__main__":
    main()
