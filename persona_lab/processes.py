"""What processes of ours have in common: how workers are started, and what one has used. Starts nothing itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

SPIN = "3000"
"""How long OpenMP threads spin for work before they sleep (GNU's GOMP_SPINCOUNT).

With the library's default (about 300,000) a training step takes several times as long as soon as anything else wants a
core, and a browser beside the training is the normal case here; without any spinning it is slow when alone.

Torch belongs into one thread of a worker: once a second one has used OpenMP, there are more OpenMP threads than cores
for as long as it lives, the library hardly spins any more whatever is asked for, and a token takes twice as long.
"""


def worker_environment(threads: int | None = None) -> dict[str, str]:
    """The environment of a worker; what the user has set in theirs wins.

    Args:
        threads: how many cores arithmetic may use; None: all.
    """
    own = {"GOMP_SPINCOUNT": SPIN, "HF_HUB_DISABLE_TELEMETRY": "1"}
    if threads:
        own |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return own | os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def birth(process: psutil.Process) -> str:
    """When a process began, in words that no later process shares and no change of the clock alters; "" if unknown.

    Raises:
        psutil.Error: it is gone.
    """
    # psutil's create_time is led along when the clock is set: on Linux by the time of boot, on macOS by its change
    if sys.platform == "darwin":
        try:
            return f"{process._proc.create_time(monotonic=True):.2f}"
        except (AttributeError, TypeError):  # an older psutil, which gives what the kernel noted
            return f"{process.create_time():.2f}"
    if sys.platform != "linux":
        return f"{process.create_time():.2f}"  # Windows keeps it as it was noted
    try:
        after_name = Path(f"/proc/{process.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError as error:
        raise psutil.NoSuchProcess(process.pid) from error
    except OSError:
        return ""
    return f"{boot}:{after_name[19]}"  # field 22, in clock ticks since boot


def oom_source() -> str:
    """The file in which the kernel counts the processes of this one's group that it ended for want of memory; "" where
    nothing counts them (other systems than Linux)."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return ""
    groups = {names: path.strip("/") for _, names, path in lines}
    root = Path("/sys/fs/cgroup")
    known = [root / groups.get("", "") / "memory.events", root / "memory.events"]
    memory = next((path for names, path in groups.items() if "memory" in names.split(",")), None)
    if memory is not None:  # the first version of control groups
        known = [root / "memory" / memory / V1_EVENTS, root / "memory" / V1_EVENTS, *known]
    return next((str(path) for path in (*known, Path("/proc/vmstat")) if _counter(path) is not None), "")


def oom_kills(source: str) -> int:
    """How many processes were ended for want of memory so far, by a file that `oom_source` named."""
    return _counter(Path(source)) or 0 if source else 0


V1_EVENTS = "memory.oom_control"


def _counter(path: Path) -> int | None:
    try:
        found = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("oom_kill ")]
        return int(found[0]) if found else None
    except (OSError, ValueError, IndexError):
        return None


def own_group() -> dict[str, Any]:
    """Arguments of Popen for a process group of its own: Ctrl-C in the terminal is the parent's to translate."""
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True}


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count what the parent held when it started this process
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class Company:
    """How much of the machine other programs took since this was made: what slows a run without being part of it."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def share(self) -> float:
        """Of all cores' time, 0 .. 1; 0 where cores were left idle enough that nobody was in the way."""
        cores = psutil.cpu_count() or 1
        whole = max(time.monotonic() - self._began, 1e-3) * cores
        own = _own_seconds() - self._own
        others = max(_busy_seconds() - self._busy - own, 0.0)
        return others / whole if (own + others) / whole > CROWDED else 0.0


CROWDED = 0.9
"""Share of all cores' time above which programs wait for each other."""


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
