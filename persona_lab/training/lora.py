"""LoRA on a base model: attach, merge, switch one layer's update off, measure how far the weights moved.

Nothing here trains; see `fit`. Method: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from persona_lab.errors import BadSetting

_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")


def attach_lora(
    model: Any, rank: int = 16, alpha: float = 32, dropout: float = 0.0, targets: str | Sequence[str] = "all-linear"
) -> Any:
    """A peft model around `model` with fresh, trainable LoRA weights; the base stays frozen.

    The LoRA weights take the base's own type (bf16 where that is fast), so that no layer converts its input; the fit
    loop keeps fp32 masters of them.

    Args:
        targets: names of the layers to adapt, or `all-linear`: every linear layer but the output head.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        fan_in_fan_out=getattr(model.config, "model_type", "") == "gpt2",
    )
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    kind = _compute_type(model)
    for _, module in _lora_modules(adapted):
        for part in (module.lora_A, module.lora_B):
            part.to(kind)
    return adapted


def merged_model(model: Any) -> Any:
    """The base with the LoRA update added into its weights, frozen; `model` must not be used afterwards.

    Raises:
        BadSetting: the base is quantised; adding into 4-bit weights would lose the update.
    """
    if getattr(model.get_base_model(), "is_quantized", False):
        raise BadSetting(
            "A LoRA cannot be merged into 4-bit weights.", "Train with `lora`, or merge on the unquantised base."
        )
    merged = model.merge_and_unload()
    return merged.requires_grad_(False)


def adapted_layers(model: Any) -> list[int]:
    """Numbers of the decoder layers that carry a LoRA update, in order."""
    return sorted({layer for name, _ in _lora_modules(model) if (layer := layer_of(name)) is not None})


def layer_of(name: str) -> int | None:
    """The decoder layer that a parameter or module belongs to, by its name; None for the embeddings, for one."""
    found = _LAYER.search(f".{name}.")
    return int(found.group(1)) if found else None


@contextmanager
def without_layer(model: Any, layer: int) -> Iterator[None]:
    """Switch off one layer's LoRA update (its scaling becomes 0) inside the block."""
    modules = [module for name, module in _lora_modules(model) if layer_of(name) == layer]
    before = [dict(module.scaling) for module in modules]
    for module in modules:
        module.scaling.update(dict.fromkeys(module.scaling, 0.0))
    try:
        yield
    finally:
        for module, scaling in zip(modules, before, strict=True):
            module.scaling.update(scaling)


def train_layers(model: Any, layers: Sequence[int]) -> int:
    """Make exactly these decoder layers trainable; returns how many weights that are."""
    wanted, count = set(layers), 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layer_of(name) in wanted)
        count += parameter.numel() if parameter.requires_grad else 0
    return count


@torch.no_grad()
def relative_update(model: Any) -> float:
    """||dW|| / ||W|| (Frobenius) over all adapted weights of a LoRA model: how far training moved them."""
    from peft.utils.integrations import dequantize_module_weight

    moved = size = 0.0
    for _, module in _lora_modules(model):
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                moved += float(module.get_delta_weight(adapter).float().square().sum())
        size += float(dequantize_module_weight(module.get_base_layer()).float().square().sum())
    return math.sqrt(moved / size) if size else 0.0


def _lora_modules(model: Any) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    ]


def _compute_type(model: Any) -> torch.dtype:
    """The type the base computes in: that of its unquantised floating-point weights."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
