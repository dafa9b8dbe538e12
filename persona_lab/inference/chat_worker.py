"""`python -m persona_lab.inference.chat_worker --home DIR`: the long-lived process that answers in the chat.

JSON lines on standard input: {"id", "requests": [ChatRequest]}, {"cancel": id or null}, {"quit": true}.
JSON lines on standard output: {"id", "chunk": ChatChunk} as text is written, then {"id", "end": true}.
Logs, and whatever libraries print, go to standard error. An error ends one pane, never the process; the end of
standard input ends it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput, OutOfMemory, PersonaLabError
from persona_lab.home import Home
from persona_lab.inference.blending import in_use
from persona_lab.inference.decoding import DecodingMemory, Generated, generate
from persona_lab.inference.fast_linear import PackedWeights, Weights, worth_packing
from persona_lab.inference.kv_cache import PrefixCache
from persona_lab.inference.loading import VariantHost
from persona_lab.inference.prompting import prompt_of
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.types import ChatChunk, ChatRequest, Stamp, Variant

MAX_BASES = 2
LAST_BREATH_SECONDS = 10.0


class LogReporter:
    """A reporter that writes to standard error; nobody can cancel through it."""

    def phase(self, title: str, total: int | None = None) -> None:
        print(title, file=sys.stderr, flush=True)

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        """Progress of a fetch is not worth a log line each time."""

    def log(self, message: str, level: str = "info") -> None:
        print(message, file=sys.stderr, flush=True)


@dataclass
class _Served:
    """A base in memory, with all that is needed to answer from it, and what earlier answers computed."""

    host: VariantHost
    renderer: ChatRenderer
    prefixes: PrefixCache = field(default_factory=PrefixCache)
    packed: dict[Weights, PackedWeights] = field(
        default_factory=lambda: {"native": PackedWeights(), "int8": PackedWeights("int8")}
    )

    def memory(self, model: Any, requests: Sequence[ChatRequest]) -> DecodingMemory:
        """What may be reused for these requests, all of the same `weights`.

        Raises:
            BadInput: int8 was asked for and this model cannot have it.
        """
        weights = requests[0].weights
        worth = worth_packing(model)
        if weights == "int8" and (not worth or any(request.variant.quantization for request in requests)):
            raise BadInput(
                "int8 weights are for bf16 models of up to 1 GB on a CPU, which this is not.", "Switch int8 off."
            )
        keys = [f"{weights} {self.host.weights_key(request.variant)}" for request in requests]
        return DecodingMemory(self.packed[weights] if worth else None, self.prefixes, keys)


class ChatWorker:
    """Answers requests, one list of panes at a time; keeps up to two bases in memory."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.machine = worker_machine(home.root)
        self._served: OrderedDict[str, _Served] = OrderedDict()

    def answer(
        self, requests: Sequence[ChatRequest], emit: Callable[[ChatChunk], None], should_stop: Callable[[], bool]
    ) -> None:
        """Stream a reply for each request; panes that can share a batch do, the others come after one another.

        Args:
            emit: takes each chunk as it comes.
            should_stop: asked before every token, and before anything is loaded.
        """
        if should_stop():
            _leave_unsaid(requests, emit)
            return
        requests = self._blended(requests, emit)
        for base in dict.fromkeys(request.variant.base for request in requests):
            mine = [request for request in requests if request.variant.base == base]
            with self._errors_to(mine, emit):
                if should_stop():
                    _leave_unsaid(mine, emit)
                    continue
                # the host is not held here: where memory runs out it has to go before the next one is loaded
                groups = self._groups(self._serve(base).host, mine, emit)
                for group in groups:
                    self._answer_group(base, group, emit, should_stop)

    def _answer_group(
        self,
        base: str,
        group: Sequence[ChatRequest],
        emit: Callable[[ChatChunk], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """One batch; if it fails before anybody spoke, each pane alone, so that one cannot take the others down."""
        heard = _Heard(emit)
        if len(group) > 1:
            try:
                self._decode_with_room(base, group, heard, should_stop)
                return
            except BrokenPipeError:
                raise
            except Exception as error:
                if heard.anything:
                    with self._errors_to(group, emit):
                        raise
                    return
                short = isinstance(error, OutOfMemory)
                print(f"One pane at a time, since together they failed: {error!r}", file=sys.stderr, flush=True)
            if short:  # only now that the error, which holds on to all that it came through, is gone
                self._drop(list(self._served))
        for request in group:
            with self._errors_to([request], emit):
                self._decode_with_room(base, [request], emit, should_stop)

    def _decode_with_room(
        self,
        base: str,
        group: Sequence[ChatRequest],
        emit: Callable[[ChatChunk], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """`_decode`; where memory runs out before anybody spoke, once more without the other bases."""
        if should_stop():
            _leave_unsaid(group, emit)
            return
        heard = _Heard(emit)
        try:
            self._decode(self._serve(base), group, heard, should_stop)
            return
        except OutOfMemory as error:
            others = [other for other in self._served if other != base]
            if heard.anything or not others:
                raise
            print(f"Once more without {', '.join(others)}: {error}", file=sys.stderr, flush=True)
        self._drop(others)
        self._decode(self._serve(base), group, emit, should_stop)

    def _drop(self, bases: Sequence[str]) -> None:
        """Let go of these bases, and of what is left of those before them."""
        for base in bases:
            del self._served[base]
        gc.collect()  # what peft and transformers wrap refers to itself

    def _blended(self, requests: Sequence[ChatRequest], emit: Callable[[ChatChunk], None]) -> list[ChatRequest]:
        """The requests with the adapter of each variant's blend in place of its saved one."""
        ready = []
        for request in requests:
            with self._errors_to([request], emit):
                ready.append(request.model_copy(update={"variant": in_use(request.variant, self.home)}))
        return ready

    def _serve(self, base: str) -> _Served:
        if base not in self._served:
            self._drop(list(self._served)[: max(0, len(self._served) + 1 - MAX_BASES)])
            info = registry.ensure(base, self.home, LogReporter())
            self._served[base] = _Served(VariantHost(info, self.machine, self.home), ChatRenderer(Path(info.path)))
        self._served.move_to_end(base)
        return self._served[base]

    def _groups(
        self, host: VariantHost, requests: Sequence[ChatRequest], emit: Callable[[ChatChunk], None]
    ) -> list[list[ChatRequest]]:
        """Requests that one batch can answer, together."""
        groups: list[list[ChatRequest]] = []
        for request in requests:
            with self._errors_to([request], emit):
                # its own files are gone, or its trait was never computed: its own error, not that of the next pane
                host.mixable([request.variant])
                host.shift_of(request.variant)
                for group in groups:
                    alike = group[0].weights == request.weights
                    if alike and host.mixable([r.variant for r in [*group, request]]):
                        group.append(request)
                        break
                else:
                    groups.append([request])
        return groups

    def _decode(
        self,
        served: _Served,
        group: Sequence[ChatRequest],
        emit: Callable[[ChatChunk], None],
        should_stop: Callable[[], bool],
    ) -> None:
        variants = [request.variant for request in group]
        prompts = [prompt_of(request, served.renderer.takes_system_between) for request in group]
        with _active(served.host, variants) as (model, adapters):
            # named while the weights are in use, so that a stamp cannot speak of others
            stamps = [served.host.stamp_name(variant) for variant in variants]
            memory = served.memory(model, group)
            replies = generate(
                model,
                served.renderer,
                prompts,
                [request.sampling for request in group],
                on_token=lambda row, text: emit(ChatChunk(pane=group[row].pane, text=text)),
                should_stop=should_stop,
                adapter_names=adapters,
                memory=memory,
                shifts=[served.host.shift_of(variant) for variant in variants],
            )
        for request, adapter, reply in zip(group, stamps, replies, strict=True):
            cut = not reply.finished and reply.tokens < request.sampling.max_new_tokens and should_stop()
            emit(ChatChunk(pane=request.pane, done=True, stamp=_stamp(request, adapter, reply), stopped=cut))

    @contextmanager
    def _errors_to(self, requests: Sequence[ChatRequest], emit: Callable[[ChatChunk], None]) -> Iterator[None]:
        """The process border: whatever goes wrong inside becomes an error of these panes, and the worker lives."""
        try:
            yield
        except BrokenPipeError:
            raise  # nobody is left to tell
        except PersonaLabError as error:
            if isinstance(error, OutOfMemory):
                self._served.clear()  # the next request starts with empty memory
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - see above
            traceback.print_exc(file=sys.stderr)
            reason = f"The chat worker failed: {error!r}. Please report it with logs/chat.log of the data home."
        else:
            return
        for request in requests:
            emit(ChatChunk(pane=request.pane, error=reason))


def _active(host: VariantHost, variants: Sequence[Variant]) -> Any:
    """A context that gives (model, adapter names) for one group."""
    if host.mixable(variants):
        return host.model_for_batch(variants)
    return _alone(host, variants[0])


@contextmanager
def _alone(host: VariantHost, variant: Variant) -> Iterator[tuple[Any, None]]:
    """`model_for`, in the shape of `model_for_batch`."""
    with host.model_for(variant) as model:
        yield model, None


@dataclass
class _Heard:
    """Passes chunks on, and remembers whether there was one."""

    emit: Callable[[ChatChunk], None]
    anything: bool = False

    def __call__(self, chunk: ChatChunk) -> None:
        self.anything = True
        self.emit(chunk)


def _leave_unsaid(requests: Sequence[ChatRequest], emit: Callable[[ChatChunk], None]) -> None:
    """End these panes, which were stopped before any weights were in use: there is nothing to stamp."""
    for request in requests:
        emit(ChatChunk(pane=request.pane, done=True, stopped=True))


def _stamp(request: ChatRequest, adapter: str, reply: Generated) -> Stamp:
    return Stamp(
        variant=request.variant.id,
        adapter=adapter if request.weights == "native" else f"{adapter}, {request.weights} weights",
        base=request.variant.base,
        seed=request.sampling.seed,
        tokens=reply.tokens,
        seconds=reply.seconds,
        first_token_seconds=reply.first_token_seconds,
    )


# --- the process ----------------------------------------------------------------------------------


class _Mailbox(threading.Thread):
    """Reads standard input, so that a cancel is heard while a reply is being written."""

    def __init__(self, source: TextIO) -> None:
        super().__init__(daemon=True)
        self._source = source
        self.work: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancelled: set[Any] = set()
        self._latest: Any = None
        self.closed = threading.Event()

    def run(self) -> None:
        for line in self._source:
            try:
                message = json.loads(line)
            except ValueError:
                print(f"not a message: {line[:200]!r}", file=sys.stderr, flush=True)
                continue
            if "cancel" in message:
                self._cancelled.add(message["cancel"] if message["cancel"] is not None else self._latest)
            elif "quit" in message:
                break
            else:
                self._latest = message.get("id")
                self.work.put(message)
        self.closed.set()
        self.work.put(None)
        # loading a model cannot be interrupted politely
        timer = threading.Timer(LAST_BREATH_SECONDS, os._exit, [0])
        timer.daemon = True
        timer.start()

    def stopped(self, number: Any) -> bool:
        """Whether the request of this id is to end."""
        return self.closed.is_set() or number in self._cancelled


def _serve_forever(worker: ChatWorker, mailbox: _Mailbox, out: TextIO) -> None:
    def send(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    for message in iter(mailbox.work.get, None):
        number = message.get("id")
        try:
            requests = [ChatRequest.model_validate(request) for request in message.get("requests", ())]
        except ValidationError as error:
            print(f"not a request: {error}", file=sys.stderr, flush=True)
            requests = []
        worker.answer(requests, _sender(send, number), _asker(mailbox, number))
        send({"id": number, "end": True})


def _sender(send: Callable[[dict[str, Any]], None], number: Any) -> Callable[[ChatChunk], None]:
    return lambda chunk: send({"id": number, "chunk": chunk.model_dump(mode="json", exclude_defaults=True)})


def _asker(mailbox: _Mailbox, number: Any) -> Callable[[], bool]:
    return lambda: mailbox.stopped(number)


def _own_stdout() -> TextIO:
    """The real standard output; print() and libraries' prints go to standard error from here on."""
    real = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(real, "w", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="persona_lab.inference.chat_worker")
    parser.add_argument("--home", required=True)
    home = Home.resolve(parser.parse_args(arguments).home)
    out = _own_stdout()
    mailbox = _Mailbox(sys.stdin)
    mailbox.start()
    try:
        _serve_forever(ChatWorker(home), mailbox, out)
    except BrokenPipeError:
        return  # the page is gone


if __name__ == "__main__":
    main()
