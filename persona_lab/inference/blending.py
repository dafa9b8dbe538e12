"""Aspects of one character put together: an exact sum of LoRA updates as one plain adapter, or nearly one of less rank.

Sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, ...] [A_1; ...]: the concatenation has the summed rank and scaling 1. It is what
peft's `add_weighted_adapter(combination_type="cat")` makes; this works on the files alone, needs neither the base nor
torch, and so serves page, chat worker and training alike. Cutting the rank is a truncated SVD of that product.

    <variant>/adapter_model.safetensors, adapter_config.json     the sum at the saved weights: an ordinary adapter
    <variant>/aspects.json                                       {"weights": {name: weight}}, in the order of training
    <variant>/aspects/<name>/                                    each aspect, a peft adapter of its own
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load_file, save_file

from persona_lab.errors import BadInput, BadModel, UnknownName
from persona_lab.home import Home, write_atomic
from persona_lab.models.weights import fingerprint, read_json
from persona_lab.types import Variant

ABOUT = "aspects.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MOST_KEPT = 8
"""Blends kept in the cache, each an adapter of some megabytes; more than a chat has panes."""
Tensors = dict[str, numpy.ndarray[Any, Any]]


def saved_weights(folder: Path) -> dict[str, float]:
    """The aspects of a variant's folder and the weights it was saved with; {} where it has none.

    Raises:
        BadModel: aspects.json is damaged.
    """
    if not (folder / ABOUT).is_file():
        return {}
    return {str(name): float(weight) for name, weight in dict(read_json(folder / ABOUT)["weights"]).items()}


def with_blend(variant: Variant, weights: Mapping[str, float]) -> Variant:
    """The variant with other weights of its aspects; those not named keep the saved ones.

    Raises:
        BadInput: it has no aspects. UnknownName: it has no such aspect.
    """
    known = saved_weights(Path(variant.path)) if variant.path else {}
    if not known:
        raise BadInput(f"{variant.name!r} has no aspects to blend.", "Train one with the strategy `aspects`.")
    for name in weights:
        if name not in known:
            raise UnknownName("aspect", name, known)
    return variant.model_copy(update={"blend": {**known, **weights}})


def told(weights: Mapping[str, float]) -> str:
    """`voice 1, mood 0.5`."""
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())


def in_use(variant: Variant, home: Home) -> Variant:
    """The variant with `path` at the adapter of its blend, made now unless it is kept; itself where it has no blend.

    Raises:
        BadInput, UnknownName: its blend does not fit its aspects. BadModel: files are gone or damaged. DiskFull
    """
    if not variant.blend:
        return variant
    asked = with_blend(variant, variant.blend)
    source = Path(variant.path)
    parts = [fingerprint(source / "aspects" / name) for name in asked.blend]
    key = hashlib.sha256(json.dumps([parts, list(asked.blend.items())]).encode()).hexdigest()[:16]
    blends = home.root / "cache" / "blends"
    folder = blends / key
    if (folder / CONFIG).is_file():
        os.utime(folder)  # by which the longest unused are found
    else:
        write_blend(source, asked.blend, folder)
        for old in sorted(blends.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return asked.model_copy(update={"path": str(folder)})


def write_blend(source: Path, weights: Mapping[str, float], target: Path, rank: int | None = None) -> float:
    """Write the weighted sum of a variant's aspects as one adapter into `target`.

    Args:
        source: folder with `aspects/<name>/`.
        rank: the sum is cut to it (the best approximation in Frobenius norm of each matrix); None: exact.

    Returns:
        ||sum - written|| / ||sum|| over all matrices, Frobenius; 0 for the exact sum.

    Raises:
        BadModel: an aspect is gone, or they do not fit together. DiskFull
    """
    parts = {name: _read(source / "aspects" / name) for name in weights}
    tensors, config = _concatenated(parts, weights)
    error = 0.0
    if rank is not None and rank < config["r"]:
        tensors, error = _cut(tensors, rank)
        config |= {"r": rank, "lora_alpha": rank}
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f".{WEIGHTS}"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(target / WEIGHTS)
    write_atomic(target / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")  # last: it marks the folder
    return error


def _read(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    if not (folder / WEIGHTS).is_file():
        raise BadModel(f"The aspect {folder.name!r} is gone: there is no {folder / WEIGHTS}.", "Train it again.")
    return load_file(folder / WEIGHTS), read_json(folder / CONFIG)


def _concatenated(
    parts: Mapping[str, tuple[Tensors, dict[str, Any]]], weights: Mapping[str, float]
) -> tuple[Tensors, dict[str, Any]]:
    """One adapter whose update is the weighted sum, in fp32; its scaling is 1."""
    names = {frozenset(tensors) for tensors, _ in parts.values()}
    if len(names) != 1:
        raise BadModel("The aspects adapt different layers, so they cannot be summed.", "Train them together again.")
    tensors: Tensors = {}
    for name in sorted(next(iter(names))):
        found = [(parts[aspect][0][name].astype(numpy.float32), aspect) for aspect in weights]
        if ".lora_B." in name:
            scaled = [tensor * numpy.float32(weights[a] * _scaling(parts[a][1])) for tensor, a in found]
            tensors[name] = numpy.ascontiguousarray(numpy.concatenate(scaled, axis=1))
        else:
            tensors[name] = numpy.concatenate([tensor for tensor, _ in found], axis=0)
    config = dict(next(iter(parts.values()))[1])
    total = sum(int(own["r"]) for _, own in parts.values())
    config |= {"r": total, "lora_alpha": total, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    return tensors, config


def _scaling(config: Mapping[str, Any]) -> float:
    rank = int(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _cut(tensors: Tensors, rank: int) -> tuple[Tensors, float]:
    """The best adapter of `rank` (scaling 1), and the relative error, by an SVD of the small core R_b R_a^T of
    B A = Q_b (R_b R_a^T) Q_a^T."""
    cut: Tensors = {}
    lost = size = 0.0
    for name_a in [name for name in tensors if ".lora_A." in name]:
        name_b = name_a.replace(".lora_A.", ".lora_B.")
        b, a = tensors[name_b].astype(numpy.float64), tensors[name_a].astype(numpy.float64)
        q_b, r_b = numpy.linalg.qr(b)
        q_a, r_a = numpy.linalg.qr(a.T)
        u, values, v = numpy.linalg.svd(r_b @ r_a.T)
        count = len(values)
        kept = min(rank, count)
        root = numpy.sqrt(values[:kept])
        cut[name_b] = _padded((q_b @ u[:, :kept]) * root, rank, axis=1)
        cut[name_a] = _padded((q_a @ v[:kept].T * root).T, rank, axis=0)
        lost += float((values[kept:] ** 2).sum())
        size += float((values**2).sum())
    return cut, math.sqrt(lost / size) if size else 0.0


def _padded(matrix: numpy.ndarray[Any, Any], rank: int, axis: int) -> numpy.ndarray[Any, Any]:
    """Zeros up to `rank`, where a matrix is smaller than that: the ranks in one adapter are equal."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, rank - matrix.shape[axis])
    return numpy.ascontiguousarray(numpy.pad(matrix, widths).astype(numpy.float32))
