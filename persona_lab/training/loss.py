"""Cross-entropy of the output head at the supervised positions, in chunks: never all logits at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch.nn import functional

from persona_lab.training.packing import filler

CHUNK = 256
"""Supervised positions whose logits are in memory at once."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`, in chunks, with its gradients worked out on the way forward.

    The logits [positions, vocabulary] are the largest tensor of a step; here only a chunk of them ever exists.
    Method: Hsu et al. 2024, Liger Kernel, https://arxiv.org/abs/2410.10989.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, learn: bool
    ) -> torch.Tensor:
        learn_weight = learn and ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if learn else None
        grad_weight = None
        for start in range(0, hidden.shape[0], CHUNK):
            part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            real = len(part)
            part = functional.pad(part, (0, 0, 0, filler(real)))  # zeros: see `packing` for what odd numbers cost
            logits = functional.linear(part, weight).float()
            total -= torch.log_softmax(logits[:real], dim=-1).gather(1, wanted).sum()
            if grad_hidden is None:
                continue
            error = torch.softmax(logits, dim=-1)  # cheaper than the exponential of the logarithms
            error[:real].scatter_add_(1, wanted, torch.full_like(wanted, -1.0, dtype=error.dtype))
            error[real:] = 0
            error = error.to(weight.dtype)
            grad_hidden[start : start + CHUNK] = (error @ weight)[:real]
            if learn_weight:
                grad_weight = _added(grad_weight, error.t(), part.to(weight.dtype))
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight.mul_(scale.to(grad_weight.dtype)),
            None,
            None,
        )


def _added(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """total + left @ right; one chunk needs no sum, and no fp32 copy of something as large as the vocabulary."""
    if total is None:
        return torch.mm(left, right)
    return total.float().add_(torch.mm(left, right)).to(right.dtype)


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
