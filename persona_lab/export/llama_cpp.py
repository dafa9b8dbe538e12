"""A GGUF file in llama.cpp itself, through `xllamacpp` (extra `gguf`): greedy replies, log-likelihoods, its tokens.

Takes token ids, so that what is compared is the model and not two ways to write a prompt. On the CPU, in full precision
where there is a choice.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lab.errors import BadModel

FORCE = 1000
"""A bias that decides which token is drawn."""
TIMEOUT_SECONDS = 1800
"""For a whole prompt and its reply, of a large model on a slow machine."""


def available() -> bool:
    """Whether llama.cpp can be had here."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A GGUF file, loaded.

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

    def greedy(self, prompt: Sequence[int], length: int) -> list[int]:
        """The likeliest continuation as ids; an end of turn may be the last of them."""
        said: list[int] = self._complete(prompt, n_predict=length, return_tokens=True)["tokens"]
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
        answer = self._complete(prompt, n_predict=1, n_probs=candidates, logit_bias=[[token, FORCE]])
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
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
        try:
            with direct.open(request, timeout=TIMEOUT_SECONDS) as reply:
                return json.loads(reply.read())
        except OSError as error:  # refused, out of time, gone
            said = (
                error.read(500).decode("utf-8", "replace") if isinstance(error, urllib.error.HTTPError) else str(error)
            )
            raise BadModel(f"llama.cpp does not answer: {said}.", "Export with --no-check, or report this.") from error
