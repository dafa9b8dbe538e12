"""Several prompts to several variants, as rows: what `persona-lab say` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from persona_lab.errors import BadInput, WorkFailed
from persona_lab.types import ChatChunk, ChatRequest, Message, Sampling, Variant

MAX_PROMPTS = 10_000
MAX_BYTES = 10 * 2**20


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts asked for, from the option or from a UTF-8 file with one a line.

    Raises:
        BadInput: none, both, or an unreadable file.
    """
    if (prompt is None) == (file is None):
        raise BadInput("Say what to ask them.", "Give either --prompt TEXT or --prompts FILE.")
    found = [prompt or ""] if file is None else _lines(file)
    found = [line.strip() for line in found if line.strip()]
    if not found:
        raise BadInput("There is no prompt in what was given.", "Write one prompt a line.")
    return found[:MAX_PROMPTS]


def _lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadInput(f"{file} is larger than 10 MB.", "Prompts are one a line.")
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error


def replies(
    chat: Callable[[Iterable[ChatRequest]], Iterator[ChatChunk]],
    variants: Sequence[Variant],
    prompts: Sequence[str],
    sampling: Sampling,
    weights: Literal["native", "int8"] = "native",
) -> Iterator[dict[str, Any]]:
    """One row a prompt and variant, in that order; the variants of a prompt are decoded together.

    Raises:
        WorkFailed: a reply could not be made.
    """
    for prompt in prompts:
        requests = [
            ChatRequest(
                pane=str(number),
                variant=variant,
                messages=(Message(role="user", content=prompt),),
                sampling=sampling,
                weights=weights,
            )
            for number, variant in enumerate(variants)
        ]
        texts = {request.pane: "" for request in requests}
        stamps: dict[str, Any] = {}
        for chunk in chat(requests):
            if chunk.error:
                raise WorkFailed(f"{variants[int(chunk.pane)].id} could not answer: {chunk.error}")
            texts[chunk.pane] += chunk.text
            if chunk.stamp is not None:
                stamps[chunk.pane] = chunk.stamp
        for request in requests:
            stamp = stamps[request.pane]
            yield {
                "variant": request.variant.id,
                "adapter": stamp.adapter,
                "prompt": prompt,
                "reply": texts[request.pane],
                "tokens": stamp.tokens,
                "seconds": stamp.seconds,
                "first_token_seconds": stamp.first_token_seconds,
                "seed": stamp.seed,
            }
