"""What is measured on validation conversations while training: the loss, and how specific the gain is.

Loss: mean nats a supervised token. Specificity: how much likelier the character's own replies became, less how much
likelier other people's lines in the same places did, in nats a byte, since the first measurement. The best loss and the
best specificity are not at the same step: a lower loss may be the genre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from persona_lab.datasets.batching import VALIDATION_BATCH
from persona_lab.training.batches import collate, sorted_batches
from persona_lab.training.lower import Lower
from persona_lab.training.paths import LossPath, batch_loss, computing
from persona_lab.types import Rendered


@dataclass(frozen=True)
class Foils:
    """Validation contexts with the character's reply (`own`) and with another speaker's line (`other`).

    `own_bytes`, `other_bytes`: UTF-8 bytes of all replies of each kind together.
    """

    own: Sequence[Rendered] = ()
    other: Sequence[Rendered] = ()
    own_bytes: int = 1
    other_bytes: int = 1


@dataclass
class Measured:
    """One validation; `own`, `other`: nats a byte of the foils' replies, None without any."""

    loss: float
    own: float | None = None
    other: float | None = None


@dataclass
class Validator:
    """Measures a model in evaluation mode; `prepared` attention and kernels are the caller's."""

    model: Any
    examples: Sequence[Rendered]
    foils: Foils
    prefix: Sequence[int]
    path: LossPath
    pad_id: int
    device: str
    lower: Lower | None = None

    def measure(self) -> Measured:
        """The loss, and the foils' scores where there are any."""
        loss = self._mean(self.examples)
        if not self.foils.own:
            return Measured(loss)
        own, other = self._total(self.foils.own)[0], self._total(self.foils.other)[0]
        return Measured(loss, own / self.foils.own_bytes, other / self.foils.other_bytes)

    def specificity(self, now: Measured, first: Measured) -> float | None:
        """Nats a byte since `first`; None where there is nothing to measure it on."""
        if None in (now.own, now.other, first.own, first.other):
            return None
        return (first.own - now.own) - (first.other - now.other)  # type: ignore[operator]

    def _mean(self, examples: Sequence[Rendered]) -> float:
        total, count = self._total(examples)
        return total / max(count, 1)

    def _total(self, examples: Sequence[Rendered]) -> tuple[float, int]:
        return summed_loss(self.model, examples, self.prefix, self.path, self.pad_id, self.device, self.lower)


@torch.no_grad()
def summed_loss(
    model: Any,
    examples: Sequence[Rendered],
    prefix: Sequence[int],
    path: LossPath,
    pad_id: int,
    device: str,
    lower: Lower | None = None,
) -> tuple[float, int]:
    """Nats over all supervised tokens of `examples`, and how many those are; leaves the model in evaluation mode.

    The caller has `prepared` the model for `path`.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for indices in sorted_batches([len(example.ids) for example in examples], VALIDATION_BATCH):
        chosen = [examples[index] for index in indices]
        batch = collate(chosen, len(prefix), pad_id, device)
        with computing(model):
            loss = batch_loss(model, batch, prefix, path) if lower is None else lower.loss(chosen, batch, path)
            total += loss.cpu().double()
        count += batch.supervised
    return float(total), count


def validation_loss(
    model: Any, examples: Sequence[Rendered], prefix: Sequence[int], path: LossPath, pad_id: int, device: str
) -> float:
    """Mean nats a supervised token over `examples`; see `summed_loss`."""
    total, count = summed_loss(model, examples, prefix, path, pad_id, device)
    return total / max(count, 1)
