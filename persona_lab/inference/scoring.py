"""Log-likelihoods of given replies, in batches: what training did to the probabilities, without any sampling.

Counted are the reply's own tokens; the token that ends the turn is not. What items begin with alike (system prompt,
examples, small talk, the context of several candidates) is run once, level by level, and its keys and values are
shared; see `prefix_tree`. Logits are computed only where a reply token is predicted, and the output head runs in fp32:
bf16 logits would be off by hundredths of a nat each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from persona_lab.inference.prefix_tree import Node, grow
from persona_lab.types import LogLikelihood, Message

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer

LOGIT_BYTES = 128 << 20
"""Bound on one batch's fp32 logits."""
HEAD_BYTES = 1 << 30
"""A larger output head is not copied to fp32; its logits are then only converted."""
ROWS_AT_ONCE = 64
"""Rows of logits that are normalised at once: few enough to stay in the processor's cache."""
CACHE_BYTES = 512 << 20
"""Bound on the keys and values of one batch."""
WORTH = {"cpu": 128}
"""Fewer tokens saved by running a prefix once do not pay for the two passes more that it takes: one for the prefix and
one for a batch of its own, about 20 ms each for a small model on a CPU core."""
WORTH_ELSEWHERE = 2048
"""The same where a pass is short whatever its tokens (GPUs); not measured."""


@dataclass
class _Item:
    """One item as ids; the reply's tokens are ids[start:end]."""

    index: int
    ids: tuple[int, ...]
    start: int
    end: int


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
    tree = grow([item for item in prepared if item.end > item.start], _worth(model))
    with torch.no_grad(), _Head(model) as head:
        for items_here, shared, cache in _walk(model, head, tree):
            for batch in _batches(items_here, shared, cache, batch_tokens, head.vocabulary):
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
    return _Item(index, rendered.ids, start, end)


def _worth(model: Any) -> int | None:
    """Tokens that sharing a prefix must save; None for a model that keeps a state instead of keys and values, and for
    an adapter that is a prompt: it would stand before each part again."""
    prompt = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if getattr(model, "_is_stateful", False) or prompt:
        return None
    return WORTH.get(torch.device(model.device).type, WORTH_ELSEWHERE)


def _walk(model: Any, head: _Head, node: Node[_Item], cache: Any = None) -> Iterator[tuple[list[_Item], int, Any]]:
    """(items, tokens they share, the keys and values of those) of a node and all below it; None: nothing is shared."""
    if node.items:
        yield node.items, node.length, cache
    for child in node.children:
        grown = _run(model, head, child.ids[node.length : child.length], cache)
        if _shareable(grown, max(item.end for item in child.everything())):
            yield from _walk(model, head, child, grown)
        else:
            yield child.everything(), node.length, cache


def _run(model: Any, head: _Head, ids: Sequence[int], cache: Any) -> Any:
    """The cache, a new one, after these tokens too."""
    tokens = torch.tensor([ids], device=model.device)
    past = None if cache is None else _for_rows(cache, 1)
    with head.only_at([], []):  # nobody asks what comes next
        return model(input_ids=tokens, cache=past, use_cache=True).cache


def _shareable(cache: Any, longest: int) -> bool:
    """Whether items of up to `longest` tokens can go on from it: keys and values, none of them slid out of a window."""
    layers = list(getattr(cache, "layers", None) or ())
    return bool(layers) and all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and longest < layer.sliding_window)
        for layer in layers
    )


def _for_rows(cache: Any, rows: int) -> Any:
    """The cache of one row as one of so many rows: views of the same memory, since a layer never writes in place."""
    past = copy.copy(cache)
    past.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in past.layers:
        if layer.get_seq_length():
            layer.keys = layer.keys.expand(rows, *layer.keys.shape[1:])
            layer.values = layer.values.expand(rows, *layer.values.shape[1:])
    return past


def _bytes_a_token(cache: Any) -> int:
    """Of keys and values, in all layers."""
    states = [state for layer in cache.layers if layer.get_seq_length() for state in (layer.keys, layer.values)]
    return sum(state.numel() * state.element_size() // state.shape[-2] for state in states)


def _batches(items: list[_Item], shared: int, cache: Any, batch_tokens: int, vocabulary: int) -> Iterator[list[_Item]]:
    """Neighbours in length together: at most `batch_tokens` with padding, and bounded logits, keys and values."""
    batch: list[_Item] = []
    targets = 0
    most_targets = max(1, LOGIT_BYTES // (4 * vocabulary))
    most_states = CACHE_BYTES // max(_bytes_a_token(cache), 1) if cache is not None else None
    for item in sorted(items, key=lambda item: item.end):
        rows = len(batch) + 1
        wanted = targets + item.end - item.start
        full = (item.end - shared) * rows > batch_tokens or wanted > most_targets
        if batch and (full or (most_states is not None and item.end * rows > most_states)):
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
    past = None if cache is None else _for_rows(cache, len(batch))
    with head.only_at(rows, columns, width):
        out = model(input_ids=ids.to(model.device), cache=past, use_cache=past is not None).logits
    logits = head.picked(out, rows, columns)  # [targets, vocabulary]
    wanted = torch.tensor(targets, device=logits.device)
    chosen = torch.cat(
        [
            _log_probabilities(some, these)
            for some, these in zip(logits.split(ROWS_AT_ONCE), wanted.split(ROWS_AT_ONCE), strict=True)
        ]
    )
    totals = torch.zeros(len(batch), dtype=torch.float64, device="cpu")
    totals.index_add_(0, torch.tensor(rows), chosen.cpu().double())
    return [float(total) for total in totals]


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p of each row's target, in nats; overwrites the logits, so that nothing of their size is allocated."""
    most = logits.amax(dim=1, keepdim=True)
    chosen = logits.gather(1, targets[:, None]) - most
    return (chosen - logits.sub_(most).exp_().sum(dim=1, keepdim=True).log())[:, 0]


class _Head:
    """Makes the model's output head run only at wanted positions, and in fp32.

    In the place of the head, so that whatever a model does to its logits afterwards (scaling, caps) still happens.
    """

    def __init__(self, model: Any) -> None:
        self.module = model.get_output_embeddings()
        weight: torch.Tensor = self.module.weight
        self.vocabulary = int(weight.shape[0])
        plain = type(self.module) is torch.nn.Linear and weight.dtype in (torch.bfloat16, torch.float16)
        low = plain and weight.numel() * 4 <= HEAD_BYTES and "forward" not in vars(self.module)
        self.weight = weight.float() if low else None
        self.bias = self.module.bias.float() if low and self.module.bias is not None else None
        self.index: tuple[torch.Tensor, torch.Tensor] | None = None
        self.width = 0
        self.handle: Any = None

    def __enter__(self) -> _Head:
        self.handle = self.module.register_forward_pre_hook(self._pick)
        if self.weight is not None:
            self.module.forward = self._forward  # a hook behind the head would run it twice
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
        if self.weight is not None:
            del self.module.forward

    @contextmanager
    def only_at(self, rows: Sequence[int], columns: Sequence[int], width: int = 0) -> Iterator[None]:
        """While this lasts, the head sees hidden states [1, len(rows), hidden] instead of [batch, tokens, hidden].

        Args:
            width: tokens of a row; a model that puts made-up ones before them gives more states than that.
        """
        self.index = (torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long))
        self.width = width
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
        before = arguments[0].shape[1] - self.width if self.width else 0
        return (arguments[0][rows, columns + before][None],)

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.index is None:
            return torch.nn.functional.linear(hidden, self.module.weight, self.module.bias)
        # two dimensions: with three, torch copies the whole weight to multiply in batches
        return torch.nn.functional.linear(hidden[0].float(), self.weight, self.bias)[None]
