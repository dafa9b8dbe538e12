"""Runs and their workers: starts one subprocess a run, watches it, stops it politely then firmly, queues the rest.

A run's state is never stored: it is derived from its folder (job.json, events.jsonl, cancel, exit.json) and from
whether its process lives. So a page that was killed finds its runs again, and a reader needs no lock.
The supervisor does not read or write the library; the engine does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from persona_lab.errors import BadInput, UnknownName
from persona_lab.events import AnyEvent, Done, Failed, LogStates, Started, read_events
from persona_lab.formats import upgraded, written
from persona_lab.home import Home, disk_errors, write_atomic
from persona_lab.preferences import read_preferences
from persona_lab.processes import birth, oom_kills, own_group, worker_environment
from persona_lab.queueing import in_order, moved, read_order, write_order
from persona_lab.training.remedies import CHEAPER
from persona_lab.types import Change, Job, RunStatus, RunView, Variant, now

POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0
EXIT_DISK_FULL = 28
EXIT_TAKEN = 75
ACTIVE: tuple[RunStatus, ...] = ("queued", "running")

OnEvent = Callable[[RunView, AnyEvent], None]


def read_job(folder: Path) -> Job:
    """The job of a run's folder.

    Raises:
        UnknownName: there is no such run.
    """
    path = folder / "job.json"
    if not path.exists():
        known = [p.parent.name for p in folder.parent.glob("*/job.json")] if folder.parent.is_dir() else []
        raise UnknownName("run", folder.name, known)
    return moved_here(upgraded("job", path.read_bytes(), Job), folder.parent.parent)


def moved_here(job: Job, root: Path) -> Job:
    """The job of a home that lies elsewhere now than when it was written (moved, or put back from a backup)."""
    if Path(job.home) == root:
        return job

    def here(path: str) -> str:
        inside = path and Path(path).is_relative_to(job.home)
        return str(root / Path(path).relative_to(job.home)) if inside else path

    def known(variant: Variant) -> Variant:
        return variant.model_copy(update={"path": here(variant.path), "steering": here(variant.steering)})

    persona = job.persona
    if persona is not None and persona.avatar:
        persona = persona.model_copy(update={"avatar": here(persona.avatar)})
    return job.model_copy(
        update={
            "home": str(root),
            "persona": persona,
            "dataset": here(job.dataset),
            "variants": tuple(known(variant) for variant in job.variants),
            "parent_datasets": tuple(here(path) for path in job.parent_datasets),
        }
    )


def worker_process(started: Started) -> psutil.Process | None:
    """The live worker that wrote this record, or None. A reused pid is told apart by when its process began."""
    try:
        process = psutil.Process(started.pid)
        # the second way is for records written before `birth` was
        same = birth(process) == started.birth if started.birth else abs(process.create_time() - started.created) <= 2
        if not same or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    return process


_LOGS = LogStates()


def view(folder: Path, exit_record: dict[str, Any] | None = None) -> RunView:
    """The state of a run, derived from its folder.

    Args:
        folder: the run's folder.
        exit_record: what the supervisor knows of the process's end, where exit.json could not be written.
    """
    job = read_job(folder)
    log = _LOGS.state(folder / "events.jsonl")
    step, terminal = log.step, log.terminal
    ended = exit_record or _exit_record(folder / "exit.json")
    status, cause, message, fix = _status(folder, log.started, terminal, ended)
    return RunView(
        id=job.id,
        kind=job.kind,
        name=job.name,
        status=status,
        cause=cause,
        message=message,
        fix=fix,
        persona=job.persona.id if job.persona else "",
        strategy=job.strategy,
        base=job.base,
        dataset=job.dataset_id,
        seed=job.seed,
        created=job.created,
        started=log.first,
        finished=terminal.time if terminal else "",
        phase=log.phase,
        step=step.step if step else 0,
        total=step.total if step else 0,
        eta_seconds=step.eta_seconds if step and status == "running" else None,
        attempt=log.attempt,
        resumable=status in ("interrupted", "cancelled", "failed"),
        directory=str(folder),
        config=job.config,
        result=terminal.result if isinstance(terminal, Done) else {},
        ending=status == "running" and (folder / "keep").exists(),
    )


def _exit_record(path: Path) -> dict[str, Any] | None:
    """How the supervisor saw the worker end; a damaged record counts as one that says nothing."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _status(
    folder: Path, started: Started | None, terminal: Done | Failed | None, ended: dict[str, Any] | None
) -> tuple[RunStatus, str, str, str]:
    if isinstance(terminal, Done):
        return "done", "", "", ""
    if isinstance(terminal, Failed):
        status: RunStatus = "cancelled" if terminal.cause == "cancelled" else "failed"
        return status, terminal.cause, terminal.message, terminal.fix
    if started is not None and worker_process(started) is not None:
        return "running", "", "", ""
    if started is None and ended is None:
        cancelled = (folder / "cancel").exists()
        return ("cancelled", "cancelled", "Stopped before it began.", "") if cancelled else ("queued", "", "", "")
    return _abnormal(folder, started, ended or {})


def _abnormal(folder: Path, started: Started | None, ended: dict[str, Any]) -> tuple[RunStatus, str, str, str]:
    """The process is gone without a terminal record."""
    if (folder / "cancel").exists():
        return "cancelled", "cancelled", "Stopped, by force: the worker did not answer in time.", ""
    if ended.get("oom"):
        return "failed", "out_of_memory", "The system ended the worker because memory ran out.", cheaper(folder)
    if ended.get("returncode") == EXIT_DISK_FULL:
        return "failed", "disk_full", "The disk filled up during the run.", "Free some space, then resume the run."
    if started is None:
        tail = _tail(folder / "log.txt")
        return "failed", "bug", f"The worker could not start: {tail}", f"See {folder / 'log.txt'}."
    code = ended.get("returncode")
    signal_text = f" (signal {-code})" if isinstance(code, int) and code < 0 else ""
    message = f"The worker process is gone without a word{signal_text}: killed, or the machine went down."
    return "interrupted", "interrupted", message, f"Go on from where it was: persona-lab runs resume {folder.name}."


def _tail(path: Path, characters: int = 400) -> str:
    if not path.exists():
        return "no log was written."
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return (lines[-1] if lines else "the log is empty.")[-characters:]


def cheaper_change(folder: Path) -> Change | None:
    """The cheapest change of a run that memory was not enough for; None where none is known."""
    try:
        return Change.model_validate(json.loads((folder / CHEAPER).read_bytes())["changes"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def cheaper(folder: Path) -> str:
    """What to change of a run that memory was not enough for, for people."""
    try:
        told = str(json.loads((folder / CHEAPER).read_bytes())["told"])
    except (OSError, ValueError, KeyError, TypeError):
        told = ""
    if cheaper_change(folder) is not None:
        told += f" To start it so: persona-lab runs retry {folder.name}."
    return told or "Use a smaller batch_size or max_tokens, or `lora` instead of `full`."


def request_stop(folder: Path) -> None:
    """Write the run's cancel flag; the worker sees it at its next step."""
    with disk_errors(folder):
        (folder / "cancel").touch()


def ask_to_keep(run: RunView, folder: Path) -> None:
    """Write the run's keep flag: its training ends after the step in progress and keeps the best weights so far.

    Raises:
        BadInput: it is not a training in progress.
    """
    if run.kind != "train" or run.status != "running":
        raise BadInput(
            f"Run {run.id!r} cannot be ended with its best weights kept: it is {run.status} ({run.kind}).",
            "Only a training in progress can.",
        )
    with disk_errors(folder):
        (folder / "keep").touch()


def stop_worker(folder: Path, grace: float = GRACE_SECONDS) -> None:
    """Stop a run that any process started: flag, then TERM, then KILL to the worker's process group."""
    request_stop(folder)
    end_by_force(folder, grace)


def end_by_force(folder: Path, grace: float = GRACE_SECONDS) -> None:
    """Wait `grace` seconds for a worker that was asked to stop, then TERM, then KILL."""
    started = _last_started(folder)
    if started is None:
        return
    for wait, force in ((grace, signal.SIGTERM), (5.0, getattr(signal, "SIGKILL", signal.SIGTERM)), (5.0, None)):
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if worker_process(started) is None:
                return
            time.sleep(POLL_SECONDS / 2)
        if force is not None:
            _signal_group(started, force)


def _last_started(folder: Path) -> Started | None:
    records = [e for e in read_events(folder / "events.jsonl")[0] if isinstance(e, Started)]
    return records[-1] if records else None


def _signal_group(started: Started, number: signal.Signals) -> None:
    process = worker_process(started)
    if process is None:
        return
    try:
        if hasattr(os, "killpg"):
            os.killpg(started.pid, number)  # the worker leads its own group
        else:  # Windows has no groups of this kind: what the worker started is looked up
            for child in process.children(recursive=True):
                child.kill()
            process.kill()
    except (ProcessLookupError, psutil.NoSuchProcess):
        return


class Supervisor:
    """Starts queued runs one at a time and watches them; takes over live workers of an earlier page.

    Args:
        home: the data home.
        on_event: called from the supervisor's thread for every event of a watched run, in order.
        on_end: called once a run is over, after its last event.
        before_start: called before a heavy run starts (the engine frees the accelerator).
    """

    def __init__(
        self,
        home: Home,
        on_event: OnEvent | None = None,
        on_end: Callable[[str], None] | None = None,
        before_start: Callable[[], None] | None = None,
    ) -> None:
        self.home = home
        self._on_event = on_event
        self._on_end = on_end
        self._before_start = before_start
        self._queue: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._current: str | None = None
        self._offsets: dict[str, int] = {}
        self._exits: dict[str, dict[str, Any]] = {}
        self._pending: dict[str, int] = {}
        """Runs asked for whose worker has not spoken yet, with the number of attempts before."""
        self._order = home.root / "queue.json"
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    # --- asking ----------------------------------------------------------------------------------

    def submit(self, job: Job) -> str:
        """Write job.json and put the run into the queue; gives its id.

        Raises:
            DiskFull: nothing was started.
        """
        folder = self.home.run(job.id)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=False)
        write_atomic(folder / "job.json", written("job", job, indent=1))
        self._enqueue(job.id)
        return job.id

    def adopt(self) -> None:
        """After a restart: watch the worker that still runs, and queue what was waiting."""
        folders = sorted(self.home.root.glob("runs/*/job.json"), key=lambda path: path.stat().st_mtime)
        kept = read_order(self._order)
        waiting = []
        for folder in (path.parent for path in folders):
            try:
                run = view(folder)
            except (OSError, ValueError):  # job.json is damaged, or of a version we cannot read: the doctor names it
                continue
            # a resumed run's folder still tells of the attempt before
            resumed = folder.name in kept and run.resumable and not (folder / "cancel").exists()
            if run.status == "running" and self._current is None:
                self._current = folder.name
                self._ensure_thread()
            elif run.status == "queued" or resumed:
                waiting.append(folder.name)
        for run_id in in_order(kept, waiting):
            self._enqueue(run_id)

    def resume(self, run_id: str) -> None:
        """Queue a run again: a training goes on from its last valid checkpoint, an evaluation from the scores that were
        kept; everything else is done anew.

        Raises:
            BadInput: it is running or done.
        """
        folder = self.home.run(run_id)
        run = self.view(run_id)
        if not run.resumable:
            raise BadInput(f"Run {run_id!r} is {run.status} and cannot be resumed.", "Start a new one instead.")
        for flag in ("cancel", "keep"):
            (folder / flag).unlink(missing_ok=True)
        self._offsets[run_id] = read_events(folder / "events.jsonl")[1]
        self._enqueue(run_id)

    def stop(self, run_id: str) -> None:
        """Ask a run to stop; if it does not within the grace period it is ended by force. Returns at once."""
        folder = self.home.run(run_id)
        read_job(folder)
        with self._wake:
            if run_id in self._queue:
                self._queue.remove(run_id)
                self._pending.pop(run_id, None)
        self._keep_order()
        request_stop(folder)
        threading.Thread(target=end_by_force, args=(folder,), daemon=True).start()

    def view(self, run_id: str) -> RunView:
        """The state of a run.

        Raises:
            UnknownName
        """
        run = view(self.home.run(run_id), self._exits.get(run_id))
        with self._wake:
            waiting = run_id in self._queue
            before = self._pending.get(run_id)
        if before is None or run.attempt > before:
            return run
        # asked for, but its worker has not spoken yet: what the folder says is of the attempt before
        fresh = {
            "status": "queued" if waiting else "running",
            "message": "",
            "cause": "",
            "fix": "",
            "resumable": False,
        }
        return run.model_copy(update=fresh | {"finished": "", "phase": "Waiting" if waiting else "Starting"})

    def queued(self) -> list[str]:
        """Ids that wait, next first."""
        with self._wake:
            return list(self._queue)

    def move(self, run_id: str, by: int) -> list[str]:
        """Put a waiting run `by` places later (below 0: sooner); gives the new order.

        Raises:
            BadInput: it does not wait.
        """
        with self._wake:
            if run_id not in self._queue:
                raise BadInput(f"Run {run_id!r} does not wait in the queue.", "It may have begun meanwhile.")
            self._queue[:] = moved(self._queue, run_id, by)
        self._keep_order()
        return self.queued()

    def busy(self) -> str | None:
        """The id of the run in progress, or None."""
        return self._current

    def close(self) -> None:
        """Stop watching. A worker in progress goes on; the next page finds it."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        if self._process is not None:
            # still running on purpose; without this Python warns that it was not waited for
            self._process.returncode = self._process.poll() or 0

    # --- the thread ------------------------------------------------------------------------------

    def _enqueue(self, run_id: str) -> None:
        attempts = view(self.home.run(run_id)).attempt
        with self._wake:
            if run_id not in self._queue:
                self._queue.append(run_id)
                self._pending[run_id] = attempts
            self._wake.notify_all()
        self._keep_order()
        self._ensure_thread()

    def _keep_order(self) -> None:
        try:
            with self._wake:
                write_order(self._order, self._queue)
        except Exception as error:
            # a full disk must not keep a run from starting; after a restart the order is that of creation
            print(f"persona-lab: the order of the queue could not be kept: {error}", file=sys.stderr)

    def _ensure_thread(self) -> None:
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)
                self._thread.start()

    def _loop(self) -> None:
        while True:
            with self._wake:
                if self._closing:
                    return
                if self._current is None and not self._queue:
                    self._wake.wait()
                    continue
                if self._current is None:
                    self._current = self._queue.pop(0)
                    starting = self._current
                else:
                    starting = None
            if starting is not None:
                self._start(starting)
                self._keep_order()
            self._watch()

    def _start(self, run_id: str) -> None:
        folder = self.home.run(run_id)
        (folder / "exit.json").unlink(missing_ok=True)  # of the attempt before
        self._exits.pop(run_id, None)
        with self._wake:
            attempts = self._pending[run_id]
        if self._before_start is not None:
            self._before_start()
        try:
            with (folder / "log.txt").open("ab") as log:
                self._process = subprocess.Popen(
                    # -P: the user's current folder must not be able to shadow our modules
                    [sys.executable, "-P", "-m", "persona_lab.worker", str(folder), str(attempts)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=worker_environment(read_preferences(self.home.root).threads),
                    **own_group(),
                )
        except (OSError, BadInput) as error:  # BadInput: the settings of the home cannot be read
            full = getattr(error, "errno", None) == 28
            self._exits[run_id] = {"returncode": EXIT_DISK_FULL if full else 1, "error": str(error)}
            with self._wake:
                self._current = None
                self._pending.pop(run_id, None)
            self._end(run_id)

    def _watch(self) -> None:
        run_id = self._current
        if run_id is None:
            return
        time.sleep(POLL_SECONDS)
        over = self._over(run_id)  # asked before reading events, so that the last ones are not missed
        self._forward(run_id)
        if over and self._process is not None and self._process.returncode == EXIT_TAKEN:
            # a page that was killed had just started a worker of its own, which had not spoken when this page looked
            self._process = None
            return
        if over:
            self._record_exit(run_id)
            self._process = None
            with self._wake:
                self._current = None
                if run_id not in self._queue:  # it may have been resumed while its old process was ending
                    self._pending.pop(run_id, None)
            self._end(run_id)

    def _over(self, run_id: str) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        started = _last_started(self.home.run(run_id))  # a worker of an earlier page: not our child
        return started is None or worker_process(started) is None

    def _record_exit(self, run_id: str) -> None:
        code = self._process.returncode if self._process is not None else None
        started = _last_started(self.home.run(run_id))
        # the code of a worker that an earlier page started is not known
        memory = started is not None and oom_kills(started.oom_source) > started.oom_kills
        record = {"time": now(), "returncode": code, "oom": code in (-9, None) and memory}
        self._exits[run_id] = record
        try:
            write_atomic(self.home.run(run_id) / "exit.json", json.dumps(record))
        except Exception as error:
            # a full disk must not end the supervisor; the record is kept in memory and the events say the rest
            print(f"persona-lab: could not write exit.json of {run_id}: {error}", file=sys.stderr)

    def _forward(self, run_id: str) -> None:
        if self._on_event is None:
            return
        path = self.home.run(run_id) / "events.jsonl"
        events, self._offsets[run_id] = read_events(path, self._offsets.get(run_id, 0))
        if events:
            run = self.view(run_id)
            for event in events:
                self._on_event(run, event)

    def _end(self, run_id: str) -> None:
        if self._on_end is not None:
            self._on_end(run_id)
