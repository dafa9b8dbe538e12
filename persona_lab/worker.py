"""`python -m persona_lab.worker RUN_DIR [ATTEMPTS]`: does one run, and writes what it has to say to its event log.

A crash or out-of-memory here never takes the page down. Every way to fail is named in a terminal record. This is the
process border, so catching broadly is meant here.
"""

from __future__ import annotations

import errno
import importlib.metadata
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import psutil
from filelock import FileLock, Timeout

from persona_lab.errors import Cancelled, DiskFull, OutOfMemory, PersonaLabError, PluginFailed
from persona_lab.events import Done, Event, EventLog, Failed, Log, Phase, Started, Step, read_events
from persona_lab.home import Home
from persona_lab.jobs import EXIT_DISK_FULL, EXIT_TAKEN, cheaper, read_job
from persona_lab.plugins import Plugins
from persona_lab.processes import birth, oom_kills, oom_source, peak_memory
from persona_lab.training.remedies import CHEAPER
from persona_lab.types import Job

QUIET_SECONDS = 0.2
LOCK_SECONDS = 10.0
"""A worker that was just ended may need a moment to let go of its run."""
RESERVE_BYTES = 64 * 1024
PACKAGES = ("persona-lab", "torch", "transformers", "peft", "bitsandbytes")


class WorkerReporter:
    """Writes events; works out time left; raises `Cancelled` when the cancel flag is up."""

    def __init__(self, folder: Path, log: EventLog) -> None:
        self.folder = folder
        self._log = log
        self._begun = time.monotonic()
        self._first_step: int | None = None
        self._last = 0.0
        self.warnings: list[str] = []

    def emit(self, event: Event) -> None:
        """Append an event."""
        self._log.append(event)

    def phase(self, title: str, total: int | None = None) -> None:
        """Begin a part of the work."""
        self.check_cancelled()
        self._begun, self._first_step, self._last = time.monotonic(), None, 0.0
        self.emit(Phase(title=title, total=total))

    def step(self, step: int, total: int, **values: Any) -> None:
        """Report progress. Steps without a loss are thinned to a few a second."""
        self.check_cancelled()
        moment = time.monotonic()
        if self._first_step is None or step < self._first_step:
            # a resumed phase does not begin at 1; time left counts from what this process did itself
            self._first_step, self._begun = step, moment
        elif values.get("loss") is None and step < total and moment - self._last < QUIET_SECONDS:
            return
        self._last = moment
        done = step - self._first_step
        eta = (moment - self._begun) / done * (total - step) if done > 0 else None
        values.setdefault("memory_bytes", peak_memory())
        self.emit(Step(step=step, total=total, eta_seconds=eta, **values))

    def log(self, message: str, level: str = "info") -> None:
        """Say something to people."""
        self.emit(Log(message=message, level=level))

    def enough(self) -> bool:
        """Whether the user asked to end now and to keep the best weights so far."""
        return (self.folder / "keep").exists()

    def check_cancelled(self) -> None:
        """Raise Cancelled if the user asked to stop."""
        if (self.folder / "cancel").exists():
            raise Cancelled("Stopped on request.")


def run_job(job: Job, reporter: WorkerReporter, plugins: Plugins) -> dict[str, Any]:
    """Do the job; the rooms are imported only when needed, since they bring torch."""
    if job.kind == "train":
        from persona_lab.training.run import run as train

        return train(job, reporter, plugins)
    if job.kind == "evaluate":
        from persona_lab.evaluation.run import run as evaluate

        return evaluate(job, reporter, plugins)
    if job.kind == "export":
        from persona_lab.export.run import run as export

        return export(job, reporter, plugins)
    if job.kind == "calibrate":
        from persona_lab.training.calibrate import run as calibrate

        return calibrate(job, reporter)
    if job.kind == "prompts":
        from persona_lab.backtranslation import run as write_prompts

        return write_prompts(job, reporter)
    if job.kind == "traits":
        from persona_lab.traits.run import run as traits

        return traits(job, reporter)
    from persona_lab.models.registry import ensure

    return {"model": ensure(job.base, Home(Path(job.home)), reporter).model_dump(mode="json", exclude={"config"})}


def describe(error: BaseException, job: Job) -> Failed:
    """The terminal record for an error: a named cause, what happened, what to do."""
    details = error.details if isinstance(error, PluginFailed) else "".join(traceback.format_exception(error))
    known = _named(error, job)
    if known is not None:
        return Failed(cause=known.cause, message=known.message, fix=known.fix, details=details)
    return Failed(
        cause="bug",
        message=f"{type(error).__name__}: {error}",
        fix=f"This looks like a fault of ours. The traceback is in {Path(job.home) / 'runs' / job.id / 'log.txt'}.",
        details=details,
    )


def _named(error: BaseException, job: Job) -> PersonaLabError | None:
    text = str(error)
    if isinstance(error, OutOfMemory) and (Path(job.home) / "runs" / job.id / CHEAPER).is_file():
        return OutOfMemory(error.message, cheaper(Path(job.home) / "runs" / job.id))
    if isinstance(error, PersonaLabError):
        return error
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in text:
        return DiskFull(f"The disk that holds {job.home} is full.", "Free some space, then resume the run.")
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "can't allocate memory" in text or "not enough memory" in text:
        return OutOfMemory("Memory ran out.", cheaper(Path(job.home) / "runs" / job.id))
    return None


def _on_terminate(number: int, frame: Any) -> NoReturn:
    raise Cancelled("Stopped on request.")


def _reserve(folder: Path) -> Path:
    """Keep a little room on the disk, so that a full disk can still be reported."""
    path = folder / ".reserve"
    path.write_bytes(b"\0" * RESERVE_BYTES)
    return path


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(folder: Path, attempts: int | None = None) -> int:
    """Do the run in `folder`; gives the exit code. A second worker on the same run ends without touching it.

    Args:
        attempts: how many there were when this one was asked for. With more by now, another worker was started for the
            same reason (a page that was killed meanwhile may have done it), and this one leaves the run to it.
    """
    lock = FileLock(folder / ".worker.lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        print(f"Another worker is at work in {folder}.", file=sys.stderr)
        return EXIT_TAKEN
    try:
        made = sum(isinstance(event, Started) for event in read_events(folder / "events.jsonl")[0])
        if attempts is not None and made > attempts:
            print(f"Another worker has been at work in {folder} meanwhile.", file=sys.stderr)
            return EXIT_TAKEN
        return _work(folder, made + 1)
    finally:
        lock.release()


def _work(folder: Path, attempt: int) -> int:
    job = read_job(folder)
    signal.signal(signal.SIGTERM, _on_terminate)
    log = EventLog(folder / "events.jsonl")
    process, source = psutil.Process(), oom_source()
    log.append(
        Started(
            pid=process.pid,
            created=process.create_time(),
            birth=birth(process),
            oom_kills=oom_kills(source),
            oom_source=source,
            attempt=attempt,
            versions=_versions(),
        )
    )
    reporter = WorkerReporter(folder, log)
    reserve: Path | None = None
    try:
        reserve = _reserve(folder)
        plugins = Plugins.load(Home(Path(job.home)).plugins)
        result = run_job(job, reporter, plugins)
        log.append(Done(result=result))
    except (Exception, KeyboardInterrupt) as error:
        traceback.print_exc()
        if reserve is not None:
            reserve.unlink(missing_ok=True)
        return _fail(log, describe(error, job))
    reserve.unlink(missing_ok=True)
    return 0


def _fail(log: EventLog, failed: Failed) -> int:
    try:
        log.append(failed)
    except OSError:
        traceback.print_exc()  # the disk is so full that not even this fits: the exit code says it
    return EXIT_DISK_FULL if failed.cause == "disk_full" else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:3])))
