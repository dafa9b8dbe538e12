"""Seeds and the states of the random generators, so that a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators (all devices)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The generators' states: a JSON part and tensors."""
    kind, words, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    description = {
        "python": random.getstate(),
        "numpy": [str(kind), [int(word) for word in words], int(position), int(has_gauss), float(cached)],
    }
    tensors = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return description, tensors


def restore(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Take up what `capture` gave, also after a round trip through JSON."""
    version, words, gauss = description["python"]
    random.setstate((version, tuple(words), gauss))
    kind, state, *rest = description["numpy"]
    numpy.random.set_state((kind, numpy.array(state, dtype=numpy.uint32), *rest))
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


@contextmanager
def untouched() -> Iterator[None]:
    """Leave the generators after the block as they were before it."""
    description, tensors = capture()
    try:
        yield
    finally:
        restore(description, tensors)
