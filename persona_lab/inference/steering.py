"""Activation steering: a vector added to what a decoder layer gives on, for each row of a batch its own.

The residual stream after layer L becomes x + shift[L] at every position, prompt and reply alike: the same as a bias on
the layer's last linear layer, so that a steered model is a model, whose likelihoods can be asked for. Method:
activation addition (Turner et al. 2023, https://arxiv.org/abs/2308.10248), persona vectors (Chen et al. 2025,
https://arxiv.org/abs/2507.21509). The libraries for it hook a model and steer all rows alike; here panes share a batch.

Where nothing is added no hook is set and no operation done, so the logits are the unsteered ones, bit by bit. Does not
know traits or where vectors come from.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from persona_lab.errors import BadModel


class Shift:
    """What is added for one row.

    Args:
        layers: layer number (from 0) -> vector [hidden], added to that layer's output.
    """

    def __init__(self, layers: Mapping[int, torch.Tensor]) -> None:
        self.layers = {layer: vector.detach().float().cpu() for layer, vector in sorted(layers.items())}
        digest = hashlib.sha256()
        for layer, vector in self.layers.items():
            digest.update(layer.to_bytes(4, "little") + vector.contiguous().numpy().tobytes())
        self.key = f"shift-{digest.hexdigest()[:16]}"
        """The same for equal shifts."""

    def __add__(self, other: Shift) -> Shift:
        layers = dict(self.layers)
        for layer, vector in other.layers.items():
            layers[layer] = layers[layer] + vector if layer in layers else vector
        return Shift(layers)


class RowShifts:
    """The shifts of the rows that are run now; `at`: layer -> [rows, hidden], or [1, hidden] for all rows alike.

    Args:
        rows: one a row, None for a row that is left alone; a single one stands for a batch of any size.
        like: whose device and type the vectors take.
    """

    def __init__(self, rows: Sequence[Shift | None], like: torch.Tensor) -> None:
        self._like = like
        self.at: dict[int, torch.Tensor] = {}
        self.set(rows)

    def set(self, rows: Sequence[Shift | None]) -> None:
        """Other rows from now on."""
        self.rows = list(rows)
        layers = sorted({layer for row in rows if row is not None for layer in row.layers})
        nothing = torch.zeros(self._like.shape[-1])
        self.at = {
            layer: torch.stack([nothing if row is None else row.layers.get(layer, nothing) for row in rows]).to(
                self._like.device, self._like.dtype
            )
            for layer in layers
        }


_active: weakref.WeakKeyDictionary[Any, tuple[RowShifts, list[Any]]] = weakref.WeakKeyDictionary()


@contextmanager
def steered(model: Any, rows: Sequence[Shift | None]) -> Iterator[RowShifts | None]:
    """Inside the block the model's layers add these shifts, in the place of any that were in force before.

    Gives None, and leaves the model alone, where no row has one. What runs a layer without calling its module has to
    add them itself (`token_step`).

    Args:
        model: a transformers model, or a peft model of one.
        rows: one for each row of every pass; a single one stands for all rows.

    Raises:
        BadModel: its layers cannot be found, or are of another size than the shifts.
    """
    inner = _inner(model)
    before = _active.pop(inner, None)
    for handle in before[1] if before else ():
        handle.remove()
    try:
        if not any(row is not None and row.layers for row in rows):
            yield None
            return
        shifts = RowShifts(_checked(inner, rows), _embedding(inner))
        _active[inner] = (shifts, _hooks(inner, shifts))
        try:
            yield shifts
        finally:
            for handle in _active.pop(inner)[1]:  # not those set above: a block inside has taken them off and on again
                handle.remove()
    finally:
        if before is not None:
            _active[inner] = (before[0], _hooks(inner, before[0]))


def standing(model: Any) -> Shift | None:
    """The one shift that is in force for all rows; None: there is none, or each row has its own."""
    found = _active.get(_inner(model))
    return found[0].rows[0] if found is not None and len(found[0].rows) == 1 else None


def decoder_layers(model: Any) -> Sequence[Any]:
    """The model's decoder layers, first to last.

    Raises:
        BadModel: they cannot be found.
    """
    inner = _inner(model)
    count = getattr(inner.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    for module in inner.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count > 0:
            return module
    raise BadModel(
        f"The layers of {type(inner).__name__} cannot be found, so it cannot be steered.",
        "Choose another base model for trait sliders.",
    )


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _embedding(inner: Any) -> torch.Tensor:
    weight: torch.Tensor = inner.get_input_embeddings().weight
    return weight


def _checked(inner: Any, rows: Sequence[Shift | None]) -> Sequence[Shift | None]:
    layers, size = len(decoder_layers(inner)), _embedding(inner).shape[-1]
    for row in rows:
        for layer, vector in row.layers.items() if row is not None else ():
            if layer >= layers or vector.shape != (size,):
                raise BadModel(
                    f"A trait was computed for layer {layer} with {vector.numel()} numbers; this model has {layers} "
                    f"layers of {size}.",
                    "Compute the trait again for this model.",
                )
    return rows


def _hooks(inner: Any, shifts: RowShifts) -> list[Any]:
    def hook(number: int) -> Any:
        def add(_module: Any, _arguments: Any, output: Any) -> Any:
            added = shifts.at.get(number)
            if added is None:
                return None
            if isinstance(output, tuple):
                return (output[0] + added[:, None], *output[1:])
            return output + added[:, None]

        return add

    layers = decoder_layers(inner)
    wanted = sorted({layer for row in shifts.rows if row is not None for layer in row.layers})
    return [layers[number].register_forward_hook(hook(number)) for number in wanted]
