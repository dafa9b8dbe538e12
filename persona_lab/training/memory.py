"""How much memory the work has used, and what to say when there was not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from persona_lab import processes
from persona_lab.errors import OutOfMemory
from persona_lab.models.machine import memory_bytes
from persona_lab.models.work import BatchShape, Kind, activation_bytes, shape_in
from persona_lab.types import Machine

CPU_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")


def peak_memory(device: str) -> int:
    """Bytes: the most this process has held so far, on the accelerator for `cuda`, else of main memory."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return processes.peak_memory()


def free_memory(machine: Machine) -> int:
    """Bytes that can still be taken now, on the accelerator for CUDA."""
    if machine.device == "cuda":
        # what torch keeps for itself and does not use counts as used on the device
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + int(kept)
    return memory_bytes()[1]


@contextmanager
def memory_errors(fix: str) -> Iterator[None]:
    """Turn torch's and Python's ways of running out of memory into `OutOfMemory` with this advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"Memory ran out: {_first_line(error)}", fix) from error
    except RuntimeError as error:
        if any(text in str(error).lower() for text in CPU_MESSAGES):
            raise OutOfMemory(f"Memory ran out: {_first_line(error)}", fix) from error
        raise


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


class Recompute:
    """Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174) of a model, switched on once
    memory asks for it: layers keep only what enters them, and are run again on the way back.

    Args:
        wish: `on`, `off`, or `auto`: before the first batch whose activations would not fit.
    """

    SHARE = 0.7
    """Of the free memory that activations may take."""

    def __init__(self, model: Any, wish: str) -> None:
        self.model, self.wish, self.active = model, wish, False
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.inner = inner if getattr(inner, "supports_gradient_checkpointing", False) else None
        self.width = next(p.element_size() for p in model.parameters() if p.is_floating_point())
        self.shape = shape_in(inner.config.to_dict(), sum(p.numel() for p in inner.parameters()))

    def __enter__(self) -> Recompute:
        if self.wish == "on":
            self._switch_on()
        return self

    def __exit__(self, *_: object) -> None:
        if self.active and self.inner is not None:
            self.inner.gradient_checkpointing_disable()
            self.active = False

    def decide(self, step: BatchShape, depth: float, free_bytes: int, say: Callable[[str], None]) -> None:
        """Switch it on if a step through this share of the layers would need too much."""
        if self.active or self.wish != "auto" or self.inner is None:
            return
        needed = activation_bytes(step, self.shape, Kind(0, False, depth=depth), self.width)
        if needed > self.SHARE * free_bytes:
            have = f"{needed / 1e9:.1f} GB of activations would not fit into {max(free_bytes, 0) / 1e9:.1f} GB"
            say(f"Activations are recomputed from here on, which is slower: {have}.")
            self._switch_on()

    def _switch_on(self) -> None:
        if self.inner is None:
            return
        options = {"use_reentrant": False, "context_fn": recompute_contexts}
        self.inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        self.active = True


def recompute_contexts() -> tuple[Any, Any]:
    """For torch's checkpoint: the second run of a layer sees the packing that the first one saw."""
    from persona_lab.training.attention import same_packing

    return nullcontext(), same_packing()
