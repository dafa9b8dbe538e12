"""Cross-entropy of the output head at the supervised positions, in chunks: never all logits at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch.nn import functional

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
