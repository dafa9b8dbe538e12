"""Where texts stand along traits, as a model reads them; nothing is computed anew, pulled or written.

A text's position along a trait is the mean hidden state of its tokens, projected on the trait's vector, in lengths of
the vector: mean over the trait's layers of h . v / (v . v). So the trait's own example lines of one side lie exactly 1
from those of the other. Only differences mean something: where 0 lies depends on the model. Method: monitoring by
persona vectors, https://arxiv.org/abs/2507.21509, section 3; there each model's own states are read. Here one unsteered
model reads the texts of all, because training moves the axis together with the states, and the states of a variant that
is pulled are moved by the pull whatever it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.inference.trait_files import KeptTrait
from persona_lab.traits.calibrate import share
from persona_lab.traits.contrast import mean_states
from persona_lab.types import Message


def positions(
    model: Any, renderer: ChatRenderer, kept: Sequence[KeptTrait], items: Sequence[tuple[Sequence[Message], str]]
) -> list[list[float | None]]:
    """Of each (messages, reply) its place along each trait, in lengths of the trait's vector [items][traits]; None for
    a blank reply.

    Args:
        model: the one the vectors are of, in eval mode, unsteered.
    """
    told = [number for number, (_, reply) in enumerate(items) if reply.strip()]
    found: list[list[float | None]] = [[None] * len(kept) for _ in items]
    rows = [row for batch in mean_states(model, renderer, [items[n] for n in told]) for row in batch]
    for number, states in zip(told, rows, strict=True):
        found[number] = [_position(states, trait) for trait in kept]
    return found


def _position(states: torch.Tensor, kept: KeptTrait) -> float:
    """Of one text's states [layers, hidden]."""
    total = 0.0
    for layer, part in kept.vectors.items():
        vector = torch.from_numpy(part).double() / share(len(kept.vectors))  # a file holds each layer's share
        total += float(states[layer].double() @ vector / (vector @ vector).clamp(min=1e-12))
    return total / len(kept.vectors)
