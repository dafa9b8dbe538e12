"""What training changed, matrix by matrix: base weight and delta of a variant, read from its files one at a time.

A LoRA adapter's delta is scaling * B @ A, worked out from the two files without loading a model. Adapters that change
more than that (DoRA, PiSSA, trained embeddings) are merged into an fp32 copy of the base, and the difference is taken.
An adapter that is a prompt changes no weights.
An adapter trained on a 4-bit base is measured against the unquantised weights: what quantising moved is not counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from persona_lab.errors import BadModel
from persona_lab.inference.loading import load_model, loading_errors
from persona_lab.models.weights import read_header, read_json, safetensors_files
from persona_lab.training.lora import layer_of
from persona_lab.types import BaseModelInfo, Machine, Variant

Update = tuple[str, str, int | None, torch.Tensor, torch.Tensor]
"""Module name, kind, layer (None outside the layers), base weight and delta, both fp32 [outputs, inputs]."""

EMBEDDING = "embedding"
"""Kind of the input embeddings and the output head; every other kind is the module's own name, such as `q_proj`."""
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out", "word_embeddings", "embed_positions")
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin a LoRA that leave the base's own weights alone."""
_MORE_THAN_LORA = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
)


class _Tensors:
    """Tensors of a folder's safetensors files by name, each read when it is asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in safetensors_files(folder):
            for name, entry in read_header(path).items():
                self.shapes[name] = tuple(entry["shape"])
                self._files[name] = path
        if not self.shapes:
            raise BadModel(f"There is no safetensors file in {folder}.", "Fetch or train the model again.")
        self._open = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(self._files.values())}
        self._by_end: dict[str, list[str]] = {}
        for name in self.shapes:
            parts = name.split(".")
            for start in range(len(parts)):
                self._by_end.setdefault(".".join(parts[start:]), []).append(name)

    def find(self, name: str) -> str | None:
        """The name here of what is called `name` elsewhere: one may have a prefix that the other lacks."""
        if name in self.shapes:
            return name
        parts = name.split(".")
        for start in range(len(parts) - 2):
            found = self._by_end.get(".".join(parts[start:]), [])
            if len(found) == 1:
                return found[0]
        return None

    def get(self, name: str) -> torch.Tensor:
        """One tensor in fp32."""
        tensor: torch.Tensor = self._open[self._files[name]].get_tensor(name)
        return tensor.float()


def updates(
    variant: Variant, base: BaseModelInfo, machine: Machine, under: BaseModelInfo | None = None
) -> Iterator[Update]:
    """Every 2-D weight that training changed, in order of layers; embeddings first. Tied weights come once.

    Args:
        under: the base that an adapter lies on, where it is another than `base` (a foundation trained from it): what
            both changed is then given together.

    Raises:
        BadModel: files are missing or damaged, or the two are not of one shape. OutOfMemory
    """
    with ExitStack() as stack, loading_errors(variant.name):
        of_base = _Tensors(Path(base.path), stack)
        if variant.kind == "weights":
            found = _of_weights(of_base, _Tensors(Path(variant.path), stack), base)
        elif variant.kind != "adapter" or _is_prompt(variant):  # only the foundation, if there is one, is what changed
            found = _of_weights(of_base, _Tensors(Path(under.path if under else base.path), stack), base)
        elif under is not None and under.path != base.path:
            found = _of_merged(variant, of_base, under, machine)
        elif (plain := _plain_lora(variant, of_base, stack)) is not None:
            found = plain
        else:
            found = _of_merged(variant, of_base, base, machine)
        yield from found


# --- full weights ---------------------------------------------------------------------------------


def _of_weights(before: _Tensors, after: _Tensors, base: BaseModelInfo) -> Iterator[Update]:
    changed = {found: name for name in after.shapes if (found := before.find(name)) is not None}
    if not changed:
        raise BadModel(
            f"No weight of this variant has a name that {base.name} knows.", "Was it made with another base?"
        )
    yield from _differences(before, {old: (lambda new=new: after.get(new)) for old, new in changed.items()}, base)


def _differences(before: _Tensors, after: dict[str, Any], base: BaseModelInfo) -> Iterator[Update]:
    """Of each base tensor and what became of it, those that differ."""
    tied = bool(base.config.get("tie_word_embeddings")) and any("embed" in n or "wte" in n for n in after)
    for name in sorted(after, key=_order):
        if len(before.shapes[name]) != 2 or (tied and "lm_head" in name):
            continue
        old, new = before.get(name), after[name]()
        if old.shape != new.shape:
            raise BadModel(
                f"{name} is {tuple(new.shape)} and {tuple(old.shape)} in the base.", "Use the variant's base."
            )
        if torch.equal(old, new):
            continue
        module = name.removesuffix(".weight")
        kind = _kind(module)
        delta = new - old
        if base.config.get("model_type") == "gpt2" and kind != EMBEDDING:
            old, delta = old.T, delta.T  # its Conv1D keeps weights as [inputs, outputs]
        yield module, kind, layer_of(name), old, delta


# --- adapters -------------------------------------------------------------------------------------


def _is_prompt(variant: Variant) -> bool:
    """Whether the adapter stands before or beside the weights, which stay what they are: peft cannot merge it."""
    if read_json(Path(variant.path) / "adapter_config.json").get("peft_type") == "LORA":
        return False
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(variant.path)
    return bool(config.is_prompt_learning or config.is_adaption_prompt)


def _plain_lora(variant: Variant, before: _Tensors, stack: ExitStack) -> Iterator[Update] | None:
    """The deltas of an adapter that is LoRA and nothing else; None for any other."""
    config = read_json(Path(variant.path) / "adapter_config.json")
    if config.get("peft_type") != "LORA" or any(config.get(name) for name in _MORE_THAN_LORA):
        return None
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        return None
    parts = _Tensors(Path(variant.path), stack)
    if not all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in parts.shapes):
        return None
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in parts.shapes}, key=_order)
    pairs = {module: before.find(f"{module.removeprefix('base_model.model.')}.weight") for module in modules}
    if not modules or any(found is None or len(before.shapes[found]) != 2 for found in pairs.values()):
        return None
    return _lora_deltas(config, parts, before, pairs)


def _lora_deltas(
    config: dict[str, Any], parts: _Tensors, before: _Tensors, pairs: dict[str, str | None]
) -> Iterator[Update]:
    for module, found in pairs.items():
        name = str(found)
        a, b = parts.get(f"{module}.lora_A.weight"), parts.get(f"{module}.lora_B.weight")
        delta = b @ a * _scaling(config, module, rank=a.shape[0])
        old = before.get(name).T if config.get("fan_in_fan_out") else before.get(name)
        if old.shape != delta.shape:
            raise BadModel(
                f"The adapter's {module} is of another shape than the base's.", "Use the adapter's own base."
            )
        if bool(delta.any()):
            weight = name.removesuffix(".weight")
            yield weight, _kind(weight), layer_of(name), old, delta


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA (https://arxiv.org/abs/2312.03732), as peft works it out."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)
    if alpha is None:
        alpha = config["lora_alpha"]
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


@torch.no_grad()
def _of_merged(variant: Variant, before: _Tensors, base: BaseModelInfo, machine: Machine) -> Iterator[Update]:
    """Whatever the adapter is: merged into the base in fp32, on the CPU, and compared with the base's file."""
    from peft import PeftModel

    model = load_model(base, machine.model_copy(update={"device": "cpu"}), full_precision=True)
    merged = PeftModel.from_pretrained(model, variant.path).merge_and_unload()
    named: Iterable[tuple[str, torch.Tensor]] = merged.named_parameters()
    after = {found: (lambda p=p: p.detach().float()) for name, p in named if (found := before.find(name)) is not None}
    yield from _differences(before, after, base)


# --- names ----------------------------------------------------------------------------------------


def _kind(module: str) -> str:
    last = module.rsplit(".", 1)[-1]
    return EMBEDDING if last in _EMBEDDINGS else last


def _order(name: str) -> tuple[int, str]:
    layer = layer_of(name)
    return (-1 if layer is None else layer, name)
