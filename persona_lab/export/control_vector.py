"""A variant's trait sliders as llama.cpp's control-vector file: what is added to a model without them in its weights.

The file is a GGUF file of the architecture `controlvector`: `controlvector.model_hint` (llama.cpp's name of the model's
architecture), `controlvector.layer_count` (how many directions), and tensors `direction.N` [hidden], F32. llama.cpp
adds `direction.N` to what layer N gives on, counted from 0: after the MLP and its residual, before the next layer's
norm. That is where `inference.steering` adds, so layer N's vector is direction.N; layer 0 can have none. Layers that
are not pulled have zeros, since some readers stop at the first gap.

Sources, at https://github.com/ggml-org/llama.cpp (b10359): `export_gguf` in tools/cvector-generator (what is written),
`common_control_vector_load_one` in common/common.cpp (what is read), `llama_adapter_cvec` in src/llama-adapter.cpp and
`build_cvec` in src/models/llama.cpp (what is added where).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from persona_lab.api import Problem
from persona_lab.errors import BadInput, BadModel
from persona_lab.export.gguf_file import ARCHITECTURES, refuse_architecture
from persona_lab.export.pulls import own_pull
from persona_lab.inference.trait_files import Vector, told
from persona_lab.types import BaseModelInfo, Variant

ENDING = "-control-vector.gguf"
KIND = "controlvector"


@dataclass(frozen=True)
class ControlVector:
    """What a control-vector file holds. `directions`: layer (from 1) -> what is added to its output [hidden], fp32."""

    model_hint: str
    layer_count: int
    directions: Mapping[int, Vector]


def control_vector_problems(variant: Variant) -> list[Problem]:
    """Why the variant has nothing to write, if so."""
    if not variant.traits:
        message = f"{variant.name!r} is not pulled along any trait: there is nothing to put into a control vector."
        fix = "Set its trait sliders and save it as a variant, or export it as `gguf`."
        return [Problem(message=message, fix=fix)]
    if not variant.steering:
        return [Problem(message=f"{variant.name!r} has no copies of its traits' vectors.", fix="Save it as a variant.")]
    return []


def write_control_vector(variant: Variant, base: BaseModelInfo, path: Path) -> str:
    """Write the variant's pull, at its own setting, to `path`; gives what its user must know.

    Raises:
        BadInput: this kind of model cannot be written for llama.cpp, or the pull has a part that llama.cpp cannot add.
        BadModel: the variant's vectors are gone, damaged, or of another model.
    """
    from gguf import GGUFWriter

    refuse_architecture(base.config)
    layers, size = int(base.config["num_hidden_layers"]), int(base.config["hidden_size"])
    pull = own_pull(variant)
    _refuse(variant, pull, layers, size)
    writer = GGUFWriter(path, KIND)
    try:
        writer.add_name(f"{variant.name}: {told(variant.traits)}")
        writer.add_string(f"{KIND}.model_hint", ARCHITECTURES[str(base.config["model_type"])])
        writer.add_int32(f"{KIND}.layer_count", layers - 1)
        for layer in range(1, layers):
            writer.add_tensor(f"direction.{layer}", pull.get(layer, numpy.zeros(size, numpy.float32)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return (
        f"Its trait sliders ({told(variant.traits)}) are not in the model's weights but in {path.name}: llama.cpp "
        f"adds it to the output of layers {sorted(pull)}. It belongs to this folder's model: what was exported as "
        "`gguf`, `ollama`, `bundle` or `merged` has the pull in its weights already, and would be pulled twice."
    )


def _refuse(variant: Variant, pull: Mapping[int, Vector], layers: int, size: int) -> None:
    for layer, vector in pull.items():
        if layer >= layers or vector.shape != (size,):
            raise BadModel(
                f"A trait of {variant.name!r} was computed for layer {layer} with {vector.size} numbers; its base has "
                f"{layers} layers of {size}.",
                "Compute the trait again for this base.",
            )
    if 0 in pull:
        raise BadInput(
            f"{variant.name!r} is pulled at the first layer, where llama.cpp adds no control vector.",
            "Export it as `gguf`, which has the pull in its weights.",
        )


def control_vector_in(folder: Path) -> Path | None:
    """The control-vector file of an export; None where it has none."""
    return next(iter(sorted(folder.rglob(f"*{ENDING}"))), None)


def read_control_vector(path: Path) -> ControlVector:
    """Read a file as llama.cpp does, and as strictly.

    Raises:
        BadModel: llama.cpp would not take it, or it lacks what it should say of itself.
    """
    from gguf import GGUFReader

    def wrong(why: str) -> BadModel:
        return BadModel(f"{path.name} is no control vector that llama.cpp takes: {why}.", "Export it again.")

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError) as error:
        raise wrong(str(error)) from error
    said = {name: _content(reader, name) for name in ("general.architecture", f"{KIND}.model_hint")}
    count = _content(reader, f"{KIND}.layer_count")
    if said["general.architecture"] != KIND or not said[f"{KIND}.model_hint"] or not isinstance(count, int):
        raise wrong(f"it is of the architecture {said['general.architecture']!r}, for {said[f'{KIND}.model_hint']!r}")
    found: dict[int, Vector] = {}
    for tensor in reader.tensors:
        number = re.fullmatch(r"direction\.(\d+)", tensor.name)
        if number is None or int(number[1]) == 0:
            raise wrong(f"it has a tensor {tensor.name!r}")
        if tensor.tensor_type.name != "F32" or len(tensor.shape) != 1:
            raise wrong(
                f"{tensor.name} is {tensor.tensor_type.name} with {len(tensor.shape)} dimensions, not F32 with 1"
            )
        found[int(number[1])] = numpy.array(tensor.data, dtype=numpy.float32)
    if len({vector.size for vector in found.values()}) != 1:
        raise wrong("its directions are of different lengths, or there are none")
    if count != len(found):
        raise wrong(f"it says that it has {count} directions and has {len(found)}")
    return ControlVector(str(said[f"{KIND}.model_hint"]), count, found)


def _content(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def require_same(found: ControlVector, variant: Variant) -> None:
    """That what was read back is the variant's pull, to the last bit.

    Raises:
        BadModel: it is not.
    """
    pull = own_pull(variant)
    for layer in sorted({*pull, *found.directions}):
        there, wanted = found.directions.get(layer), pull.get(layer)
        if there is None or not numpy.array_equal(there, numpy.zeros_like(there) if wanted is None else wanted):
            raise BadModel(
                f"The control vector that was written does not hold the pull of {variant.name!r} at layer {layer}.",
                "Please report this: it should.",
            )


@contextmanager
def added(model: Any, directions: Mapping[int, Vector], strength: float = 1.0) -> Iterator[None]:
    """Inside the block a transformers model is pulled as llama.cpp would pull it, by hooks of this module's own.

    For checking a file: apart from finding the layers it shares nothing with `inference.steering`, with which it must
    agree. Works for passes that call the layers' modules, such as transformers' own `generate`.

    Args:
        directions: as in `ControlVector`; those of layers the model does not have are left out, as llama.cpp does.
    """
    import torch

    from persona_lab.inference.steering import decoder_layers

    def hook(direction: torch.Tensor) -> Any:
        def add(_module: Any, _arguments: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            pulled = first + direction.to(first.device, first.dtype)
            return (pulled, *output[1:]) if isinstance(output, tuple) else pulled

        return add

    handles = [
        layer.register_forward_hook(hook(torch.from_numpy(directions[number]) * strength))
        for number, layer in enumerate(decoder_layers(model))
        if number in directions
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
