"""How far a variant's predictions moved from its base's: KL divergence over the whole vocabulary, teacher-forced.

Both models read the same tokens, one after the other, so one module with an adapter switched off and on will do. Only
the log-probabilities of a few hundred positions are held at once. Generates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from persona_lab.datasets.encoding import load_tokenizer
from persona_lab.inference.scoring import _Head, _prepare
from persona_lab.types import Divergence, Message

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer

Passage = str | tuple[Sequence[Message], str]
"""Plain text, or (messages, reply)."""
Opened = Callable[[], AbstractContextManager[Any]]
"""Gives a model with the right weights for as long as the context lasts."""

LOGIT_BYTES = 64 << 20
"""Bound on one model's fp32 logits; two are held, and a copy."""


@dataclass
class _Item:
    """One passage as ids; predicted and counted are ids[start:end]."""

    ids: tuple[int, ...]
    start: int
    end: int
    bytes: int
    kl: float = 0.0
    base_total: float = 0.0
    variant_total: float = 0.0


@dataclass
class _Window:
    """Counted tokens [start, end) of one item: a long item is looked at in several windows."""

    item: _Item
    start: int
    end: int


@dataclass
class _Batch:
    """Windows that run together. `rows`, `columns`: where the predictions are; `targets`: what comes there."""

    windows: list[_Window]
    ids: torch.Tensor
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


def divergence(
    base: Opened,
    variant: Opened | None,
    renderer: ChatRenderer,
    passages: Sequence[Passage],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Divergence]:
    """Of each passage: sum over its predicted tokens of KL(base || variant) in nats, and both log-likelihoods.

    KL at a position is sum_v p_base(v) (log p_base(v) - log p_variant(v)) over the whole vocabulary. Text is read
    without a chat template, after the tokenizer's own start token; where it has none, the first token is only read. Of
    (messages, reply) the reply's own tokens count, as in `loglikelihood`.

    Args:
        base, variant: called to get a model for a while, never both at once; `variant` None: the base's own weights, so
            that KL is 0 by definition and nothing is run twice.
        on_progress: told (tokens done, tokens in all) before each batch; may raise.
    """
    tokenizer = load_tokenizer(renderer.folder)
    tokenizer.encode_special_tokens = True  # a control token spelt in a text is text
    items = [_encoded(renderer, tokenizer, passage) for passage in passages]
    with base() as model:
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
    windows = list(_windows([item for item in items if item.end > item.start], LOGIT_BYTES // (4 * vocabulary)))
    total, done = sum(w.end - w.start for w in windows), 0
    for batch in _batches(windows, LOGIT_BYTES // (4 * vocabulary)):
        if on_progress is not None:
            on_progress(done, total)
        _measure(base, variant, batch)
        done += len(batch.targets)
    return [
        Divergence(
            kl=max(item.kl, 0.0),  # rounding may go below what a divergence can be
            tokens=item.end - item.start,
            bytes=item.bytes,
            base_total=item.base_total,
            variant_total=item.variant_total,
        )
        for item in items
    ]


def _encoded(renderer: ChatRenderer, tokenizer: Any, passage: Passage) -> _Item:
    if isinstance(passage, str):
        return _encoded_text(tokenizer, passage, renderer.context_length)
    messages, reply = passage
    if not reply.strip():
        return _Item((), 0, 0, len(reply.encode()))
    prepared = _prepare(renderer, 0, messages, reply)
    return _Item(prepared.ids, prepared.start, prepared.end, len(reply.encode()))


def _encoded_text(tokenizer: Any, text: str, max_tokens: int) -> _Item:
    """The text with the tokenizer's start token, if it writes one; bytes are those of the counted tokens."""
    encoding = tokenizer.encode(text)
    ids, offsets = encoding.ids, encoding.offsets
    end = len(ids)
    while end and encoding.special_tokens_mask[end - 1]:
        end -= 1
    end = min(end, max_tokens)
    start = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), end)
    start = min(max(start, 1), end)
    counted = text[offsets[start][0] : offsets[end - 1][1]] if end > start else ""
    return _Item(tuple(ids[:end]), start, end, len(counted.encode()))


def _windows(items: Sequence[_Item], limit: int) -> Iterator[_Window]:
    """At most `limit` counted tokens each; what stands before them is read again."""
    limit = max(limit, 1)
    for item in items:
        for start in range(item.start, item.end, limit):
            yield _Window(item, start, min(start + limit, item.end))


def _batches(windows: Sequence[_Window], limit: int) -> Iterator[_Batch]:
    """Neighbours in length together, with bounded logits."""
    chosen: list[_Window] = []
    count = 0
    for window in sorted(windows, key=lambda w: w.end):
        size = window.end - window.start
        if chosen and count + size > limit:
            yield _batch(chosen)
            chosen, count = [], 0
        chosen.append(window)
        count += size
    if chosen:
        yield _batch(chosen)


def _batch(windows: list[_Window]) -> _Batch:
    # the last counted token predicts nothing that is counted, so it is not read
    batch = _Batch(windows, torch.zeros((len(windows), max(w.end - 1 for w in windows)), dtype=torch.long))
    for row, window in enumerate(windows):
        # padding stands at the right, where causal attention never looks
        batch.ids[row, : window.end - 1] = torch.tensor(window.item.ids[: window.end - 1])
        batch.rows += [row] * (window.end - window.start)
        batch.columns += range(window.start - 1, window.end - 1)
        batch.targets += window.item.ids[window.start : window.end]
    return batch


def _measure(base: Opened, variant: Opened | None, batch: _Batch) -> None:
    """Add this batch's sums to its items."""
    before = _log_probabilities(base, batch)
    targets = torch.tensor(batch.targets, device=before.device)[:, None]
    of_base = before.gather(1, targets)[:, 0]
    if variant is None:
        of_variant, kl = of_base, torch.zeros_like(of_base)
    else:
        after = _log_probabilities(variant, batch)
        of_variant = after.gather(1, targets)[:, 0].clone()
        kl = after.neg_().add_(before).mul_(before.exp_()).sum(dim=1)
    rows = torch.tensor(batch.rows)
    sums = torch.zeros((3, len(batch.windows)), dtype=torch.float64)
    for index, values in enumerate((kl, of_base, of_variant)):
        sums[index].index_add_(0, rows, values.cpu().double())
    for window, (moved, first, second) in zip(batch.windows, sums.T.tolist(), strict=True):
        window.item.kl += moved
        window.item.base_total += first
        window.item.variant_total += second


@torch.no_grad()
def _log_probabilities(opened: Opened, batch: _Batch) -> torch.Tensor:
    """log p of every token of the vocabulary at each wanted position: fp32 [positions, vocabulary].

    Through hooks on the model's own head, so that caps and scalings behind it count. Entries that a model masks with
    -inf are made finite, because 0 * inf is no number.
    """
    with opened() as model, _Head(model) as head:
        with head.only_at(batch.rows, batch.columns, batch.ids.shape[1]):
            out = model(input_ids=batch.ids.to(model.device), use_cache=False).logits
        logits = head.picked(out, batch.rows, batch.columns)
        return logits.log_softmax(dim=1).clamp_(min=-1e4)
