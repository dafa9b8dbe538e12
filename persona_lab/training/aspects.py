"""LoRA adapters for the aspects of one character: each is trained on top of those before it, which stay as they are.

So the sum of all is what was validated last. Adapters trained apart would each learn the voice again, and their sum
would overshoot it as many times.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from persona_lab.home import write_atomic
from persona_lab.inference.blending import ABOUT, WEIGHTS, write_blend
from persona_lab.training.saving import base_name, new_folder
from persona_lab.types import Artifact, BaseModelInfo, FitResult


def attach_aspect(model: Any, name: str, rank: int, alpha: float, seed: int) -> Any:
    """The peft model with one more LoRA, active beside the others and alone trainable; it begins as no change.

    Args:
        model: the base, or what this gave for the aspect before.
        seed: with the name it decides the first weights, whatever was trained before in this process.
    """
    from peft import get_peft_model

    kind = next(p.dtype for p in model.parameters() if p.is_floating_point())
    adapter = _adapter(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed ^ zlib.crc32(name.encode()))
        config = _config(model, rank, alpha)
        if hasattr(model, "peft_config"):
            model.add_adapter(adapter, config, autocast_adapter_dtype=False)
        else:
            model = get_peft_model(model, config, adapter_name=adapter, autocast_adapter_dtype=False)
    model.base_model.set_adapter(list(model.peft_config))
    for parameter_name, parameter in model.named_parameters():
        mine = f".{adapter}." in parameter_name
        parameter.requires_grad_(mine)
        if mine:
            parameter.data = parameter.data.to(kind)  # so that no layer converts its input; the masters are fp32
    return model


def _adapter(name: str) -> str:
    """The aspect's name inside the model: peft takes some names, such as `lora`, for its own."""
    return f"aspect_{name}"


def _config(model: Any, rank: int, alpha: float) -> Any:
    """LoRA on all linear layers; for a second adapter the layers of the first, since `all-linear` would now find the
    matrices of the first, too."""
    from peft import LoraConfig

    first = next(iter(getattr(model, "peft_config", {}).values()), None)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(first.target_modules) if first is not None else "all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=getattr(model.config, "model_type", "") == "gpt2",
    )


def save_aspects(ctx: Any, model: Any, fit: FitResult, weights: Mapping[str, float], **details: Any) -> Artifact:
    """Write every aspect, and their sum at `weights` as the adapter of the artifact; see inference/blending.py."""
    from peft import get_peft_model_state_dict

    ctx.phase("Saving")
    target: Path = ctx.run_dir / "artifact"
    count = 0
    with new_folder(target) as folder:
        for name in weights:
            own = folder / "aspects" / name
            own.mkdir(parents=True)
            tensors = get_peft_model_state_dict(model, adapter_name=_adapter(name), save_embedding_layers=False)
            count += sum(tensor.numel() for tensor in tensors.values())
            plain = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(plain, own / WEIGHTS, metadata={"format": "pt"})
            config = model.peft_config[_adapter(name)]
            config.base_model_name_or_path = base_name(ctx.base)
            config.inference_mode = True
            config.save_pretrained(own)
        write_atomic(folder / ABOUT, json.dumps({"weights": dict(weights)}, indent=1) + "\n")
        write_blend(folder, weights, folder)
    base: BaseModelInfo = ctx.base
    total = base.parameters or sum(p.numel() for p in model.get_base_model().parameters()) - count
    return Artifact(
        kind="adapter",
        path=str(target),
        trainable_parameters=count,
        total_parameters=total + count,
        fit=fit,
        details=details,
    )
