"""Where LoRA's matrices start: on singular vectors (PiSSA), on Q and R (OLoRA), or on what the data excites (EVA).

PiSSA and OLoRA are usually done by taking the start out of the base weights, which then fits no other adapter, and
rounds in bf16. Here the base stays as it is: the adapter holds the trained part and the start with its sign turned,

    W + s (B A - B0 A0) = W + s [B | -B0] [A ; A0],

which has the same values and gradients as the residual form, is a plain LoRA of twice the rank, and reloads on the
original base exactly as it was trained. The second half never moves.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from persona_lab.errors import BadInput

SPECTRAL = ("pissa", "olora")
"""Starts that come from the base's own weights."""
_POWER_ITERATIONS = 8
_SMALL = 256
"""Weights of this width have their whole SVD taken: it costs less than a millisecond each."""


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
    weight.untrained = weight.numel() * (weight.shape[dimension] - start) // weight.shape[dimension]


def start_from_data(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> None:
    """EVA (Paischer et al. 2024, https://arxiv.org/abs/2410.07170): A from the directions that the data excites most.

    Every layer keeps its rank. B stays zero, so the model starts as the base.

    Args:
        batches: `input_ids`, `attention_mask` and `labels` (-100 where nothing is trained on), each [batch, tokens].

    Raises:
        BadInput: there is no data.
    """
    from peft import EvaConfig
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    if not batches:
        raise BadInput("EVA needs conversations to start from.", "Use another initialisation.")
    config = model.peft_config["default"]
    targets = config.target_modules
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    config.target_modules, config.rank_pattern, config.alpha_pattern = targets, {}, {}
    config.init_lora_weights, config.eva_config = True, None
