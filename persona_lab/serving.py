"""An OpenAI-compatible door to one variant: /v1/models and /v1/chat/completions, streamed or whole, behind a key.

For programs on this machine (SillyTavern and the like). Light: the chat worker holds the model. A request's system
messages are not used, since a variant brings its own system prompt; only the fields named in `_Asked` have an effect.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from persona_lab.access.bodies import small_body
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput
from persona_lab.inference.prompting import messages_for
from persona_lab.types import ChatChunk, ChatRequest, Message, Sampling, Variant

MAX_BODY = 2**20
MAX_MESSAGES = 1000
MAX_TOKENS = 4096
Chat = Callable[[Iterable[ChatRequest]], Iterator[ChatChunk]]


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Said(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Text may come in parts."""
        if isinstance(value, list):
            return "\n".join(_Part.model_validate(part).text for part in value)
        return value


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Asked(BaseModel):
    """What is honoured of a request; whatever else it has is passed over, as other local servers do."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    messages: list[_Said] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = 1

    @field_validator("stop")
    @classmethod
    def _few(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else list(value or ())
        if len(stops) > 16 or any(not stop or len(stop) > 500 for stop in stops):
            raise ValueError("at most 16 stops of 1 to 500 characters")
        return stops

    def request(self, variant: Variant) -> ChatRequest:
        known = Sampling()
        sampling = Sampling(
            seed=self.seed if self.seed is not None else time.time_ns() % 2**31,
            max_new_tokens=self.max_completion_tokens or self.max_tokens or 512,
            temperature=known.temperature if self.temperature is None else self.temperature,
            top_p=known.top_p if self.top_p is None else self.top_p,
            repetition_penalty=known.repetition_penalty,
        )
        turns = [
            Message(role="user" if m.role == "user" else "assistant", content=m.content)
            for m in self.messages
            if m.role in ("user", "assistant")
        ]
        return ChatRequest(pane="api", variant=variant, messages=tuple(turns), sampling=sampling)


class _StopWords:
    """Hands text on up to the first stop word; keeps back what may yet become one."""

    def __init__(self, stops: list[str]) -> None:
        self._stops, self._kept = stops, ""
        self.stopped = False

    def feed(self, text: str) -> str:
        whole = self._kept + text
        found = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if found:
            self.stopped, self._kept = True, ""
            return whole[: min(found)]
        keep = max(
            (n for stop in self._stops for n in range(1, len(stop)) if whole.endswith(stop[:n])),
            default=0,
        )
        self._kept = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def rest(self) -> str:
        rest, self._kept = self._kept, ""
        return rest


class _Failed(Exception):
    """The chat worker could not answer."""


class _Reply:
    """One reply as it comes."""

    def __init__(self, chat: Chat, request: ChatRequest, stops: list[str], renderer: ChatRenderer | None) -> None:
        self._chat, self._request, self._words, self._renderer = chat, request, _StopWords(stops), renderer
        self.finish = "stop"
        self.stamp = ""
        self._tokens: int | None = None
        self._text = ""

    def usage(self) -> dict[str, int] | None:
        """Tokens read and written; None where they are not known."""
        if self._renderer is None:
            return None
        prompt = len(self._renderer.prompt_ids(messages_for(self._request.variant, self._request.messages)))
        written = len(self._renderer.text_ids(self._text)) if self._tokens is None else self._tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _most(self) -> int:
        """Tokens that a reply may have: those asked for, or half of the context."""
        asked = self._request.sampling.max_new_tokens
        return asked if self._renderer is None else min(asked, self._renderer.context_length // 2)

    def pieces(self) -> Generator[str, None, None]:
        """Raises:
        _Failed
        """
        chunks = self._chat([self._request])
        try:
            for chunk in chunks:
                if chunk.error:
                    raise _Failed(chunk.error)
                if chunk.stamp is not None:
                    self._tokens, self.stamp = chunk.stamp.tokens, chunk.stamp.adapter
                    if chunk.stamp.tokens >= self._most():
                        self.finish = "length"
                if text := self._words.feed(chunk.text):
                    self._text += text
                    yield text
                if self._words.stopped:
                    self.finish = "stop"
                    return
            if rest := self._words.rest():
                self._text += rest
                yield rest
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()  # leaving early cancels what the worker still writes


def make_app(variant: Variant, chat: Chat, key: str, renderer: ChatRenderer | None = None) -> Starlette:
    """The application.

    Args:
        chat: streams replies, as `Engine.chat`.
        key: what a request must bring as `Authorization: Bearer KEY`.
        renderer: of the variant's base, to count tokens with.
    """
    server = _Server(variant, chat, key, renderer)
    routes = [
        Route("/v1/models", server.models),
        Route("/v1/chat/completions", server.complete, methods=["POST"]),
    ]
    errors: dict[Any, Any] = {404: _not_found, 405: _not_found, 500: _broken}
    return Starlette(routes=routes, exception_handlers=errors)


class _Server:
    def __init__(self, variant: Variant, chat: Chat, key: str, renderer: ChatRenderer | None) -> None:
        self.variant, self.chat, self._key = variant, chat, key.encode()
        # a prompt that chooses its examples for each question is counted by the chat worker alone
        self._renderer = None if variant.kind == "prompt" and variant.path else renderer

    def _refused(self, request: Request) -> Response | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # compared in constant time, so that the key cannot be guessed letter by letter
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):
            return None
        return _error(401, "The API key is missing or wrong.", "invalid_request_error", code="invalid_api_key")

    async def models(self, request: Request) -> Response:
        """The variant, as the only model."""
        if refused := self._refused(request):
            return refused
        model = {"id": self.variant.id, "object": "model", "created": 0, "owned_by": "persona-lab"}
        return JSONResponse({"object": "list", "data": [model]})

    async def complete(self, request: Request) -> Response:
        """A reply, whole or streamed."""
        if refused := self._refused(request):
            return refused
        body = await small_body(request, MAX_BODY)
        if body is None:
            return _error(413, f"The request is larger than {MAX_BODY} bytes.", "invalid_request_error")
        try:
            asked = _Asked.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return _error(400, f"{where or 'The request'}: {first['msg']}.", "invalid_request_error", param=where)
        if asked.model and asked.model not in (self.variant.id, self.variant.name):
            told = f"There is no model {asked.model!r} here; this server has {self.variant.id!r}."
            return _error(404, told, "invalid_request_error", param="model", code="model_not_found")
        wanted = asked.request(self.variant)
        if not wanted.messages or wanted.messages[-1].role != "user":
            return _error(400, "The last message must be the user's.", "invalid_request_error", param="messages")
        if self._renderer is not None:
            try:  # what the model's chat template refuses is the request's fault, not the server's
                self._renderer.prompt_ids(messages_for(self.variant, wanted.messages))
            except BadInput as error:
                return _error(400, str(error), "invalid_request_error", param="messages")
        reply = _Reply(self.chat, wanted, list(asked.stop or ()), self._renderer)
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return StreamingResponse(_events(reply, self.variant.id, usage), media_type="text/event-stream")
        try:
            text = await _whole(request, reply)
        except _Failed as error:
            return _error(500, str(error), "server_error")
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reply.finish}
        return JSONResponse(_document("chat.completion", _new_id(), self.variant.id, [choice], reply))


async def _whole(request: Request, reply: _Reply) -> str:
    """The reply in one piece; who hangs up is not written for any longer."""
    pieces, parts = reply.pieces(), []
    try:
        async for text in iterate_in_threadpool(pieces):
            parts.append(text)
            if await request.is_disconnected():
                break
    finally:
        with contextlib.suppress(ValueError):  # still running in its thread: it ends with its next piece
            pieces.close()
    return "".join(parts)


async def _events(reply: _Reply, model: str, usage: bool) -> AsyncIterator[str]:
    name = _new_id()

    def event(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _event(_document("chat.completion.chunk", name, model, [choice]))

    yield event({"role": "assistant", "content": ""})
    pieces = reply.pieces()
    try:
        async for text in iterate_in_threadpool(pieces):
            yield event({"content": text})
        yield event({}, reply.finish)
        if usage:
            yield _event(_document("chat.completion.chunk", name, model, [], reply))
    except _Failed as error:
        yield _event({"error": {"message": str(error), "type": "server_error", "param": None, "code": None}})
    finally:
        with contextlib.suppress(ValueError):  # still running in its thread: it ends with its next piece
            pieces.close()
    yield "data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _document(
    kind: str, name: str, model: str, choices: list[dict[str, Any]], reply: _Reply | None = None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": name,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
    }
    if reply is not None:
        document["usage"] = reply.usage()
        document["system_fingerprint"] = reply.stamp or None
    return document


def _error(status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": kind, "param": param or None, "code": code}}
    return JSONResponse(body, status_code=status)


async def _broken(request: Request, error: Exception) -> Response:
    return _error(500, f"The server failed: {type(error).__name__}.", "server_error")


async def _not_found(request: Request, error: Exception) -> Response:
    told = f"There is nothing at {request.method} {request.url.path}; see /v1/models and /v1/chat/completions."
    return _error(404, told, "invalid_request_error")
