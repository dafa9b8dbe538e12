"""Writing replies: batched decoding with a key/value cache, streamed, one seed a row.

Works through the model's own forward pass, so any decoder-only model of transformers will do; `steps` makes that pass
cheap. Does not load models and does not know variants.
"""

from __future__ import annotations

import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from persona_lab.errors import BadInput, OutOfMemory
from persona_lab.inference.fast_linear import PackedWeights, worth_packing
from persona_lab.inference.kv_cache import PrefixCache
from persona_lab.inference.loading import is_out_of_memory
from persona_lab.inference.sampling import RowSampler, draw_rows
from persona_lab.inference.steering import Shift, standing
from persona_lab.inference.steps import FastSteps, PlainSteps, Prompt, open_steps
from persona_lab.inference.text_stream import TextStream
from persona_lab.types import Message, Sampling

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer

BATCH_ROWS = 32
"""More rows at once are not faster on the machines measured, and need more memory."""
PACKING_STEPS = 24
"""Fewer steps than these do not pay for packing the weights for one call. A guess, not measured."""
SAMPLED_EVERY = 997
"""Of a weight's numbers, to see whether it is still the same."""


@dataclass(frozen=True)
class DecodingMemory:
    """What a long-lived process keeps between calls of `generate`, so that it is not computed again.

    Args:
        packed: the model's weights, packed; for weights that do not change.
        prefixes: keys and values of earlier prompts and replies.
        keys: of each row, a name that no other weights have.
    """

    packed: PackedWeights | None
    prefixes: PrefixCache
    keys: Sequence[str]


@dataclass(frozen=True)
class Generated:
    """A reply: its text, number of tokens (the end of turn included), and seconds since `generate` was called.

    `finished` is False where the reply was cut by max_new_tokens or by a stop.
    """

    text: str
    tokens: int
    seconds: float
    first_token_seconds: float
    finished: bool = True


@dataclass
class _Row:
    index: int
    prompt: Prompt
    sampler: RowSampler
    stream: TextStream
    tokens: list[int] = field(default_factory=list)
    first: float = 0.0
    seconds: float = 0.0
    finished: bool = False


def generate(
    model: Any,
    renderer: ChatRenderer,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling | Sequence[Sampling],
    on_token: Callable[[int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    adapter_names: Sequence[str] | None = None,
    memory: DecodingMemory | None = None,
    shifts: Sequence[Shift | None] | None = None,
) -> list[Generated]:
    """One reply for each prompt (messages, the system message included where one is wanted).

    Where prompt and reply would not fit into the context, the oldest turns are left out.

    Args:
        model: a causal language model, or a peft model of one, in eval mode.
        sampling: one for all rows, or one a row.
        on_token: called with (row, new text) as text becomes whole; the texts of a row join to `Generated.text`.
        should_stop: asked before every step; True ends all rows with what they have.
        adapter_names: peft adapter of each row, `__base__` for none; None for whatever is active.
        memory: what may be kept for the next call on the same weights.
        shifts: of each row, what is added to the layers' outputs; None for whatever `steered` put in force.

    Raises:
        BadInput: a prompt alone does not fit into the context. BadModel: a shift is not for this model. OutOfMemory
    """
    chosen = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    names = list(adapter_names) if adapter_names is not None else [None] * len(prompts)
    keys = memory.keys if memory is not None else [name or "" for name in names]
    added = list(shifts) if shifts is not None else [standing(model)] * len(prompts)
    rows = [_row(renderer, i, prompt, chosen[i], names[i], keys[i], added[i]) for i, prompt in enumerate(prompts)]
    # rows of similar length share a batch, so that little is padded
    order = sorted(rows, key=lambda row: len(row.prompt.ids))
    start = time.perf_counter()
    eos = frozenset(renderer.eos_ids)
    try:
        with torch.no_grad():
            packed = memory.packed if memory is not None else _packed_for(model, rows)
            for at in range(0, len(order), BATCH_ROWS):
                batch = order[at : at + BATCH_ROWS]
                kept = memory.prefixes if memory is not None else None
                with open_steps(model, [row.prompt for row in batch], renderer.pad_id, packed, kept) as steps:
                    _Batch(batch, eos, start, on_token).run(steps, should_stop)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "There is not enough memory to write replies.", "Ask for fewer or shorter replies at once."
        ) from error
    return [Generated(r.stream.text, len(r.tokens), r.seconds, r.first, r.finished) for r in rows]


_packed: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], PackedWeights]] = weakref.WeakKeyDictionary()


def _packed_for(model: Any, rows: Sequence[_Row]) -> PackedWeights | None:
    """Packed weights, where enough is written to make up for the packing. They are kept for as long as the model lives
    and its linear weights are the same, unless these are being trained."""
    inner = _inner(model)
    if not worth_packing(inner):
        return None
    linear = [m for name, m in inner.named_modules() if type(m) is torch.nn.Linear and "lora_" not in name]
    numbers = [p for m in linear for p in (m.weight, m.bias) if p is not None]
    trained = any(p.requires_grad or p.is_inference() for p in numbers)
    state = () if trained else tuple(_state(p) for p in numbers)
    known = _packed.get(inner)
    if known is not None and known[0] == state != ():
        return known[1]
    _packed.pop(inner, None)
    steps = max((row.prompt.room for row in rows), default=0) * (1 + (len(rows) - 1) // BATCH_ROWS)
    if steps < PACKING_STEPS:
        return None
    made = PackedWeights()
    if state:
        _packed[inner] = (state, made)
    return made


def forget_packed(model: Any) -> None:
    """Let go of what is kept for `model` by `generate`, where its memory is wanted for something else."""
    _packed.pop(_inner(model), None)


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _state(weight: torch.Tensor) -> tuple[int, int, int]:
    """Changes when the weight does. A sample of its numbers too: writing through `.data`, as peft merges, counts up no
    version."""
    sample = weight.detach().reshape(-1)[::SAMPLED_EVERY].cpu().contiguous()
    return weight.data_ptr(), weight._version, zlib.crc32(sample.view(torch.uint8).numpy().tobytes())


def _row(
    renderer: ChatRenderer,
    index: int,
    prompt: Sequence[Message],
    sampling: Sampling,
    adapter: str | None,
    weights: str,
    shift: Shift | None,
) -> _Row:
    messages = list(prompt)
    room = min(sampling.max_new_tokens, renderer.context_length // 2)
    ids = renderer.prompt_ids(messages)
    while len(ids) + room > renderer.context_length:
        turns = [i for i, message in enumerate(messages) if message.role != "system"]
        if len(turns) < 3:
            raise BadInput(
                f"The prompt has {len(ids)} tokens; with a reply of {room} it does not fit into the model's "
                f"{renderer.context_length}.",
                "Shorten the character's card or the message.",
            )
        # a question and its answer go together; far over, many at once, since counting costs
        over = (len(ids) + room - renderer.context_length) / len(ids)
        gone = min(max(1, int(over * len(turns) / 4)), (len(turns) - 1) // 2) * 2
        left_out = set(turns[:gone])
        messages = [message for i, message in enumerate(messages) if i not in left_out]
        ids = renderer.prompt_ids(messages)
    said = _said(renderer, messages) if sampling.repetition_penalty != 1 else []
    sampler = RowSampler(sampling, messages, renderer.eos_ids, said)
    # keys and values of a steered prompt are its own: they must not be shared with those of other settings
    weights = f"{weights} {shift.key}" if shift is not None else weights
    return _Row(index, Prompt(tuple(ids), room, adapter, weights, shift), sampler, TextStream(renderer))


def _said(renderer: ChatRenderer, messages: Sequence[Message]) -> list[int]:
    """Tokens of the assistant's turns so far: what the repetition penalty counts, besides the new reply.

    The card and the user's words are not counted: a character should be free to use them.
    """
    replies = [i for i, message in enumerate(messages) if message.role == "assistant" and message.content.strip()]
    if not replies:
        return []
    try:
        rendered = renderer.render(messages[: replies[-1] + 1])
    except BadInput:  # blank replies, and templates that write earlier turns anew, cannot be masked, but gone on from
        return [token for i in replies for token in renderer.text_ids(messages[i].content)]
    return [token for token, trained in zip(rendered.ids, rendered.mask, strict=True) if trained]


class _Batch:
    """Rows that are decoded together; a row leaves when it is done."""

    def __init__(
        self, rows: list[_Row], eos: frozenset[int], start: float, on_token: Callable[[int, str], None] | None
    ) -> None:
        self.rows = rows
        self.eos = eos
        self.start = start
        self.on_token = on_token

    def run(self, steps: PlainSteps | FastSteps, should_stop: Callable[[], bool] | None) -> None:
        """Decode until every row is done or it is to stop."""
        begun = False
        while self.rows and not (should_stop is not None and should_stop()):
            logits = steps.step([row.tokens[-1] for row in self.rows]) if begun else steps.start()
            begun = True
            kept = self._draw(logits, steps)
            if kept and len(kept) < len(logits):
                steps.keep(kept)
        for place, row in enumerate(self.rows):
            self._end(row)
            if begun:
                steps.end(place, row.tokens)

    def _draw(self, logits: torch.Tensor, steps: PlainSteps | FastSteps) -> list[int]:
        """Give every row its next token; the places of the rows that go on."""
        kept = []
        tokens = draw_rows([row.sampler for row in self.rows], logits)
        for place, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if not row.tokens:
                row.first = time.perf_counter() - self.start
            row.tokens.append(token)
            row.finished = token in self.eos
            if not row.finished:
                self._tell(row, row.stream.push(token))
            if row.finished or len(row.tokens) >= row.prompt.room:
                self._end(row)
                steps.end(place, row.tokens)
            else:
                kept.append(place)
        self.rows = [self.rows[place] for place in kept]
        return kept

    def _end(self, row: _Row) -> None:
        self._tell(row, row.stream.finish())
        row.seconds = time.perf_counter() - self.start

    def _tell(self, row: _Row, text: str) -> None:
        if text and self.on_token is not None:
            self.on_token(row.index, text)
