"""Keys and values: a cache that grows without being copied, and the prefixes that are kept between requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

PREFIX_BYTES = 256 << 20
LEAST_SHARED = 8
"""Tokens; fewer are not worth looking up."""
States = list[tuple[torch.Tensor, torch.Tensor]]
"""Each layer's keys and values of one row, [heads, tokens, size]."""


class GrowingLayer(DynamicLayer):
    """A layer with room for tokens to come: a new token is written in place, where DynamicLayer copies everything.

    Args:
        room: tokens that it can hold; more are possible, with a copy.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._filled = 0
        self._all_keys: Any = None
        self._all_values: Any = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values [rows, heads, tokens, size]; all so far, as views."""
        end = self._filled + key_states.shape[2]
        if self._all_keys is None or end > self._all_keys.shape[2]:
            self._grow(key_states, value_states, max(end, self.room))
        self._all_keys[:, :, self._filled : end] = key_states
        self._all_values[:, :, self._filled : end] = value_states
        self._filled = end
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values

    def write_token(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `update`, for one token's [rows, heads, size]."""
        at = self._filled
        if self._all_keys is None or at >= self._all_keys.shape[2]:
            return self.update(keys[:, :, None], values[:, :, None])
        self._all_keys.select(2, at).copy_(keys)
        self._all_values.select(2, at).copy_(values)
        self._filled = at + 1
        self.keys, self.values = self._all_keys.narrow(2, 0, at + 1), self._all_values.narrow(2, 0, at + 1)
        return self.keys, self.values

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        rows, heads = keys.shape[:2]
        all_keys, all_values = (x.new_zeros(rows, heads, room, x.shape[3]) for x in (keys, values))
        if self._filled:
            all_keys[:, :, : self._filled] = self.keys
            all_values[:, :, : self._filled] = self.values
        self._all_keys, self._all_values, self.is_initialized = all_keys, all_values, True
        self.device = keys.device

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        if self._filled:
            self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
            self.keys, self.values = self._all_keys[:, :, : self._filled], self._all_values[:, :, : self._filled]


def growing_cache(config: Any, room: int) -> DynamicCache | None:
    """A cache for `room` tokens a row; None for a model that keeps something else than keys and values, or drops some.

    A sliding window that nothing can slide out of is an ordinary layer.
    """
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        whole = type(layer) is DynamicLayer
        if not whole and not (type(layer) is DynamicSlidingWindowLayer and room < layer.sliding_window):
            return None
    cache.layers = [GrowingLayer(room) for _ in cache.layers]
    return cache if cache.layers else None


def fill(cache: DynamicCache, rows: Sequence[Known | None], width: int) -> None:
    """Put what is known of each row's beginning into an empty cache: `width` columns, aligned at the right."""
    like = next(known.states for known in rows if known is not None)
    for number, layer in enumerate(cache.layers):
        keys, values = (like[number][part].new_zeros(len(rows), *_shape(like[number][part], width)) for part in (0, 1))
        for row, known in enumerate(rows):
            if known is not None and known.length:
                keys[row, :, width - known.length :] = known.states[number][0][:, : known.length]
                values[row, :, width - known.length :] = known.states[number][1][:, : known.length]
        layer.update(keys, values)


def _shape(states: torch.Tensor, width: int) -> tuple[int, int, int]:
    return states.shape[0], width, states.shape[2]


def row_states(cache: DynamicCache, row: int, columns: torch.Tensor) -> States:
    """A copy of one row's keys and values at these columns."""
    found = []
    for layer in cache.layers:
        keys: Any = layer.keys
        values: Any = layer.values
        found.append((keys[row][:, columns], values[row][:, columns]))
    return found


@dataclass
class Known:
    """The first `length` tokens of an entry: their keys and values need not be computed again.

    `logits`: of the token after them [vocabulary], where they are known too.
    """

    states: States
    length: int
    logits: torch.Tensor | None = None


@dataclass
class _Entry:
    ids: tuple[int, ...]
    states: States
    logits: dict[int, torch.Tensor] = field(default_factory=dict)

    def bytes(self) -> int:
        states = sum(keys.nbytes + values.nbytes for keys, values in self.states)
        return states + sum(logits.nbytes for logits in self.logits.values())


class PrefixCache:
    """Keys and values of prompts and replies, kept between requests; the longest unused go first.

    A row may go on from the longest beginning it shares with anything that ran on the same weights. What comes out is
    what a computation from the start gives, but for the rounding of another batch shape.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int = PREFIX_BYTES) -> None:
        self.limit = limit
        self._entries: OrderedDict[tuple[str, tuple[int, ...]], _Entry] = OrderedDict()

    def find(self, weights: str, ids: Sequence[int]) -> Known | None:
        """The longest known beginning of `ids` under these weights: all of it only where its logits are known."""
        best, length = None, LEAST_SHARED - 1
        for key in reversed(self._entries):
            if key[0] == weights:
                entry = self._entries[key]
                common = shared_length(entry.ids, ids)
                if common == len(ids) and common not in entry.logits:
                    common -= 1
                if common > length:
                    best, length = key, common
        if best is None:
            return None
        self._entries.move_to_end(best)
        entry = self._entries[best]
        return Known(entry.states, length, entry.logits.get(length) if length == len(ids) else None)

    def add(self, weights: str, ids: Sequence[int], states: States, prompt: int, logits: torch.Tensor) -> None:
        """Keep a row's tokens with their keys and values; `logits` [vocabulary] came after the first `prompt`."""
        entry = _Entry(tuple(ids), states, {prompt: logits})
        for key in [key for key in self._entries if key[0] == weights and entry.ids[: len(key[1])] == key[1]]:
            entry.logits = self._entries.pop(key).logits | entry.logits
        self._entries[weights, entry.ids] = entry
        while self.bytes() > self.limit:
            self._entries.popitem(last=False)

    def bytes(self) -> int:
        """Memory in use."""
        return sum(entry.bytes() for entry in self._entries.values())


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens with which both begin."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)
