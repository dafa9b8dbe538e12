"""The page's end of the chat worker: starts it when it is needed, hands its chunks on, survives its death.

Light: imports no torch. Thread-safe; requests are answered in the order in which they come.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from persona_lab.home import Home
from persona_lab.preferences import read_preferences
from persona_lab.processes import own_group, worker_environment
from persona_lab.types import ChatChunk, ChatRequest

MAX_LOG_BYTES = 1_000_000
TERM_SECONDS = 3.0
Replies = queue.Queue[dict[str, Any] | None]


class ChatClient:
    """One chat worker for one data home.

    The worker's log is `<home>/logs/chat.log`.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.log = home.root / "logs" / "chat.log"
        self._lock = threading.RLock()
        self._worker: _Worker | None = None
        self._numbers = itertools.count(1)
        self._closed = False

    def stream(self, requests: Sequence[ChatRequest], owner: str = "") -> Iterator[ChatChunk]:
        """Chunks of all panes as they come; each pane's last one has `done` with a stamp, or `error`.

        Args:
            owner: whose replies these are, for `cancel`.

        Leaving the loop early cancels what is left. Never raises for what goes wrong in the worker.
        """
        if not requests:
            return
        number = next(self._numbers)
        open_panes = {request.pane for request in requests}
        try:
            worker, replies = self._send(number, requests, owner)
        except OSError as error:
            yield from (ChatChunk(pane=p, error=f"The chat worker cannot be started: {error}.") for p in open_panes)
            return
        try:
            while (message := replies.get()) is not None and "end" not in message:
                chunk = ChatChunk.model_validate(message["chunk"])
                if chunk.done or chunk.error:
                    open_panes.discard(chunk.pane)
                yield chunk
            for request in requests:
                if request.pane in open_panes:
                    open_panes.discard(request.pane)
                    yield ChatChunk(pane=request.pane, error=worker.epitaph())
        finally:
            if worker.forget(number) and open_panes:
                worker.write({"cancel": number})

    def cancel(self, owner: str | None = None) -> None:
        """Stop the replies that are being written or wait, all or one owner's; their panes end with what they have."""
        with self._lock:
            if self._worker is not None:
                for number in self._worker.waiting(owner):
                    self._worker.write({"cancel": number})

    def close(self) -> None:
        """End the worker: ask, then TERM, then KILL. The client cannot be used afterwards."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def release(self) -> None:
        """End the worker to free its memory; the next request starts another."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def _send(self, number: int, requests: Sequence[ChatRequest], owner: str) -> tuple[_Worker, Replies]:
        with self._lock:
            if self._closed:
                raise OSError("the chat is closed")
            if self._worker is None or not self._worker.alive():
                self._worker = _Worker(self.home, self.log)
            replies = self._worker.expect(number, owner)
            message = {"id": number, "requests": [request.model_dump(mode="json") for request in requests]}
            self._worker.write(message)
            return self._worker, replies


class _Worker:
    """One worker process, with a thread that sorts what it says by request."""

    def __init__(self, home: Home, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        mode = "ab" if log.exists() and log.stat().st_size < MAX_LOG_BYTES else "wb"
        with log.open(mode) as errors:
            self._log, self._log_start = log, errors.tell()
            # -P: the user's current folder must not be able to shadow our modules
            command = [sys.executable, "-P", "-m", "persona_lab.inference.chat_worker", "--home", str(home.root)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=worker_environment(read_preferences(home.root).threads),
                **own_group(),
            )
        self._lock = threading.Lock()
        self._waiting: dict[int, Replies] = {}
        self._owners: dict[int, str] = {}
        self._gone = False
        self._stopped = False
        threading.Thread(target=self._listen, daemon=True, name="chat-worker-output").start()

    def alive(self) -> bool:
        return not self._gone and self._process.poll() is None

    def expect(self, number: int, owner: str) -> Replies:
        """Where the answers to request `number` will arrive; None there means that the worker is gone."""
        replies: Replies = queue.Queue()
        with self._lock:
            self._waiting[number] = replies
            self._owners[number] = owner
            if self._gone:
                replies.put(None)
        return replies

    def forget(self, number: int) -> bool:
        """Answers to `number` are not wanted any more; whether the worker can still be told so."""
        with self._lock:
            self._waiting.pop(number, None)
            self._owners.pop(number, None)
        return self.alive()

    def waiting(self, owner: str | None) -> list[int]:
        with self._lock:
            return [number for number in self._waiting if owner in (None, self._owners.get(number))]

    def write(self, message: dict[str, Any]) -> None:
        """Send a message. A worker that is gone is noticed by the listener, not here."""
        pipe = _pipe(self._process.stdin)
        with contextlib.suppress(OSError, ValueError), self._lock:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()

    def _listen(self) -> None:
        for line in _pipe(self._process.stdout):
            with contextlib.suppress(ValueError):  # half a line, from a worker that was killed
                message = json.loads(line)
                with self._lock:
                    replies = self._waiting.get(message["id"])
                if replies is not None:
                    replies.put(message)
        self._process.wait()
        _pipe(self._process.stdout).close()
        with self._lock:
            with contextlib.suppress(OSError):  # what was not sent cannot be sent any more
                _pipe(self._process.stdin).close()
            self._gone = True
            for replies in self._waiting.values():
                replies.put(None)

    def epitaph(self) -> str:
        """Why there is no reply, for people."""
        code = self._process.poll()
        if self._stopped:
            return "The chat was stopped."
        if code is None:
            return "The chat worker ended this reply without a word; see logs/chat.log in the data home."
        if code in (-9, 137):
            return (
                "The chat worker was killed, most likely because memory ran out. "
                "Compare fewer variants at once, or choose a smaller base model; the next message starts it again."
            )
        return f"The chat worker died (exit {code}): {self._last_words()} The next message starts it again."

    def _last_words(self) -> str:
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._log_start, self._log.stat().st_size - 4000))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError as error:
            return f"its log cannot be read ({error})."
        return " ".join(line.strip() for line in lines[-3:])[-500:] or "it said nothing."

    def stop(self) -> None:
        """Ask, then TERM, then KILL the process group."""
        self._stopped = True
        self.write({"cancel": None})
        self.write({"quit": True})
        with contextlib.suppress(OSError), self._lock:
            _pipe(self._process.stdin).close()
        for action in (None, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            if action is not None:
                _signal_group(self._process, action)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_SECONDS)
                return


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "both pipes were asked for"
    return pipe


def _signal_group(process: subprocess.Popen[bytes], action: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.terminate() if action == signal.SIGTERM else process.kill()
        else:
            os.killpg(process.pid, action)
