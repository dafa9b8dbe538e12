"""Writing replies: batched decoding with a key/value cache, streamed, one seed a row.

Works through the model's own forward pass, so any decoder-only model of transformers will do. Does not load models and
does not know variants; `adapter_names` is handed on to peft for batches of several adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from persona_lab.errors import BadInput, OutOfMemory
from persona_lab.inference.loading import is_out_of_memory
from persona_lab.inference.sampling import RowSampler
from persona_lab.inference.text_stream import TextStream
from persona_lab.types import Message, Sampling

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer

BATCH_ROWS = 32
"""More rows at once are not faster on the machines measured, and need more memory."""


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
    ids: list[int]
    sampler: RowSampler
    stream: TextStream
    room: int
    adapter: str | None
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
) -> list[Generated]:
    """One reply for each prompt (messages, the system message included where one is wanted).

    Where prompt and reply would not fit into the context, the oldest turns are left out.

    Args:
        model: a causal language model, or a peft model of one, in eval mode.
        sampling: one for all rows, or one a row.
        on_token: called with (row, new text) as text becomes whole; the texts of a row join to `Generated.text`.
        should_stop: asked before every step; True ends all rows with what they have.
        adapter_names: peft adapter of each row, `__base__` for none.

    Raises:
        BadInput: a prompt alone does not fit into the context. OutOfMemory
    """
    chosen = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    names = list(adapter_names) if adapter_names is not None else [None] * len(prompts)
    rows = [_row(renderer, i, prompt, chosen[i], names[i]) for i, prompt in enumerate(prompts)]
    # rows of similar length share a batch, so that little is padded
    order = sorted(rows, key=lambda row: len(row.ids))
    start = time.perf_counter()
    try:
        with torch.no_grad():
            for at in range(0, len(order), BATCH_ROWS):
                _Batch(model, renderer, order[at : at + BATCH_ROWS], start, on_token).run(should_stop)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "There is not enough memory to write replies.", "Ask for fewer or shorter replies at once."
        ) from error
    return [Generated(r.stream.text, len(r.tokens), r.seconds, r.first, r.finished) for r in rows]


def _row(
    renderer: ChatRenderer, index: int, prompt: Sequence[Message], sampling: Sampling, adapter: str | None
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
        # a question and its answer go together
        messages = [message for i, message in enumerate(messages) if i not in turns[:2]]
        ids = renderer.prompt_ids(messages)
    sampler = RowSampler(sampling, messages, renderer.eos_ids, _said(renderer, messages))
    return _Row(index, ids, sampler, TextStream(renderer), room, adapter)


def _said(renderer: ChatRenderer, messages: Sequence[Message]) -> list[int]:
    """Tokens of the assistant's turns so far: what the repetition penalty counts, besides the new reply.

    The card and the user's words are not counted: a character should be free to use them.
    """
    replies = [i for i, message in enumerate(messages) if message.role == "assistant" and message.content.strip()]
    if not replies:
        return []
    rendered = renderer.render(messages[: replies[-1] + 1])
    return [token for token, trained in zip(rendered.ids, rendered.mask, strict=True) if trained]


class _Batch:
    """Rows that are decoded together; a row leaves when it is done."""

    def __init__(
        self,
        model: Any,
        renderer: ChatRenderer,
        rows: list[_Row],
        start: float,
        on_token: Callable[[int, str], None] | None,
    ) -> None:
        self.model = model
        self.eos = frozenset(renderer.eos_ids)
        self.pad = renderer.pad_id
        self.rows = rows
        self.start = start
        self.on_token = on_token
        self.cache: Any = None

    def run(self, should_stop: Callable[[], bool] | None) -> None:
        """Decode until every row is done or it is to stop."""
        device = self.model.device
        width = max(len(row.ids) for row in self.rows)
        ids = torch.full((len(self.rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros((len(self.rows), width), dtype=torch.long)
        for i, row in enumerate(self.rows):
            ids[i, width - len(row.ids) :] = torch.tensor(row.ids)
            mask[i, width - len(row.ids) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        while self.rows and not (should_stop is not None and should_stop()):
            logits = self._forward(ids, mask, positions).cpu()
            kept = self._draw(logits)
            if not kept:
                break
            if len(kept) < len(mask):
                chosen = torch.tensor(kept, device=device)
                mask, positions = mask[chosen], positions[chosen]
                self.cache.batch_select_indices(chosen)
            ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
            mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
            positions = positions[:, -1:] + 1
        for row in self.rows:
            self._end(row)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits of each row's next token [rows, vocabulary], fp32; the cache grows by ids.shape[1] positions."""
        adapters = {"adapter_names": [row.adapter for row in self.rows]} if self.rows[0].adapter else {}
        out = self.model(
            input_ids=ids,
            # without padding no mask is needed, and the faster attention without one is used
            attention_mask=None if bool(mask.all()) else mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **adapters,
        )
        self.cache = out.past_key_values
        last: torch.Tensor = out.logits[:, -1].float()
        return last

    def _draw(self, logits: torch.Tensor) -> list[int]:
        """Give every row its next token; the places of the rows that go on."""
        kept = []
        for place, row in enumerate(self.rows):
            token = row.sampler.draw(logits[place])
            if not row.tokens:
                row.first = time.perf_counter() - self.start
            row.tokens.append(token)
            row.finished = token in self.eos
            if not row.finished:
                self._tell(row, row.stream.push(token))
            if row.finished or len(row.tokens) >= row.room:
                self._end(row)
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
