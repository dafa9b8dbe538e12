"""Writes what training made: a peft adapter, or a whole model folder that loads as a base model by itself.

Safetensors only. A folder is written under a temporary name, flushed to disk and renamed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from persona_lab.home import disk_errors, flush_folder, write_atomic
from persona_lab.models.weights import read_header, safetensors_files
from persona_lab.training.checkpoints import flush_files
from persona_lab.types import BaseModelInfo

COMPARED = 1 << 20
"""Weights compared at once: of a large embedding the fp32 copies would be the peak of a whole run."""
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", ".md", ".h5", ".msgpack", ".onnx", ".py")
_REWRITTEN = ("config.json", "generation_config.json", "persona_lab.json", "corpus_read.jsonl")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target`, whole, when the block ends well; else nothing is left of it.

    Raises:
        DiskFull
    """
    temporary = target.with_name(f".{target.name}.tmp")
    with disk_errors(target.parent):
        for leftover in (temporary, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            flush_files(temporary)
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_folder(target.parent)


def base_name(base: BaseModelInfo) -> str:
    """The base's id for files that travel: never a path of this machine."""
    return base.name if os.sep in base.id and Path(base.id).is_absolute() else base.id


def write_adapter(model: Any, base: BaseModelInfo, target: Path) -> None:
    """Save a peft model's adapter as `target`/adapter_model.safetensors and adapter_config.json."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name(base)
    with new_folder(target) as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's card is a form with nothing filled in


def write_weights(model: Any, base: BaseModelInfo, target: Path) -> None:
    """Save a whole model in bf16 as `target`, with the base's tokenizer and chat template; `model` becomes bf16."""
    with new_folder(target) as folder:
        fill_with_weights(model, base, folder)


def fill_with_weights(model: Any, base: BaseModelInfo, folder: Path) -> None:
    """As `write_weights`, into a folder that is there and that somebody else puts in place."""
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    for file in sorted(Path(base.path).iterdir()):
        if _travels(file):
            shutil.copyfile(file, folder / file.name)
    _forget_machine(folder / "config.json")


def _travels(file: Path) -> bool:
    """Whether a file of the base belongs to the trained model too: tokenizer and chat template do, weights do not."""
    if not file.is_file() or file.name.startswith(".") or file.name in _REWRITTEN:
        return False
    return not file.name.endswith(_NOT_COPIED)


def _forget_machine(config: Path) -> None:
    """Take this machine's path out of a saved config."""
    content = json.loads(config.read_text())
    if content.pop("_name_or_path", None) is not None:
        write_atomic(config, json.dumps(content, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def relative_change(model: Any, base: BaseModelInfo) -> float | None:
    """||W' - W|| / ||W|| (Frobenius) over the weights that model and base folder share; None where they share none.

    Raises:
        BadModel: a file of the base is damaged.
    """
    weights = dict(model.named_parameters())
    files = {path: read_header(path) for path in safetensors_files(Path(base.path))}
    shapes = {name: tuple(entry["shape"]) for header in files.values() for name, entry in header.items()}
    shared = _shared(shapes, {name: tuple(weight.shape) for name, weight in weights.items()})
    moved = size = 0.0
    for file, header in files.items():
        for name in (name for name in header if name in shared):
            # opened for each anew: pages of an open file that were read count as this process's memory
            with safe_open(file, framework="pt") as tensors:
                before = tensors.get_tensor(name).reshape(-1)
                after = weights[shared[name]].detach().reshape(-1)
                for old, new in zip(before.split(COMPARED), after.split(COMPARED), strict=True):
                    exact = old.float()
                    size += float(exact.square().sum())
                    moved += float((new.cpu().float() - exact).square().sum())
                del before, old
    return math.sqrt(moved / size) if size else None


def _shared(files: Mapping[str, tuple[int, ...]], model: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """What the model calls each tensor of the files, by names and shapes; one may have a prefix that the other lacks.

    A prefix: official GPT-2 files begin with `h.0`, where the model's names begin with `transformer.h.0`.
    """
    found = {name: name for name in files if name in model}
    by_end: dict[str, list[str]] = {}
    for name in model.keys() - found.keys():
        for end in _ends(name):
            by_end.setdefault(end, []).append(name)
    for name in files.keys() - found.keys():
        # an end as short as `norm.weight` tells something only where it is a whole name
        telling = (end for end in _ends(name) if end == name or end in model or end.count(".") >= 2)
        alike = next((by_end[end][0] for end in telling if len(by_end.get(end, ())) == 1), None)
        if alike is not None:
            found[name] = alike
    times = Counter(found.values())
    return {name: other for name, other in found.items() if times[other] == 1 and files[name] == model[other]}


def _ends(name: str) -> list[str]:
    """The whole name, then without its first part, and so on."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
