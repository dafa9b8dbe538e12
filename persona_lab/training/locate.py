"""Where in the model a character sits: criteria that give each decoder layer a number, higher where it matters more.

Update norms are not among them: ||dW|| / ||W|| is nearly the same in all layers, whatever was learnt (measured). What
each criterion is worth as a guide for a second stage of training is measured by `benchmarks/locating.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from persona_lab.training.batches import collate
from persona_lab.training.lora import adapted_layers, layer_of, without_layer
from persona_lab.training.paths import LossPath, batch_loss, computing, prepared
from persona_lab.types import Rendered

SENSITIVITY_BATCH = 4


def ablation(model: Any, loss: Callable[[Any], float], told: Callable[[int, int], None]) -> list[tuple[int, float]]:
    """By how much `loss` rises when one layer's LoRA update is switched off: (layer, rise), in order of layers.

    Args:
        model: a peft model with a trained LoRA.
        loss: of a model; whatever is lower for the character.
        told: called with (layers done, layers) after each.
    """
    layers = adapted_layers(model)
    whole = loss(model)
    rises = []
    for number, layer in enumerate(layers, start=1):
        with without_layer(model, layer):
            rises.append((layer, loss(model) - whole))
        told(number, len(layers))
    return rises


def sensitivity(
    model: Any, examples: Sequence[Rendered], prefix: Sequence[int], path: LossPath, pad_id: int, device: str
) -> list[tuple[int, float]]:
    """The empirical Fisher information a weight: mean squared gradient of each layer's weights, over small batches.

    (layer, mean over batches of ||gradient||^2 / weights), in order of layers. Source: Kirkpatrick et al. 2017,
    https://arxiv.org/abs/1612.00796.

    Args:
        model: a plain model (merged, not peft); which weights are trainable is left as it was.
    """
    sums: dict[int, float] = {}
    sizes: dict[int, int] = {}
    chosen = sorted(examples, key=lambda example: len(example.ids))
    with _all_layers_trainable(model) as named, prepared(model, path):
        for layer, parameter in named:
            sizes[layer] = sizes.get(layer, 0) + parameter.numel()
        model.eval()
        batches = range(0, len(chosen), SENSITIVITY_BATCH)
        for start in batches:
            batch = collate(chosen[start : start + SENSITIVITY_BATCH], len(prefix), pad_id, device)
            with computing(model):
                (batch_loss(model, batch, prefix, path) / batch.supervised).backward()
            for layer, parameter in named:
                if parameter.grad is not None:
                    norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
                    sums[layer] = sums.get(layer, 0.0) + float(norm) ** 2
                    parameter.grad = None
    return [(layer, total / sizes[layer] / len(batches)) for layer, total in sorted(sums.items())]


@contextmanager
def _all_layers_trainable(model: Any) -> Iterator[list[tuple[int, Any]]]:
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    found = []
    for name, parameter in model.named_parameters():
        layer = layer_of(name)
        parameter.requires_grad_(layer is not None)
        if layer is not None:
            found.append((layer, parameter))
    try:
        yield found
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


def benefit_per_cost(values: Sequence[tuple[int, float]], fixed: float = 2.0) -> int:
    """How many of the last layers to train for the most benefit a second, where the layers below are frozen.

    Training the last k layers costs a forward and a backward pass through those k only, since what enters them is
    computed once (see `lower`); the output head and the optimizer cost about as much as `fixed` layers.

    Args:
        values: (layer, benefit), such as an ablation's rises; negative ones count as none.
    """
    ordered = sorted(values, reverse=True)
    gained, best, count = 0.0, 0.0, 1
    for number, (_, value) in enumerate(ordered, start=1):
        gained += max(value, 0.0)
        if gained / (number + fixed) > best:
            best, count = gained / (number + fixed), number
    return count
