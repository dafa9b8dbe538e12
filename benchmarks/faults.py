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
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from common import command, fresh_folder, machine
from faults_checks import DAMAGED, WAYS, examined, listed, verify
from faults_driven import (
    DEADLINE,
    MOMENTS,
    SETTINGS,
    TRAININGS,
    VICTIMS,
    Driver,
    cast_quietly,
    rows,
    training_of,
)
from faults_page import page

from persona_lab.engine import Engine
from persona_lab.events import Started, read_events
from persona_lab.home import write_atomic
from persona_lab.jobs import worker_process
from persona_lab.testing import make_tiny_model
from persona_lab.types import now

FULL = ("train", "train", "import", "vote", "export")
FULL_POINTS = 20
FULL_SECONDS = 40.0
SMALL_DISK = 96 * 2**20
CHECKPOINT = "runs/*/checkpoints/*/step-*/state.safetensors"


def planned(count: int) -> list[tuple[str, str, int]]:
    """(victim, operation, salt) of `count` moments a victim, one cell after the other so that each grows alike."""
    plan: list[tuple[str, str, int]] = []
    for number in range(count):
        for victim, operations in VICTIMS.items():
            operation = operations[number % len(operations)]
            plan.append((victim, operation, 1 + number // len(operations)))
    return plan


class Campaign:
    """One campaign, with its results.

    Args:
        work: an empty folder for homes.
    """

    def __init__(self, out: Path, work: Path, seed: int, minutes: float) -> None:
        self.file = out / "faults.json"
        self.document: dict[str, Any] = {"moments": [], "full": [], "damage": [], "sessions": []}
        if self.file.exists():
            self.document |= json.loads(self.file.read_text())
        if not all({"missing_after", "strategy"} & set(entry) for entry in self.document["damage"]):
            self.document["damage"] = []  # of a version that did not look at what is listed
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
            cast_quietly(engine)
        self.listed = listed(base)
        assert self.listed is not None
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

    def kills(self, count: int, only: Sequence[str] = ()) -> None:
        """`count` moments a victim, spread over what it does; those that are in the results are not done again."""
        homes: dict[tuple[str, str], Path] = {}
        for victim, operation, salt in planned(count):
            cell = (victim, operation)
            if (only and operation not in only) or salt <= len(self._cell(*cell)):
                continue
            if self.late():
                return
            if cell not in homes or len(list(homes[cell].glob("runs/*"))) > 12:
                homes[cell] = self.fresh("-".join(cell).replace(" ", "-"))
            chance = random.Random(f"{self.seed} {cell} {salt - 1}")
            found = self.moment(*cell, homes[cell], chance, salt)
            self.document["moments"].append({"victim": victim, "operation": operation, **found})
            print(json.dumps(self.document["moments"][-1]), flush=True)
            self.keep()

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
        return {**found, "strategy": _strategy(facts), "seconds": round(time.monotonic() - began, 1)}

    def _hit_page(self, driver: Driver, operation: str, chance: random.Random) -> None:
        if operation in ("import", "vote"):
            time.sleep(chance.uniform(0, 2.0))
            return
        driver.until("run")
        time.sleep(chance.uniform(0, 9.0))

    def _hit_worker(self, driver: Driver, home: Path, chance: random.Random) -> str:
        """Kill the worker that works when the moment has come; gives the phase that it was in."""
        self._working(driver, home)
        time.sleep(chance.uniform(0, 8.0))
        while True:
            run_id, worker = self._working(driver, home)
            phases = [e.title for e in read_events(home / "runs" / run_id / "events.jsonl")[0] if e.kind == "phase"]
            if _killed(worker):
                driver.until_ended(run_id)
                return phases[-1].replace(self.tiny, "the model") if phases else "Starting"

    def _working(self, driver: Driver, home: Path) -> tuple[str, psutil.Process]:
        """The newest run, and its worker, once it has one."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            run_id = driver.until("run")["run"]
            worker = worker_of(home / "runs" / run_id)
            if worker is not None:
                return run_id, worker
            time.sleep(0.02)
        raise RuntimeError(f"no worker within {DEADLINE:.0f} s")

    def _hit_chat(self, driver: Driver, chance: random.Random) -> None:
        end = time.monotonic() + DEADLINE
        while not _chat_workers(driver.process.pid) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 8.0))
        said = len([fact for fact in driver.read() if "said" in fact])
        killed = [_killed(worker) for worker in _chat_workers(driver.process.pid)]
        if not any(killed):
            raise RuntimeError("there was no chat worker to kill")
        while time.monotonic() < end:  # the reply that was being written says so, and the next message is answered
            after = [fact for fact in driver.read() if "said" in fact][said:]
            if any(fact["said"] for fact in after):
                return
            time.sleep(0.05)
        raise RuntimeError("no reply after the chat worker was killed")

    # --- full disks ----------------------------------------------------------------------------------

    def full_disks(self) -> None:
        """FULL_POINTS amounts of room, over training, import, votes and export."""
        done = {entry["point"] for entry in self.document["full"]}
        for point in sorted(set(range(FULL_POINTS)) - done):
            if self.late():
                return
            with small_disk(self.work / "small") as folder:
                if folder is None:
                    print("no small file system can be mounted here: the part `full` is left out", flush=True)
                    return
                self.document["full"].append(self._full(point, folder))
            print(json.dumps(self.document["full"][-1]), flush=True)
            self.keep()

    def _full(self, point: int, folder: Path) -> dict[str, Any]:
        """Leave so much room, do one thing, give the room back and compare."""
        operation = FULL[point % len(FULL)]
        free = int(10 ** random.Random(f"{self.seed} full {point}").uniform(2, 6.3))
        shutil.copytree(self.base, folder / "home")
        ballast = folder / "ballast"
        _fill(ballast, free)
        driver = Driver(folder / "home", operation, self.tiny, 1 + point)
        stop = time.monotonic() + FULL_SECONDS
        while time.monotonic() < stop and driver.process.poll() is None:
            if any("ended" in fact for fact in driver.read()):
                break
            time.sleep(0.1)
        driver.errors.seek(0)
        said = driver.errors.read().decode(errors="replace").strip().splitlines()
        facts = driver.kill()
        ballast.unlink()
        found = verify(folder / "home", facts, resume=True)
        what = {"point": point, "operation": operation, "strategy": _strategy(facts), "free_bytes": free}
        return {**what, "said": (said or [""])[-1][:160], **found}

    # --- damaged files -------------------------------------------------------------------------------

    def damage(self) -> None:
        """Every kind of file, damaged in four ways; then the doctor, and everything else must be there."""
        done = {(entry["file"], entry["how"], entry.get("strategy", "")) for entry in self.document["damage"]}
        for pattern, how in ((pattern, how) for pattern in DAMAGED for how in WAYS):
            if (pattern, how, "") in done or self.late():
                continue
            home = self.fresh("damage")
            path = next(home.glob(pattern))
            WAYS[how](path)
            self._damaged(pattern, how, examined(home, path.relative_to(home), self.listed))
        for salt, how in ((salt, how) for salt in range(len(TRAININGS)) for how in WAYS):
            if (CHECKPOINT, how, training_of(salt)[0]) not in done and not self.late():
                self._damaged(CHECKPOINT, how, self._checkpoint(salt, WAYS[how]))

    def _damaged(self, pattern: str, how: str, found: dict[str, Any]) -> None:
        self.document["damage"].append({"file": pattern, "how": how, **found})
        print(json.dumps(self.document["damage"][-1]), flush=True)
        self.keep()

    def _checkpoint(self, salt: int, wreck: Callable[[Path], None]) -> dict[str, Any]:
        """A training is killed after two checkpoints, the newer one is damaged, and the training is resumed."""
        home = self.fresh("checkpoint")
        driver = Driver(home, "train", self.tiny, salt)
        folder = home / "runs" / driver.until("run")["run"]
        end = time.monotonic() + DEADLINE
        while not (two := _two_checkpoints(folder)) and time.monotonic() < end:
            time.sleep(0.01)
        worker = worker_of(folder)
        if not two or worker is None or not _killed(worker):
            driver.kill()
            raise RuntimeError("the training was over before two of its checkpoints were seen")
        facts = driver.kill()
        time.sleep(0.3)
        wreck((_two_checkpoints(folder) or two)[-1])
        found = verify(home, facts, resume=True)
        said = [e.message for e in read_events(folder / "events.jsonl")[0] if e.kind == "log"]
        named = any("is damaged" in message and "passed over" in message for message in said)
        gone_on = any("Resumed stage" in message for message in said)
        return {**found, "strategy": training_of(salt)[0], "named": named, "gone_on": gone_on}


def _strategy(facts: list[dict[str, Any]]) -> str:
    """What was trained last; empty: nothing was."""
    return next((fact["strategy"] for fact in reversed(facts) if "strategy" in fact), "")


def _killed(process: psutil.Process) -> bool:
    """kill -9; whether it was still there to be killed (psutil looks at its start, so it is no other by now)."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def worker_of(folder: Path) -> psutil.Process | None:
    """The process that works on a run now: the number in its log may be another's by now."""
    started = [event for event in read_events(folder / "events.jsonl")[0] if isinstance(event, Started)]
    return worker_process(started[-1]) if started else None


def _chat_workers(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        try:
            if "persona_lab.inference.chat_worker" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def _two_checkpoints(folder: Path) -> list[Path]:
    """The weights of the newest two whole checkpoints of the stage that a run is in, the newest last; else nothing."""
    stages = sorted(folder.glob("checkpoints/*"), key=lambda stage: stage.stat().st_mtime)
    whole = sorted(stages[-1].glob("step-*/valid.json"))[-2:] if stages else []
    return [path.with_name("state.safetensors") for path in whole] if len(whole) == 2 else []


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


def main() -> None:
    """Go on with the campaign; prints the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=MOMENTS, help="moments for each of the three that are killed")
    parser.add_argument("--parts", nargs="+", default=["damage", "full", "kill"], choices=["kill", "full", "damage"])
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so long; go on with the same --out")
    parser.add_argument("--only", nargs="+", default=[], help="of `kill`: only while it does these (train, vote, ...)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="where to make a folder for homes; default: the temporary files")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with fresh_folder("persona-lab-faults-", given.work) as work:
        campaign = Campaign(given.out, work, given.seed, given.minutes)
        if "damage" in given.parts:
            campaign.damage()
        if "full" in given.parts:
            campaign.full_disks()
        if "kill" in given.parts:
            campaign.kills(given.n, given.only)
        campaign.keep()
    sys.stdout.write(page(campaign.document))


if __name__ == "__main__":
    main()
