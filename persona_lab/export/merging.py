"""A variant as one whole model folder: its adapter merged into the unquantised base, or its own weights copied."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from persona_lab.api import Reporter
from persona_lab.errors import BadInput
from persona_lab.export.pulls import write_pull
from persona_lab.export.toolkit import copy_tokenizer, write_generation_config
from persona_lab.types import BaseModelInfo, Variant

FLOAT32_BELOW = 1_000_000_000
"""Models with fewer weights are stored in float32, larger ones in bfloat16."""


def write_whole_model(variant: Variant, base: BaseModelInfo, out: Path, ctx: Reporter) -> list[str]:
    """Write safetensors, config, tokenizer, chat template and generation settings into `out`.

    Of a variant without weights of its own (base, prompt) these are the base's. A pull along traits goes into them.

    Returns:
        What a user of the weights must know, a sentence each.

    Raises:
        BadInput: the variant's files are gone. BadModel, OutOfMemory
    """
    if variant.kind == "adapter":
        ctx.phase("Merging the adapter into the base", None)
        kind = _merge(variant, base, out)
        notes = [f"The adapter is merged into the base, in {kind}."]
        if kind == "bfloat16":
            notes = ["The adapter is merged into the base, in bfloat16, which rounds it a little."]
        if variant.quantization:
            notes.append("It was trained on 4-bit (NF4) weights and is merged into the unquantised base.")
    else:
        ctx.phase("Copying the weights", None)
        _copy_weights(variant, Path(variant.path if variant.kind == "weights" else base.path), out)
        notes = ["All or part of the base's weights were trained; they are stored as training left them."]
        if variant.kind != "weights":
            notes = ["The weights are the base's, untrained: the character is in the prompt alone."]
    if variant.traits:
        notes.append(write_pull(variant, out))
    copy_tokenizer(Path(base.path), out)
    write_generation_config(out, Path(base.path))
    return notes


def whole_model_bytes(variant: Variant, base: BaseModelInfo) -> int:
    """What `write_whole_model` will write, in bytes; an estimate."""
    if variant.kind == "adapter":
        return base.parameters * (4 if base.parameters < FLOAT32_BELOW else 2)
    folder = Path(variant.path if variant.kind == "weights" else base.path)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _copy_weights(variant: Variant, source: Path, out: Path) -> None:
    files = [
        *sorted(source.glob("*.safetensors")),
        *sorted(source.glob("*.safetensors.index.json")),
        source / "config.json",
    ]
    if len(files) < 2 or not files[-1].is_file():
        raise BadInput(f"The weights of {variant.name!r} are not at {source} any more.", "Train the variant again.")
    for path in files:
        shutil.copyfile(path, out / path.name)


def _merge(variant: Variant, base: BaseModelInfo, out: Path) -> str:
    """Merge in float32, whatever the storage; returns the name of the type stored."""
    import torch

    from persona_lab.inference.loading import load_variant
    from persona_lab.models.machine import worker_machine
    from persona_lab.training.lora import merged_model

    unquantised = variant.model_copy(update={"quantization": None})
    # loads in float32: bf16 would round base and adapter
    exact = worker_machine(out).model_copy(update={"bf16": False})
    model: Any = load_variant(unquantised, base, exact)
    merged = merged_model(model.float())
    kind = torch.float32 if base.parameters < FLOAT32_BELOW else torch.bfloat16
    merged.to("cpu", kind).save_pretrained(out)
    return str(kind).removeprefix("torch.")
