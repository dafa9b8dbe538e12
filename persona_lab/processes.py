"""What processes of ours have in common: how workers are started, and what one has used. Starts nothing itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import psutil

SPIN = "3000"
"""How long OpenMP threads spin for work before they sleep (GNU's GOMP_SPINCOUNT).

With the library's default (about 300,000) a training step takes several times as long as soon as anything else wants a
core, and a browser beside the training is the normal case here; without any spinning it is slow when alone.
"""

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""glibc keeps large blocks for the next step instead of asking the system for fresh pages each time."""


def worker_environment() -> dict[str, str]:
    """The environment of a worker; what the user has set wins."""
    own = {"GOMP_SPINCOUNT": SPIN, "HF_HUB_DISABLE_TELEMETRY": "1", **MALLOC}
    return own | os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def own_group() -> dict[str, Any]:
    """Arguments of Popen for a process group of its own: Ctrl-C in the terminal is the parent's to translate."""
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True}


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
