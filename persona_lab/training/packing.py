"""Many conversations in one row without padding: the shared prefix once, then the rest of each example.

Every layer but attention works on single tokens, so it sees one row [1, tokens] and wastes nothing. Attention (see
`attention`) takes the row apart: each example attends to the prefix and to itself.
One pass instead of two (prefix, then examples), no padding, and no mask or cache of transformers' own.

oneDNN makes a program of about a megabyte for every shape that it multiplies in bf16, and keeps a thousand of them.
So a row is filled up to a multiple of EVEN tokens, or memory grows with every batch of a new length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from persona_lab.training.batches import Batch

EVEN = 16
"""Tokens of a row, and of the rectangle that attention takes it apart into, are a multiple of this."""


def filler(tokens: int) -> int:
    """How many tokens are put behind a row of so many. They attend to nothing, and nothing attends to them."""
    return -tokens % EVEN


@dataclass(frozen=True)
class Segments:
    """Rows that attend alike: `queries` tokens each, to `keys` tokens each.

    `query_at`: [rows, width] and `key_at`: [rows, keys], where in the packed row each token stands; `missing`: places
    in the flattened [rows * width] that are only there to make a rectangle; `back`: [tokens of this group], where in
    that flattened rectangle each packed token stands; `hidden`: [width, keys], True where attention is forbidden.
    """

    query_at: torch.Tensor
    key_at: torch.Tensor
    missing: torch.Tensor
    back: torch.Tensor
    hidden: torch.Tensor


class Packing:
    """How one batch stands in a row: `ids`, `positions` [1, tokens], the examples' `lengths`, and who attends to whom.

    The row ends with `filler` tokens that belong to no example.

    Args:
        batch: right-padded examples without their shared prefix.
        prefix: the tokens in front of every example; may be empty.
    """

    def __init__(self, batch: Batch, prefix: Sequence[int]) -> None:
        device = batch.ids.device
        self.lengths = lengths = batch.real.sum(dim=1).tolist()
        shared = len(prefix)
        tails = [batch.ids[row, :n] for row, n in enumerate(lengths)]
        self.filler = filler(shared + sum(lengths))
        front = torch.tensor(prefix, dtype=torch.long, device=device)
        behind = batch.ids[0, :1].expand(self.filler)
        self.ids = torch.cat([front, *tails, behind])[None]
        spans = [torch.arange(shared), *(torch.arange(shared, shared + n) for n in lengths), torch.arange(self.filler)]
        self.positions = torch.cat(spans).to(device)[None]
        starts = torch.tensor([shared + sum(lengths[:row]) for row in range(len(lengths))], device=device)
        self.predicting = starts[batch.rows] + batch.columns
        """[supervised]: where in the row the hidden states stand that predict `batch.targets`."""
        self.prefix = shared
        self.longest = shared + max(lengths)
        self.groups = [self._examples(starts.tolist(), lengths, device)]
        if shared:
            self.groups.insert(0, self._alone(shared, device))
        self.places: dict[Any, list[_Places]] = {}
        """Kept by the attention, so that it is worked out once for all layers."""

    def _alone(self, shared: int, device: torch.device) -> Segments:
        every = torch.arange(shared, device=device)
        hidden = torch.ones(shared, shared, dtype=torch.bool, device=device).triu(1)
        return Segments(every[None], every[None], every[:0], every, hidden)

    def _examples(self, starts: list[int], lengths: list[int], device: torch.device) -> Segments:
        width, shared = max(lengths) + filler(max(lengths)), self.prefix
        column = torch.arange(width)
        real = column[None] < torch.tensor(lengths)[:, None]
        query_at = torch.where(real, torch.tensor(starts)[:, None] + column, starts[0])
        front = torch.arange(shared).expand(len(lengths), shared)
        hidden = torch.ones(width, width, dtype=torch.bool).triu(1)
        return Segments(
            query_at=query_at.to(device),
            key_at=torch.cat([front, query_at], dim=1).to(device),
            missing=(~real).flatten().nonzero()[:, 0].to(device),
            back=real.flatten().nonzero()[:, 0].to(device),
            hidden=torch.cat([torch.zeros(width, shared, dtype=torch.bool), hidden], dim=1).to(device),
        )


def _by_head(where: torch.Tensor, heads: int) -> torch.Tensor:
    """Row numbers [rows, heads, tokens] in a [tokens * heads, size] view, of tokens `where` [rows, tokens]."""
    return where[:, None, :] * heads + torch.arange(heads, device=where.device)[None, :, None]


@dataclass
class _Places:
    """Row numbers in the flattened [tokens * heads, size] states, for one group and number of heads."""

    queries: torch.Tensor
    keys: torch.Tensor
    missing: torch.Tensor
    back: torch.Tensor
    key_back: torch.Tensor
    bias: torch.Tensor
    shape: tuple[int, int, int, int, int]
    """rows, key/value heads, query heads of each, width, keys."""


def _places(group: Segments, heads: int, key_heads: int, prefix: int, window: int, dtype: torch.dtype) -> _Places:
    rows, width = group.query_at.shape
    keys, each = group.key_at.shape[1], heads // key_heads
    device = group.query_at.device
    head = torch.arange(heads, device=device)
    token, row = group.back % width, group.back // width
    # where [row, head, token] of the rectangle stands for each packed token: [tokens, heads]
    back = (row[:, None] * heads + head) * width + token[:, None]
    key_head = torch.arange(key_heads, device=device)
    own = keys - width
    key_back = (row[:, None] * key_heads + key_head) * keys + own + token[:, None]
    lost = group.missing
    missing = ((lost // width)[:, None] * heads + head) * width + (lost % width)[:, None]
    hidden = group.hidden
    if window:
        distance = torch.arange(own, keys, device=device)[:, None] - torch.arange(keys, device=device)[None]
        hidden = hidden | (distance >= window)
    bias = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
    return _Places(
        queries=_by_head(group.query_at, heads).reshape(-1),
        keys=_by_head(group.key_at, key_heads).reshape(-1),
        missing=missing.flatten(),
        back=back.flatten(),
        key_back=key_back.flatten(),
        bias=bias,
        shape=(rows, key_heads, each, width, keys),
    )


def _flat(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, size] as [tokens * heads, size]; no copy where the tokens lie outermost in memory."""
    return states.transpose(1, 2).reshape(-1, states.shape[-1])


class _PackedAttention(torch.autograd.Function):
    """softmax(Q K^T * scaling + bias) V over the segments of a packing, with its gradient written out.

    Gathering by index is exact both ways; torch's own gradient of a gather would add into zeros, token by token.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, scaling: float, places: list[_Places], prefix: int) -> Any:
        size, value_size = query.shape[-1], value.shape[-1]
        queries, keys, values = _flat(query), _flat(key), _flat(value)
        kept, parts = [], []
        for place in places:
            rows, key_heads, each, width, span = place.shape
            q = queries.index_select(0, place.queries).view(rows * key_heads, each * width, size)
            k = keys.index_select(0, place.keys).view(rows * key_heads, span, size)
            v = values.index_select(0, place.keys).view(rows * key_heads, span, value_size)
            scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling).view(rows * key_heads, each, width, span)
            weights = torch.softmax(scores.add_(place.bias), dim=-1).view(rows * key_heads, each * width, span)
            mixed = torch.bmm(weights, v)
            parts.append(mixed.view(-1, value_size).index_select(0, place.back))
            kept += [q, k, v, weights]
        ctx.save_for_backward(*kept)
        ctx.places, ctx.scaling, ctx.prefix = places, scaling, prefix
        ctx.heads = (query.shape[1], key.shape[1])
        return _joined(parts, query, value_size)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        heads, key_heads = ctx.heads
        grads = grad.reshape(-1, grad.shape[-1])
        found: list[list[torch.Tensor]] = [[], [], []]
        front: list[torch.Tensor] = []
        saved = ctx.saved_tensors
        for number, place in enumerate(ctx.places):
            q, k, v, weights = saved[4 * number : 4 * number + 4]
            rows, _, each, width, span = place.shape
            down = grads.index_select(0, place.queries)
            down.index_fill_(0, place.missing, 0)
            down = down.view(rows * key_heads, each * width, -1)
            of_values = torch.bmm(weights.transpose(1, 2), down)
            of_weights = torch.bmm(down, v.transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scaling)
            of_queries, of_keys = torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q)
            found[0].append(of_queries.view(-1, of_queries.shape[-1]).index_select(0, place.back))
            for slot, part in ((1, of_keys), (2, of_values)):
                found[slot].append(part.view(-1, part.shape[-1]).index_select(0, place.key_back))
                if span > width:  # what the examples ask of the prefix
                    shared = part.view(rows, key_heads, span, -1)[:, :, : span - width].sum(dim=0)
                    front.append(shared.transpose(0, 1).reshape(-1, part.shape[-1]))
        for slot, shared in zip((1, 2), front, strict=False):
            found[slot][0] += shared
        tokens = grads.shape[0] // heads
        behind = tokens - sum(map(len, found[0])) // heads
        for parts, count in zip(found, (heads, key_heads, key_heads), strict=True):
            parts.append(parts[0].new_zeros(behind * count, parts[0].shape[-1]))
        shaped = [
            torch.cat(parts).view(1, tokens, count, -1).transpose(1, 2)
            for parts, count in zip(found, (heads, key_heads, key_heads), strict=True)
        ]
        return (*shaped, None, None, None)


def _plain(query: Any, key: Any, value: Any, scaling: float, place: _Places, dropout: float, softcap: Any) -> Any:
    """The same for one group in torch's own operations, for models that drop weights or cap scores."""
    rows, key_heads, each, width, span = place.shape
    q = _flat(query).index_select(0, place.queries).view(rows * key_heads, each * width, -1)
    k = _flat(key).index_select(0, place.keys).view(rows * key_heads, span, -1)
    v = _flat(value).index_select(0, place.keys).view(rows * key_heads, span, -1)
    scores = torch.bmm(q, k.transpose(1, 2)).view(rows * key_heads, each, width, span) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.nn.functional.dropout(torch.softmax(scores + place.bias, dim=-1), p=dropout)
    mixed = torch.bmm(weights.view(rows * key_heads, each * width, span), v)
    return mixed.view(-1, mixed.shape[-1]).index_select(0, place.back)


def packed_attention(
    packing: Packing,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, heads, tokens, size]; key, value [1, key/value heads, tokens, size] -> [1, tokens, heads, size].

    Raises:
        ValueError: the model wants something of attention that is not done here.
    """
    strange = [name for name in ("s_aux", "position_bias", "block_mask") if others.get(name) is not None]
    if strange or query.shape[0] != 1 or query.shape[2] != packing.ids.shape[1]:
        raise ValueError(f"packed attention cannot do this: {', '.join(strange) or tuple(query.shape)}")
    if not getattr(module, "is_causal", True):
        raise ValueError("attention that looks ahead cannot be packed")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    places = _all_places(packing, query, key, sliding_window or 0)
    dropout = dropout if module.training else 0.0
    if not dropout and softcap is None:
        return _PackedAttention.apply(query, key, value, scaling, places, packing.prefix), None
    parts = [_plain(query, key, value, scaling, place, dropout, softcap) for place in places]
    return _joined(parts, query, value.shape[-1]), None


def _joined(parts: list[torch.Tensor], query: torch.Tensor, size: int) -> torch.Tensor:
    """[1, tokens, heads, size]: what attention found for each group, and nothing for the tokens behind them."""
    heads, tokens = query.shape[1:3]
    behind = tokens * heads - sum(map(len, parts))
    return torch.cat([*parts, parts[0].new_zeros(behind, size)]).view(1, tokens, heads, size)


def _all_places(packing: Packing, query: torch.Tensor, key: torch.Tensor, window: int) -> list[_Places]:
    """Worked out once a pass for all layers that are alike; a window that no example fills is none."""
    window = window if window < packing.longest else 0
    wanted = (query.shape[1], key.shape[1], window, query.dtype)
    if wanted not in packing.places:
        packing.places[wanted] = [
            _places(group, query.shape[1], key.shape[1], packing.prefix, window, query.dtype)
            for group in packing.groups
        ]
    return packing.places[wanted]
