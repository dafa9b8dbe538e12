"""Which conversations go into a batch together, and which leading tokens they share. Pure Python: plans use it too.

Batches hold examples of similar length, in a seeded, shuffled order.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from persona_lab.types import Rendered

SHORTEST_PREFIX = 12
"""A shared prefix shorter than this is not worth a forward pass of its own."""
KEPT_CONTEXT = 8
"""Tokens of the last question (and of what begins the reply) for which a conversation that is shortened keeps all that
stands before the question, and so what it shares with the others."""
LENGTH_JITTER = 0.1
"""Relative noise on lengths when sorting, so that batches differ between epochs."""
VALIDATION_BATCH = 16


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
