"""Turns rendered conversations into batches of tensors. Knows nothing of models.

The leading tokens that all examples share (a persona's system prompt) are kept apart, so that they can be computed
once a step. Which examples go together is decided in `datasets.batching`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from persona_lab.datasets.batching import batches_of_epoch, shared_prefix, sorted_batches
from persona_lab.types import Rendered

__all__ = ["Batch", "batches_of_epoch", "collate", "shared_prefix", "sorted_batches"]


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
