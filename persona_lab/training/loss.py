"""The training loss of a batch, by the fastest path that gives the same number as the plain one.

Three paths, tried in this order and checked against the plain one on a few real examples before use:
`prefix`: the tokens all examples share run once, their keys and values are expanded over the batch (gradients flow
through the cache), and the output head runs only where there is something to predict;
`head`: no shared prefix, the head only where needed; `plain`: the model's own logits, for models that allow no other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.utils.checkpoint
from torch.nn import functional
from transformers import DynamicCache

from persona_lab.training.attention import cpu_attention
from persona_lab.training.batches import Batch, collate, shared_prefix
from persona_lab.types import Rendered

CHUNK = 256
"""Supervised positions whose logits are in memory at once."""
CHECKED_EXAMPLES = 16
"""Short ones. With three (17 tokens of a play) bf16 rounding alone came near the 1% allowed; it averages out."""
RELATIVE_ERROR = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 5e-3}

PathName = Literal["prefix", "head", "plain"]


@dataclass(frozen=True)
class LossPath:
    """How to compute the loss of a model; `attention`: whether the CPU's own attention is used."""

    name: PathName
    attention: bool = False

    def uses_prefix(self) -> bool:
        """Whether batches come without the tokens they share."""
        return self.name == "prefix"


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`, in chunks, with its gradients worked out on the way forward.

    The logits [positions, vocabulary] are the largest tensor of a step; here only a chunk of them ever exists.
    Method: Hsu et al. 2024, Liger Kernel, https://arxiv.org/abs/2410.10989.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, learn: bool
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        learn_weight = learn and ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if learn else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learn_weight else None
        for start in range(0, hidden.shape[0], CHUNK):
            part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = functional.linear(part, weight).float()
            logs = torch.log_softmax(logits, dim=-1)
            total -= logs.gather(1, wanted).sum()
            if grad_hidden is None:
                continue
            error = logs.exp_()
            error.scatter_add_(1, wanted, torch.full_like(error[:, :1], -1.0))
            error = error.to(weight.dtype)
            grad_hidden[start : start + CHUNK] = error @ weight
            if grad_weight is not None:
                grad_weight += error.T @ part.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype),
            None,
            None,
        )


def head_loss(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in nats of the output head over `hidden` [positions, size]; never all logits at once."""
    learn = torch.is_grad_enabled()
    if type(head) is torch.nn.Linear and head.bias is None and head.weight.is_floating_point():
        return _LinearCrossEntropy.apply(hidden, head.weight, targets, learn)

    def piece(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(part).float(), wanted, reduction="sum")

    pieces = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    if learn:
        return torch.stack([torch.utils.checkpoint.checkpoint(piece, *p, use_reentrant=False) for p in pieces]).sum()
    return torch.stack([piece(*p) for p in pieces]).sum()


def batch_loss(model: Any, batch: Batch, prefix: Sequence[int], path: LossPath) -> torch.Tensor:
    """Summed nats over the batch's supervised tokens; divide by `batch.supervised` for the mean.

    `prefix`: the tokens in front of every row of the batch, when `path` uses one.
    """
    if path.name == "plain":
        logits = model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).logits
        logits = logits[:, -batch.ids.shape[1] :]  # virtual tokens of prompt tuning come first
        return functional.cross_entropy(logits[batch.rows, batch.columns].float(), batch.targets, reduction="sum")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, head = inner.get_decoder(), inner.get_output_embeddings()
    # No mask for padding: it stands at the right, where a causal model's real tokens never look.
    if path.uses_prefix():
        cache = DynamicCache()
        shared = torch.tensor([prefix], device=batch.ids.device)
        decoder(input_ids=shared, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            layer.keys = layer.keys.expand(batch.ids.shape[0], *layer.keys.shape[1:])
            layer.values = layer.values.expand(batch.ids.shape[0], *layer.values.shape[1:])
        hidden = decoder(input_ids=batch.ids, past_key_values=cache, use_cache=True).last_hidden_state
    else:
        hidden = decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
    return head_loss(head, hidden[batch.rows, batch.columns], batch.targets)


def choose_path(
    model: Any, examples: Sequence[Rendered], pad_id: int, device: str, log: Callable[[str], None]
) -> LossPath:
    """The fastest path whose loss on a few examples equals the plain one's; says in `log` why a faster one is not used.

    Leaves the model in evaluation mode.
    """
    model.eval()
    few = sorted(examples, key=lambda example: len(example.ids))[:CHECKED_EXAMPLES]
    prefix = shared_prefix(examples)
    plain = LossPath("plain")
    expected = _loss_of(model, few, (), pad_id, device, plain)
    names: list[PathName] = ["prefix", "head"] if prefix else ["head"]
    attentions = [True, False] if device == "cpu" else [False]
    tolerance = RELATIVE_ERROR.get(_compute_type(model), 1e-2)
    for attention in attentions:
        for name in names:
            path = LossPath(name, attention)
            why = _difference(model, few, prefix, pad_id, device, path, expected, tolerance)
            if not why:
                return path
            log(f"Training path {name!r}{' with own attention' if attention else ''} is not used: {why}.")
    return plain


def _difference(
    model: Any,
    few: Sequence[Rendered],
    prefix: tuple[int, ...],
    pad_id: int,
    device: str,
    path: LossPath,
    expected: float,
    tolerance: float,
) -> str:
    """Why this path cannot stand in for the plain one; empty when it can."""
    try:
        got = _loss_of(model, few, prefix if path.uses_prefix() else (), pad_id, device, path)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        # Any architecture may be loaded here; those that lack the doors used above say so in these ways.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if not math.isclose(got, expected, rel_tol=tolerance):
        return f"its loss is {got:.5f} where the model's own is {expected:.5f}"
    return ""


@torch.no_grad()
def _loss_of(
    model: Any, few: Sequence[Rendered], prefix: tuple[int, ...], pad_id: int, device: str, path: LossPath
) -> float:
    batch = collate(few, len(prefix), pad_id, device)
    with cpu_attention(model, path.attention), computing(model):
        return float(batch_loss(model, batch, prefix, path)) / max(batch.supervised, 1)


def _compute_type(model: Any) -> torch.dtype:
    """The type most of the model computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def computing(model: Any, bf16: bool = False) -> contextlib.AbstractContextManager[Any]:
    """A context that computes in bf16 if asked and if the model's trained weights are fp32; else does nothing."""
    trained = next((p for p in model.parameters() if p.requires_grad), None)
    if bf16 and trained is not None and trained.dtype == torch.float32:
        return torch.autocast(trained.device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
