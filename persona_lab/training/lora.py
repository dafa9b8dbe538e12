"""LoRA on a base model: attach, merge, switch one layer's update off, measure how far the weights moved.

Nothing here trains; see `fit`. Method: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from persona_lab.errors import BadSetting
from persona_lab.training.lora_start import SPECTRAL, start_from_data, start_from_weights

_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")


def attach_lora(
    model: Any,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    *,
    rslora: bool = False,
    dora: bool = False,
    initialisation: str = "default",
    batch: Mapping[str, torch.Tensor] | None = None,
) -> Any:
    """A peft model around `model` with fresh, trainable LoRA weights; the base stays frozen and as it is.

    The LoRA weights take the base's own type (bf16 where that is fast), so that no layer converts its input; the fit
    loop keeps fp32 masters of them.

    Args:
        targets: `all-linear` (every linear layer but the output head), `attention` or `mlp` (only those of each decoder
            layer), or names of the layers to adapt.
        rslora: scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
        dora: also train the length of each row of the weights (Liu et al. 2024, https://arxiv.org/abs/2402.09353).
        initialisation: `default`, `gaussian`, `orthogonal`, `pissa`, `olora` or `eva`. `pissa` and `olora` make an
            adapter of twice the rank, half of which stays as it is (see `lora_start`).
        batch: for `eva`: see `start_from_data`.

    Raises:
        BadSetting: the model has no such layers.
    """
    from peft import LoraConfig, get_peft_model

    doubled = initialisation in SPECTRAL
    config = LoraConfig(
        r=2 * rank if doubled else rank,
        lora_alpha=_same_scaling(alpha, rslora) if doubled else alpha,
        lora_dropout=dropout,
        target_modules=target_modules(model, targets),
        task_type="CAUSAL_LM",
        fan_in_fan_out=getattr(model.config, "model_type", "") == "gpt2",
        use_rslora=rslora,
        use_dora=dora,
        init_lora_weights=initialisation if initialisation in ("gaussian", "orthogonal") else True,
    )
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if doubled:
        start_from_weights([module for _, module in _lora_modules(adapted)], rank, initialisation)
    elif initialisation == "eva":
        start_from_data(adapted, [module for _, module in _lora_modules(adapted)], batch)
    adapted.peft_config["default"].init_lora_weights = True  # how it started is no business of those who load it
    as_computed(adapted)
    return adapted


def _same_scaling(alpha: float, rslora: bool) -> float:
    """The alpha of an adapter of twice the rank that scales as one of the rank itself."""
    return float(alpha * math.sqrt(2) if rslora else alpha * 2)


def target_modules(model: Any, targets: str | Sequence[str]) -> str | list[str]:
    """What peft is to adapt: `attention` and `mlp` become a pattern of the model's own layer names.

    Raises:
        BadSetting: the model has no such layers.
    """
    from transformers.pytorch_utils import Conv1D

    if targets not in ("attention", "mlp"):
        return targets if isinstance(targets, str) else list(targets)
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and layer_of(name) is not None:
            part = "attention" if re.search(r"attn|attention", name) else "mlp"
            if part == targets:
                found.add(".".join(name.split(".")[-2:]))
    if not found:
        raise BadSetting(f"This model has no {targets} layers that are known by name.", "Use targets=all.")
    return r".*\.(?:" + "|".join(re.escape(name) for name in sorted(found)) + ")"


def as_computed(model: Any) -> None:
    """Give LoRA weights the type the base computes in, so that no layer converts its input."""
    kind = _compute_type(model)
    for _, module in _lora_modules(model):
        for part in (module.lora_A, module.lora_B, module.lora_magnitude_vector):
            part.to(kind)


def resume_adapter(model: Any) -> None:
    """Make the adapter of a loaded peft model trainable again; the base stays frozen."""
    model.set_adapter(model.active_adapter)
    as_computed(model)


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
    # peft adds through .data, which nobody who keeps something made of the weights would notice
    torch.autograd.graph.increment_version(list(merged.parameters()))
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
