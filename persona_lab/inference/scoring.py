"""Log-likelihoods of given replies, in batches: what training did to the probabilities, without any sampling.

Counted are the reply's own tokens; the token that ends the turn is not. The text every item begins with (system prompt,
examples) is run once and its keys and values are shared. Logits are computed only where a reply token is predicted, and
the output head runs in fp32: bf16 logits would be off by hundredths of a nat each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persona_lab.types import LogLikelihood, Message

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer

LOGIT_BYTES = 128 << 20
"""Bound on one batch's fp32 logits."""
HEAD_BYTES = 1 << 30
"""A larger output head is not copied to fp32; its logits are then only converted."""
SHORTEST_PREFIX = 16
"""Sharing fewer tokens than this costs more than it saves."""


@dataclass
class _Item:
    """One item as ids; the reply's tokens are ids[start:end]."""

    index: int
    ids: tuple[int, ...]
    start: int
    end: int
    prefix: int


def loglikelihood(
    model: Any,
    renderer: ChatRenderer,
    items: Sequence[tuple[Sequence[Message], str]],
    batch_tokens: int = 4096,
) -> list[LogLikelihood]:
    """Of each (messages, reply): sum over the reply's tokens of log p, in nats.

    The end-of-turn token is not counted. A reply of white space only counts no tokens (total 0). Where messages and
    reply are longer than the context, the oldest turns are left out.

    Args:
        model: a causal language model, or a peft model of one, in eval mode.
        batch_tokens: tokens run at once, padding included.
    """
    results = [LogLikelihood(total=0.0, tokens=0, bytes=len(reply.encode())) for _, reply in items]
    prepared = [_prepare(renderer, i, messages, reply) for i, (messages, reply) in enumerate(items) if reply.strip()]
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    with torch.no_grad(), _Head(model) as head:
        for group in _groups([item for item in prepared if item.end > item.start]):
            shared = _shared_prefix(model, group)
            cache = _run_prefix(model, group[0].ids[:shared]) if shared else None
            for batch in _batches(group, shared, batch_tokens, vocabulary):
                for item, total in zip(batch, _score(model, head, batch, shared, cache), strict=True):
                    results[item.index] = LogLikelihood(
                        total=total, tokens=item.end - item.start, bytes=results[item.index].bytes
                    )
    return results


def _prepare(renderer: ChatRenderer, index: int, messages: Sequence[Message], reply: str) -> _Item:
    turns = [*messages, Message(role="assistant", content=reply)]
    rendered = renderer.render(turns, max_tokens=renderer.context_length)
    end = len(rendered.mask)
    while end and not rendered.mask[end - 1]:
        end -= 1
    start = end
    while start and rendered.mask[start - 1]:
        start -= 1
    while end > start and rendered.ids[end - 1] in renderer.eos_ids:
        end -= 1
    start = max(start, 1)  # the very first token has nothing to be predicted from
    return _Item(index, rendered.ids, start, end, 0 if rendered.truncated else rendered.prefix)


def _groups(items: list[_Item]) -> list[list[_Item]]:
    """Items of one system prompt together, shortest first."""
    found: dict[tuple[int, ...], list[_Item]] = {}
    for item in items:
        found.setdefault(item.ids[: item.prefix], []).append(item)
    return [sorted(group, key=lambda item: item.end) for group in found.values()]


def _shared_prefix(model: Any, group: list[_Item]) -> int:
    """Tokens that all items begin with and that may be run once; 0 where that is not worth it, or not possible."""
    if len(group) < 2 or getattr(model, "_is_stateful", False):
        return 0
    first = group[0].ids
    length = min(item.start - 1 for item in group)
    for item in group[1:]:
        length = next((i for i in range(length) if item.ids[i] != first[i]), length)
    return length if length >= SHORTEST_PREFIX else 0


def _run_prefix(model: Any, ids: Sequence[int]) -> Any:
    tokens = torch.tensor([ids], device=model.device)
    return model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values


def _batches(group: list[_Item], shared: int, batch_tokens: int, vocabulary: int) -> Iterator[list[_Item]]:
    """Neighbours in length together: at most `batch_tokens` with padding, and bounded logits."""
    batch: list[_Item] = []
    targets = 0
    limit = max(1, LOGIT_BYTES // (4 * vocabulary))
    for item in group:
        size = (item.end - shared) * (len(batch) + 1)
        wanted = targets + item.end - item.start
        if batch and (size > batch_tokens or wanted > limit):
            yield batch
            batch, wanted = [], item.end - item.start
        batch.append(item)
        targets = wanted
    if batch:
        yield batch


def _score(model: Any, head: _Head, batch: list[_Item], shared: int, cache: Any) -> list[float]:
    """Total log-likelihood of each item of the batch."""
    # the last reply token predicts nothing that is counted, so it is not run
    width = max(item.end - 1 - shared for item in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, item in enumerate(batch):
        tokens = item.ids[shared : item.end - 1]
        # padding stands at the right, where causal attention never looks
        ids[row, : len(tokens)] = torch.tensor(tokens)
        rows += [row] * (item.end - item.start)
        columns += range(item.start - 1 - shared, item.end - 1 - shared)
        targets += item.ids[item.start : item.end]
    past = None
    if cache is not None:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(batch))
    with head.only_at(rows, columns):
        out = model(input_ids=ids.to(model.device), past_key_values=past, use_cache=past is not None).logits
    logits = head.picked(out, rows, columns)  # [targets, vocabulary]
    wanted = torch.tensor(targets, device=logits.device)
    chosen = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1)
    totals = torch.zeros(len(batch), dtype=torch.float64, device="cpu")
    totals.index_add_(0, torch.tensor(rows), chosen.double().cpu())
    return [float(total) for total in totals]


class _Head:
    """Makes the model's output head run only at wanted positions, and in fp32.

    Through hooks on the head, so that whatever a model does to its logits afterwards (scaling, caps) still happens.
    """

    def __init__(self, model: Any) -> None:
        self.module = model.get_output_embeddings()
        weight: torch.Tensor = self.module.weight
        plain = type(self.module) is torch.nn.Linear and weight.dtype in (torch.bfloat16, torch.float16)
        low = plain and weight.numel() * 4 <= HEAD_BYTES
        self.weight = weight.float() if low else None
        self.bias = self.module.bias.float() if low and self.module.bias is not None else None
        self.index: tuple[torch.Tensor, torch.Tensor] | None = None
        self.handles: list[Any] = []

    def __enter__(self) -> _Head:
        self.handles.append(self.module.register_forward_pre_hook(self._pick))
        if self.weight is not None:
            self.handles.append(self.module.register_forward_hook(self._in_fp32))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    @contextmanager
    def only_at(self, rows: Sequence[int], columns: Sequence[int]) -> Iterator[None]:
        """While this lasts, the head sees hidden states [1, len(rows), hidden] instead of [batch, tokens, hidden]."""
        self.index = (torch.tensor(rows), torch.tensor(columns))
        try:
            yield
        finally:
            self.index = None

    def picked(self, logits: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
        """The wanted logits [positions, vocabulary] in fp32, also from a model that does not call its head module."""
        if logits.shape[0] == 1 and logits.shape[1] == len(rows):
            return logits[0].float()
        return logits[rows, columns].float()

    def _pick(self, module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self.index is None:
            return None
        rows, columns = self.index
        return (arguments[0][rows, columns][None],)

    def _in_fp32(self, module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if self.index is None:
            return None
        return torch.nn.functional.linear(arguments[0].float(), self.weight, self.bias)
