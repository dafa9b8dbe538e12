"""How much memory the work has used, and what to say when there was not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from persona_lab import processes
from persona_lab.errors import OutOfMemory

CPU_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")


def peak_memory(device: str) -> int:
    """Bytes: the most this process has held so far, on the accelerator for `cuda`, else of main memory."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return processes.peak_memory()


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
