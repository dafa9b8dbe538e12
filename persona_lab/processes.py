"""How worker processes are started: their environment and their process group. Starts nothing itself."""

from __future__ import annotations

import os
import subprocess
from typing import Any

SPIN = "3000"
"""How long OpenMP threads spin for work before they sleep (GNU's GOMP_SPINCOUNT).

Measured, seconds a LoRA step on two cores, alone / beside one busy process: library default 0.95 / over 7; 3000: 0.85 /
2.4; OMP_WAIT_POLICY=PASSIVE: 1.35 / 1.25. A browser beside the training is the normal case here.
"""


def worker_environment() -> dict[str, str]:
    """The environment of a worker; what the user has set wins."""
    own = {"GOMP_SPINCOUNT": SPIN, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return own | os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def own_group() -> dict[str, Any]:
    """Arguments of Popen for a process group of its own: Ctrl-C in the terminal is the parent's to translate."""
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True}
