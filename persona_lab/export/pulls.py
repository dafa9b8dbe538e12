"""A variant's trait sliders inside its weights: what is added after a layer is a bias of that layer's last matrix.

So an exported model needs nothing that knows of traits: transformers reads the bias of `mlp.down_proj` where
config.json says `mlp_bias`, and llama.cpp where the file has it. Llama's kind only: others have no such bias.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persona_lab.api import Problem
from persona_lab.errors import BadInput
from persona_lab.home import write_atomic
from persona_lab.inference.trait_files import told, total_shift
from persona_lab.models.weights import read_header, read_json
from persona_lab.types import BaseModelInfo, Variant

KINDS = ("llama",)
PARTS = ("gate_proj", "up_proj", "down_proj")
INDEX = "model.safetensors.index.json"


def pull_problems(variant: Variant, base: BaseModelInfo) -> list[Problem]:
    """Why the variant's pull cannot be put into weights, if so; nothing for a variant that is not pulled."""
    if not variant.traits:
        return []
    fix = f"Export {variant.parent!r}, from which it was made." if variant.parent else "Choose a base of Llama's kind."
    kind = base.config.get("model_type")
    if kind is not None and (kind not in KINDS or base.config.get("mlp_bias")):
        why = f"a model of the kind {kind!r} has no place for it"
        return [Problem(message=f"The pull of {variant.name!r} cannot be written into weights: {why}.", fix=fix)]
    if not variant.steering:
        return [Problem(message=f"{variant.name!r} has no copies of its traits' vectors.", fix="Save it as a variant.")]
    return []


def own_pull(variant: Variant) -> dict[int, Any]:
    """What a saved variant's sliders add after each layer: vectors [hidden], fp32; {} where nothing is pulled.

    Raises:
        BadInput: it has no copies of its vectors. BadModel: they are gone or damaged.
    """
    return total_shift(variant, None, ()) if variant.traits else {}


def write_pull(variant: Variant, folder: Path) -> str:
    """Put the pull into the whole model that stands in `folder`; gives what a user of the weights must know.

    The biases become a file of their own beside the others.

    Raises:
        BadInput: this kind of model has no place for it, or the vectors are not there. BadModel, DiskFull
    """
    import torch
    from safetensors.torch import save

    config = read_json(folder / "config.json")
    if config.get("model_type") not in KINDS or config.get("mlp_bias"):
        raise BadInput(
            f"A model of the kind {config.get('model_type')!r} has no place for a pull.",
            "Export it without its traits.",
        )
    pull = own_pull(variant)
    sizes = dict(
        zip(PARTS, (config["intermediate_size"], config["intermediate_size"], config["hidden_size"]), strict=True)
    )
    biases = {
        f"model.layers.{layer}.mlp.{part}.bias": torch.zeros(sizes[part])
        for layer in range(int(config["num_hidden_layers"]))
        for part in PARTS
    }
    for layer, vector in pull.items():
        biases[f"model.layers.{layer}.mlp.down_proj.bias"] = torch.from_numpy(vector)
    files = _as_shards(folder)
    name = f"model-{len(files) + 1:05d}-of-{len(files) + 1:05d}.safetensors"
    write_atomic(folder / name, save(biases, metadata={"format": "pt"}))
    where = {tensor: file.name for file in files for tensor in read_header(file)} | dict.fromkeys(biases, name)
    size = sum((folder / file).stat().st_size for file in {*where.values()})
    write_atomic(folder / INDEX, json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=1))
    write_atomic(folder / "config.json", json.dumps(config | {"mlp_bias": True}, indent=2) + "\n")
    return f"Its trait sliders ({told(variant.traits)}) are in the weights, as biases of layers {sorted(pull)}."


def _as_shards(folder: Path) -> list[Path]:
    """The folder's weights, a single file under the name of a first part: a second could not stand beside it."""
    single = folder / "model.safetensors"
    if single.is_file():
        single.rename(folder / "model-00001-of-00002.safetensors")
    return sorted(folder.glob("*.safetensors"))
