"""Base models and variants as torch models: safetensors only, never code from a model folder.

A `VariantHost` holds the base once, with the LoRA adapters on it, and a few models with weights of their own. What it
yields for the base is the base: adapters are switched off around it, and `stamp_name` is derived from what is active.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from persona_lab.errors import BadModel, OutOfMemory
from persona_lab.home import Home
from persona_lab.inference.blending import told
from persona_lab.inference.fast_linear import BASE
from persona_lab.inference.steering import Shift, steered
from persona_lab.inference.trait_files import find_kept, settings_of, total_shift
from persona_lab.inference.trait_files import told as told_traits
from persona_lab.models.machine import memory_bytes
from persona_lab.models.weights import (
    check_config,
    fingerprint,
    keep_fingerprint,
    read_header,
    read_json,
    safetensors_files,
    weights_name,
)  # fmt: skip
from persona_lab.types import BaseModelInfo, Machine, Variant

MAX_ADAPTERS = 8
MAX_OWN_WEIGHTS = 2
MAX_SHIFTS = 256
"""Settings of trait sliders that are remembered; a few kilobytes each."""


def load_model(
    info: BaseModelInfo, machine: Machine, *, quantization: str | None = None, full_precision: bool = False
) -> Any:
    """The model of `info.path` on the machine's device: eval mode, no parameter requires a gradient.

    Args:
        quantization: `nf4` for 4-bit weights through bitsandbytes (double quantisation; `nf4_single`: without), on any
            device.
        full_precision: fp32 weights; else bf16 where the machine is fast at it, else fp32.

    Raises:
        BadModel: it cannot be loaded. OutOfMemory
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder = Path(info.path)
    check_config(info.config or read_json(folder / "config.json"), info.name)
    for file in safetensors_files(folder):
        read_header(file)  # a file cut short is named here, instead of crashing inside the mapping
    logging.disable_progress_bar()
    dtype = torch.float32 if full_precision or not machine.bf16 else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    if quantization is not None:
        options |= {
            "quantization_config": _nf4(dtype, double=quantization == "nf4"),
            "device_map": {"": machine.device},
        }
    with loading_errors(info.name):
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
        if quantization is None:
            model = model.to(machine.device)
    return model.eval().requires_grad_(False)


def _nf4(dtype: torch.dtype, double: bool) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Name what went wrong while a model was loaded.

    Raises:
        BadModel, OutOfMemory
    """
    from safetensors import SafetensorError

    try:
        yield
    except (MemoryError, OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"There is not enough memory to load {name}.", "Close other programs, or choose a smaller base model."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise BadModel(f"{name} cannot be loaded: {reason}.", "Fetch or save it again, or choose another.") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU torch says so with a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("not enough memory" in str(error) or "can't allocate" in str(error))


def load_variant(variant: Variant, base: BaseModelInfo, machine: Machine) -> Any:
    """A model of its own with the variant's weights: a peft model (unmerged) for an adapter, else a plain model.

    Raises:
        BadModel, OutOfMemory
    """
    if variant.kind == "weights":
        return load_model(_own_weights(variant, base), machine)
    model = load_model(base, machine, quantization=variant.quantization)
    if variant.kind != "adapter":
        return model
    from peft import PeftModel

    _check_adapter(variant)
    with loading_errors(variant.name):
        return PeftModel.from_pretrained(model, variant.path).eval().requires_grad_(False)


def _own_weights(variant: Variant, base: BaseModelInfo) -> BaseModelInfo:
    return base.model_copy(update={"name": variant.name, "path": variant.path, "config": {}})


def _check_adapter(variant: Variant) -> dict[str, Any]:
    """The adapter's config, once it is sure that its files are there.

    Raises:
        BadModel
    """
    folder = Path(variant.path)
    files = safetensors_files(folder) if variant.path else []
    if not files:
        raise BadModel(
            f"The weights of {variant.name} are gone: there is no safetensors file in {variant.path or 'no folder'}.",
            "Delete the variant, or train it again.",
        )
    for file in files:
        read_header(file)
    return read_json(folder / "adapter_config.json")


def _mixable(config: dict[str, Any]) -> bool:
    """Whether peft can use the adapter in a batch with others (LoRA does; DoRA and a trained bias do not)."""
    plain = config.get("peft_type") == "LORA" and not config.get("use_dora") and config.get("bias", "none") == "none"
    return plain and not config.get("alora_invocation_tokens") and not config.get("use_qalora")


@dataclass
class _Shared:
    """One base in memory, with LoRA adapters on it. `model` is the plain model, `peft` the same one wrapped."""

    model: Any
    peft: Any = None
    adapters: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def add(self, name: str, folder: str, keep: Sequence[str]) -> None:
        """Load an adapter unless it is there; the longest unused one not in `keep` goes when there are too many."""
        if name in self.adapters:
            self.adapters.move_to_end(name)
            return
        if self.peft is None:
            from peft import PeftModel

            self.peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name)
        else:
            self.peft.load_adapter(folder, adapter_name=name)
        self.adapters[name] = None
        self.peft.eval().requires_grad_(False)
        spare = [other for other in self.adapters if other not in keep and other != name]
        for old in spare[: max(0, len(self.adapters) - MAX_ADAPTERS)]:
            self.peft.delete_adapter(old)
            del self.adapters[old]


class VariantHost:
    """All variants of one base: the base once, LoRA adapters on it, and up to two models with weights of their own.

    Args:
        info: the base, ready.

    A host is used by one thread.
    """

    def __init__(self, info: BaseModelInfo, machine: Machine, home: Home) -> None:
        self.info = info
        self.machine = machine
        self.home = home
        self._shared: dict[str, _Shared] = {}
        self._own: OrderedDict[str, Any] = OrderedDict()
        self._base_fingerprint = ""
        self._shifts: dict[tuple[Any, ...], Shift | None] = {}

    # --- which weights -------------------------------------------------------------------------------

    def stamp_name(self, variant: Variant | None) -> str:
        """What is active for this variant, from the files it is loaded from: `lora tamsin-1 3f2a9c1d04be`."""
        pulled = told_traits(variant.traits) if variant is not None else ""
        return self._weights_stamp(variant) + (f", pulled {pulled}" if pulled else "")

    def _weights_stamp(self, variant: Variant | None) -> str:
        base = f"base {self.info.id} {self.base_fingerprint}"
        if variant is None or variant.kind == "base":
            return base
        if variant.kind == "prompt":
            return f"{variant.strategy} {variant.name}, on {base}"
        quantized = f" on {variant.quantization} base" if variant.quantization else ""
        blend = f" {told(variant.blend)}" if variant.blend else ""
        return f"{variant.strategy} {variant.name} {fingerprint(Path(variant.path))}{blend}{quantized}"

    @property
    def base_fingerprint(self) -> str:
        """sha256 (12 hex digits) of the base's safetensors."""
        self._base_fingerprint = self._base_fingerprint or keep_fingerprint(Path(self.info.path), self.home)
        return self._base_fingerprint

    def mixable(self, variants: Sequence[Variant]) -> bool:
        """Whether these can answer in one batch: all on one base in memory, as peft's mixed batches allow."""
        if len({self._quantization(v) for v in variants}) != 1 or any(v.kind == "weights" for v in variants):
            return False
        return all(_mixable(_check_adapter(v)) for v in variants if v.kind == "adapter")

    def weights_key(self, variant: Variant | None) -> str:
        """The same for variants that run on the same weights, and are pulled along traits alike."""
        shift = self.shift_of(variant)
        return self._adapter_name(variant) + (f" {shift.key}" if shift is not None else "")

    def trait_weights(self, variant: Variant | None) -> list[str]:
        """Names of the weights whose trait vectors suit this variant: its own, then its base's."""
        own = self._adapter_name(variant)
        return [*([own] if own != BASE else []), self.base_fingerprint]

    def shift_of(self, variant: Variant | None) -> Shift | None:
        """What the variant's trait sliders add to its layers; None where none is set.

        Raises:
            BadInput: a trait was not computed for this base, or does not steer it. BadModel
        """
        settings = settings_of(variant.traits) if variant is not None else {}
        if variant is None or not settings:
            return None
        weights = self.trait_weights(variant)
        paths = [find_kept(variant, self.home, name, weights) for name in settings]
        state = [(str(path), path.stat().st_mtime_ns) for path in paths if path is not None]
        key = (*settings.items(), *state)
        if len(state) < len(settings) or key not in self._shifts:
            self._shifts[key] = _as_shift(total_shift(variant, self.home, weights))
            for old in list(self._shifts)[:-MAX_SHIFTS]:
                del self._shifts[old]
        return self._shifts[key]

    def _adapter_name(self, variant: Variant | None) -> str:
        """The same for variants that run on the same weights; peft's name where they are an adapter."""
        if variant is None or variant.kind in ("base", "prompt"):
            return BASE
        return weights_name(variant)

    @staticmethod
    def _quantization(variant: Variant | None) -> str:
        return (variant.quantization or "") if variant is not None and variant.kind == "adapter" else ""

    # --- models --------------------------------------------------------------------------------------

    @contextmanager
    def model_for(self, variant: Variant | None) -> Iterator[Any]:
        """A model with the right weights active, and its layers pulled as the variant's traits say, for as long as the
        context lasts.

        Raises:
            BadModel, OutOfMemory. BadInput: see `shift_of`.
        """
        with self._weights_for(variant) as model, steered(model, [self.shift_of(variant)]):
            yield model

    @contextmanager
    def _weights_for(self, variant: Variant | None) -> Iterator[Any]:
        if variant is not None and _stands_alone(variant):
            yield self._own_model(variant)
        elif variant is not None and variant.kind == "adapter":
            shared = self._with_adapters([variant])
            shared.peft.set_adapter(self._adapter_name(variant))
            shared.peft.requires_grad_(False)
            yield shared.peft
        else:
            shared = self._base("")
            try:
                with shared.peft.disable_adapter() if shared.peft is not None else nullcontext():
                    yield shared.model
            finally:
                if shared.peft is not None:  # at the end of that peft has the adapter learn again
                    shared.peft.requires_grad_(False)

    @contextmanager
    def model_for_batch(self, variants: Sequence[Variant]) -> Iterator[tuple[Any, list[str] | None]]:
        """A model for rows of different variants, and peft's adapter name for each row (None: no adapter at all).

        Only for variants that are `mixable`. Nothing is pulled along traits: `shift_of` says what to add to each row.

        Raises:
            BadModel, OutOfMemory
        """
        adapters = [v for v in variants if v.kind == "adapter"]
        if not adapters:
            with self.model_for(None) as model:
                yield model, None
            return
        shared = self._with_adapters(adapters)
        yield shared.peft, [self._adapter_name(v) for v in variants]

    def _base(self, quantization: str) -> _Shared:
        if quantization not in self._shared:
            self._make_room(self._weight_bytes(self.info.path) // (3 if quantization else 1))
            self._shared[quantization] = _Shared(load_model(self.info, self.machine, quantization=quantization or None))
        return self._shared[quantization]

    def _with_adapters(self, variants: Sequence[Variant]) -> _Shared:
        shared = self._base(self._quantization(variants[0]))
        names = [self._adapter_name(v) for v in variants]
        for variant, name in zip(variants, names, strict=True):
            _check_adapter(variant)
            with loading_errors(variant.name):
                shared.add(name, variant.path, keep=names)
        return shared

    def _own_model(self, variant: Variant) -> Any:
        """A model that shares nothing with the base; the longest unused goes when there are more than two."""
        key = self._adapter_name(variant)
        if key not in self._own:
            while len(self._own) >= MAX_OWN_WEIGHTS:
                self._own.popitem(last=False)
            self._make_room(self._weight_bytes(variant.path if variant.kind == "weights" else self.info.path))
            self._own[key] = load_variant(variant, self.info, self.machine)
        self._own.move_to_end(key)
        return self._own[key]

    def _weight_bytes(self, path: str) -> int:
        """Of the file; weights kept in fp32 on disk become half of it where bf16 is used, so this is the safe side."""
        return sum(file.stat().st_size for file in safetensors_files(Path(path)))

    def _make_room(self, needed: int) -> None:
        """Let go of models of their own until `needed` bytes are free.

        Raises:
            OutOfMemory: they are not free even then.
        """
        while self._own and _free_bytes(self.machine) < needed * 1.2:
            self._own.popitem(last=False)
        free = _free_bytes(self.machine)
        if free < needed:
            raise OutOfMemory(
                f"{self.info.name} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free.",
                "Close other programs, compare fewer variants at once, or choose a smaller base model.",
            )


def _stands_alone(variant: Variant) -> bool:
    """LoRA adapters share one base; full weights, and other kinds of adapter (peft mixes no kinds), share nothing."""
    return variant.kind == "weights" or (
        variant.kind == "adapter" and _check_adapter(variant).get("peft_type") != "LORA"
    )


def _as_shift(vectors: dict[int, Any]) -> Shift | None:
    return Shift({layer: torch.from_numpy(vector) for layer, vector in vectors.items()}) if vectors else None


def _free_bytes(machine: Machine) -> int:
    if machine.device == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])
    return memory_bytes()[1]
