"""Where LoRA's matrices start: on singular vectors (PiSSA), on Q and R (OLoRA), or on what the data excites (EVA).

PiSSA and OLoRA are usually done by taking the start out of the base weights, which then fits no other adapter, and
rounds in bf16. Here the base stays as it is: the adapter holds the trained part and the start with its sign turned,

    W + s (B A - B0 A0) = W + s [B | -B0] [A ; A0],

which has the same values and gradients as the residual form, is a plain LoRA of twice the rank, and reloads on the
original base exactly as it was trained. The second half never moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from persona_lab.errors import BadInput

SPECTRAL = ("pissa", "olora")
"""Starts that come from the base's own weights."""
_POWER_ITERATIONS = 8
_SMALL = 256
"""Weights no wider than this have their whole SVD taken, which is cheap for them."""


@torch.no_grad()
def start_from_weights(modules: Sequence[Any], rank: int, method: str) -> None:
    """Fill LoRA layers of twice `rank` with a spectral start; their second halves are kept from moving.

    PiSSA (Meng et al. 2024, https://arxiv.org/abs/2404.02948): the `rank` largest singular vectors, in fp32; by a
    randomised SVD for all but small weights. OLoRA (Büyükakyüz 2024, https://arxiv.org/abs/2406.01775): the first
    `rank` columns of Q and rows of R. Where a weight has fewer than `rank` of them, the rest is ordinary LoRA.
    """
    from peft.utils.integrations import dequantize_module_weight

    for module in modules:
        (name,) = module.active_adapters
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        weight = dequantize_module_weight(module.get_base_layer()).float()
        weight = weight.t() if module.fan_in_fan_out else weight
        down, up = _factors(weight, rank, method, module.scaling[name])
        found = down.shape[0]
        a[rank:], b[:, rank:] = 0, 0
        a[:found], b[:, :found] = down, up
        a[rank : rank + found], b[:, rank : rank + found] = a[:found], -b[:, :found]
        _keep(a, rank, 0)
        _keep(b, rank, 1)


def _factors(weight: torch.Tensor, rank: int, method: str, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 [found, inputs] and B0 [outputs, found] of a weight [outputs, inputs], fp32."""
    if method == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    if min(weight.shape) <= _SMALL:
        left, values, rows = torch.linalg.svd(weight, full_matrices=False)
        right = rows.t()
    else:  # twice as many as are kept: the last ones of a randomised SVD are the rough ones
        asked = min(2 * rank, *weight.shape)
        left, values, right = torch.svd_lowrank(weight, q=asked, niter=_POWER_ITERATIONS)
    root = (values[:rank] / scaling).sqrt()
    return root[:, None] * right[:, :rank].t(), left[:, :rank] * root


def _keep(weight: torch.nn.Parameter, start: int, dimension: int) -> None:
    """Keep the part of a weight from `start` on as it is: its gradient is nothing."""

    def masked(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.narrow(dimension, start, gradient.shape[dimension] - start).zero_()
        return gradient

    weight.register_hook(masked)
    weight.fixed = (dimension, start, weight.shape[dimension] - start)  # for `narrow`
    weight.untrained = weight.numel() * (weight.shape[dimension] - start) // weight.shape[dimension]


@torch.no_grad()
def start_from_data(model: Any, modules: Sequence[Any], batch: Mapping[str, torch.Tensor] | None) -> None:
    """EVA (Paischer et al. 2024, https://arxiv.org/abs/2410.07170): A from the directions that the data excites most.

    One forward pass; each LoRA layer takes the principal directions of what it reads at the tokens trained on. Every
    layer keeps its rank, and B stays zero, so the model starts as the base. (peft's own EVA goes on until every layer's
    incremental SVD has settled: with 32 conversations and the starter over two minutes on one core, and this 30 s.)

    Args:
        batch: `input_ids`, `attention_mask` and `labels` (-100 where nothing is trained on), each [rows, tokens].

    Raises:
        BadInput: there is no data.
    """
    if batch is None or not bool((batch["labels"] != -100).any()):
        raise BadInput("EVA needs conversations to start from.", "Use another initialisation.")
    device = next(model.parameters()).device
    wanted = (batch["labels"] != -100).to(device)
    last: list[Any] = [None, None]  # q, k and v read one tensor, as do gate and up

    def read(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        (name,) = module.active_adapters
        weight = module.lora_A[name].weight
        if inputs[0] is not last[0]:
            last[:] = inputs[0], _principal(inputs[0][wanted].float(), weight.shape[0])
        found = last[1].shape[0]
        weight[:found] = last[1]

    handles = [module.register_forward_pre_hook(read) for module in modules]
    try:
        model.eval()(
            input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device), use_cache=False
        )
    finally:
        for handle in handles:
            handle.remove()


def _principal(states: torch.Tensor, rank: int) -> torch.Tensor:
    """The principal directions [found, size] of states [tokens, size]; `found` is at most `rank`."""
    states = states - states.mean(dim=0)
    if min(states.shape) <= _SMALL:
        return torch.linalg.svd(states, full_matrices=False)[2][:rank]
    directions = torch.svd_lowrank(states, q=min(2 * rank, *states.shape), niter=_POWER_ITERATIONS)[2]
    return directions[:, :rank].t()
