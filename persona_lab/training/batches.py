"""Turns rendered conversations into batches of tensors. Knows nothing of models.

The leading tokens that all examples share (a persona's system prompt) are kept apart, so that they can be computed
once a step. Batches hold examples of similar length, in a seeded, shuffled order.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from persona_lab.types import Rendered

SHORTEST_PREFIX = 12
"""A shared prefix shorter than this is not worth a forward pass of its own."""
LENGTH_JITTER = 0.1
"""Relative noise on lengths when sorting, so that batches differ between epochs."""


@dataclass(frozen=True)
class Batch:
    """Right-padded examples without their shared prefix and without the tokens after the last that predicts something.

    `ids`: [batch, tokens]; `real`: [batch, tokens], False at padding; `rows`, `columns`: [supervised], where in `ids`
    the hidden state stands that predicts `targets` [supervised].
    """

    ids: torch.Tensor
    real: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor

    @property
    def supervised(self) -> int:
        """How many tokens are trained on."""
        return int(self.targets.numel())

    @property
    def tokens(self) -> int:
        """How many tokens are computed, padding and shared prefix not counted."""
        return int(self.real.sum())


def shared_prefix(examples: Sequence[Rendered]) -> tuple[int, ...]:
    """The leading tokens that all examples share and that predict nothing that is trained on; may be empty."""
    if not examples:
        return ()
    first = examples[0].ids
    length = min(_first_target(example) - 1 for example in examples)
    for example in examples:
        pairs = zip(first[:length], example.ids, strict=False)
        length = min(length, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return first[:length] if length >= SHORTEST_PREFIX else ()


def _first_target(example: Rendered) -> int:
    return example.mask.index(True) if True in example.mask else len(example.ids)


def _last_target(example: Rendered) -> int:
    return max((position for position, trained in enumerate(example.mask) if trained), default=0)


def collate(examples: Sequence[Rendered], prefix: int, pad_id: int, device: str | torch.device) -> Batch:
    """Pads `examples`, less their first `prefix` tokens, to one rectangle on `device`."""
    tails = [example.ids[prefix : max(_last_target(example), prefix + 1)] for example in examples]
    width = max(map(len, tails))
    ids = torch.full((len(examples), width), pad_id, dtype=torch.long)
    real = torch.zeros((len(examples), width), dtype=torch.bool)
    rows, columns, targets = [], [], []
    for row, example in enumerate(examples):
        ids[row, : len(tails[row])] = torch.tensor(tails[row])
        real[row, : len(tails[row])] = True
        for position in range(prefix + 1, len(example.ids)):
            if example.mask[position]:
                rows.append(row)
                columns.append(position - prefix - 1)
                targets.append(example.ids[position])
    place = [torch.tensor(values, dtype=torch.long, device=device) for values in (rows, columns, targets)]
    return Batch(ids.to(device), real.to(device), *place)


def batches_of_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the examples of each batch of one epoch; the same for the same arguments.

    Every example appears once. Examples are sorted by length with a little noise, cut into batches, and the batches
    shuffled: almost no padding, and other company for each example in each epoch.
    """
    generator = random.Random(f"{seed}/{epoch}")
    noisy = [length * (1 + LENGTH_JITTER * generator.random()) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda index: noisy[index])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    generator.shuffle(batches)
    return batches


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of examples in batches of similar length, in a fixed order (for validation)."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
