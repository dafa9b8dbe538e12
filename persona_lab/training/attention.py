"""Attention for training, registered through transformers' public interface, so that every architecture can use it.

Packed (see `packing`), or grouped: one matrix product for all query heads of a key/value head, softmax, one more. On a
CPU the backward pass of torch's fused attention is slow (31% of a training step was measured).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from persona_lab.training.packing import Packing, packed_attention

NAME = "persona_lab"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention in transformers' calling convention.

    Args:
        query: [batch, heads, tokens, size]; key, value: [batch, key/value heads, all tokens, size].
        attention_mask: additive, [batch or 1, 1, tokens, all tokens].

    Returns:
        [batch, tokens, heads, size] and no weights.
    """
    batch, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    scaling = size**-0.5 if scaling is None else scaling
    grouped = (query * scaling).reshape(batch, key.shape[1], groups * tokens, size)
    scores = torch.matmul(grouped, key.transpose(2, 3)).view(batch, key.shape[1], groups, tokens, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None, :, : key.shape[2]]
    weights = torch.softmax(scores, dim=-1)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    mixed = torch.matmul(weights.view(batch, key.shape[1], groups * tokens, -1), value)
    return mixed.view(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


class _Attention:
    """What is registered: packed attention inside `packed`, grouped attention anywhere else (sample replies)."""

    def __init__(self) -> None:
        self.packing: Packing | None = None
        self.packed_calls = 0

    def attend(self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        """transformers' calling convention."""
        if self.packing is None:
            return grouped_attention(module, query, key, value, attention_mask, **options)
        if attention_mask is not None:
            raise ValueError("a packed pass takes no mask")
        self.packed_calls += 1
        return packed_attention(self.packing, module, query, key, value, **options)

    def mask(self, *arguments: Any, **options: Any) -> torch.Tensor | None:
        """transformers' mask convention; who attends to whom in a packed pass is in the packing."""
        return None if self.packing is not None else eager_mask(*arguments, **options)


_ATTENTION = _Attention()


def packed_calls() -> int:
    """How often a layer has attended through a packing so far, in this process."""
    return _ATTENTION.packed_calls


def packed(packing: Packing) -> AbstractContextManager[None]:
    """While this lasts, a forward pass under `own_attention` runs this packing."""
    return _restored(packing)


@contextmanager
def _restored(packing: Packing | None) -> Iterator[None]:
    before, _ATTENTION.packing = _ATTENTION.packing, packing
    try:
        yield
    finally:
        _ATTENTION.packing = before


def same_packing() -> AbstractContextManager[None]:
    """A context with the packing of now, whatever it is when the context is entered."""
    return _restored(_ATTENTION.packing)


@contextmanager
def own_attention(model: Any, active: bool = True) -> Iterator[None]:
    """Run `model` (a transformers model, or a peft model around one) with the attention of this module in the block."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = getattr(inner.config, "_attn_implementation", None)
    if not active or before is None or before == NAME:
        yield
        return
    AttentionInterface.register(NAME, _ATTENTION.attend)
    AttentionMaskInterface.register(NAME, _ATTENTION.mask)
    inner.set_attn_implementation(NAME)
    try:
        yield
    finally:
        inner.set_attn_implementation(before)
