"""What this machine has: cores, memory, disk, accelerator, and whether bf16 is fast.

`probe_machine` runs in the page's process and never imports torch; `worker_machine` asks torch, which knows best.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import psutil

from persona_lab.types import Machine

CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # cgroup v1 writes a huge number for "no limit"
UNTOUCHED_BYTES = 1_000_000_000
"""Address space of a training that it maps and does not use: libraries, stacks of threads, arenas. Measured on Linux
with torch for CPUs: 0.75 GB during steps, 1.0 GB after loading."""


def probe_machine(folder: Path) -> Machine:
    """The machine without asking torch. CUDA is believed when nvidia-smi lists a GPU.

    Args:
        folder: where the data lives; its disk is the one measured.
    """
    gpu = _nvidia_gpu()
    if gpu is not None:
        name, memory = gpu
        return _machine(folder, device="cuda", name=name, accelerator=memory, bf16=True)
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return _machine(folder, device="mps", name=f"Apple GPU ({_cpu_name()})", bf16=False)
    return _machine(folder)


def worker_machine(folder: Path) -> Machine:
    """The machine as torch sees it: cuda, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        # below compute capability 8.0 bf16 is emulated
        fast = properties.major >= 8 or bool(getattr(torch.version, "hip", None))
        return _machine(folder, device="cuda", name=properties.name, accelerator=properties.total_memory, bf16=fast)
    if torch.backends.mps.is_available():
        return _machine(folder, device="mps", name=f"Apple GPU ({_cpu_name()})", bf16=False)
    return _machine(folder)


def _machine(
    folder: Path, device: str = "cpu", name: str = "", accelerator: int = 0, bf16: bool | None = None
) -> Machine:
    total, free = memory_bytes()
    return Machine(
        device=device,
        device_name=name or _cpu_name(),
        cores=cores(),
        memory_bytes=total,
        memory_free_bytes=free,
        accelerator_bytes=accelerator,
        disk_free_bytes=shutil.disk_usage(_existing(folder)).free,
        bf16=_cpu_bf16() if bf16 is None else bf16,
    )


def cores() -> int:
    """Cores this process may use: affinity and the container's quota, not what is in the box."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_numbers(CGROUP / "cpu.max")
    if len(quota) == 2 and quota[1] > 0:
        affinity = min(affinity, max(1, quota[0] // quota[1]))
    return affinity


def memory_bytes() -> tuple[int, int]:
    """Memory this process may use, total and free: the machine's, or what its container's and its own limits leave."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit, used in [*_cgroup_limits(), *_address_limit()]:
        if limit < min(total, UNLIMITED):
            total = limit
        free = min(free, max(0, limit - used))
    return total, free


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group around this process; the page cache is not counted as used."""
    found = []
    for folder in _cgroup_folders():
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        ):
            limit, used = _first_numbers(folder / limit_file), _first_numbers(folder / used_file)
            if limit and used and limit[0] < UNLIMITED:
                # the page cache counts as used there, but is given back when needed
                found.append((limit[0], max(0, used[0] - _cgroup_cache(folder))))
    return found


def _cgroup_folders() -> list[Path]:
    """The root of what this process sees, and below it the group it is in, with those in between."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [CGROUP]
    own = next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), "")
    parts = [part for part in own.split("/") if part and part != ".."]
    return [CGROUP.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _address_limit() -> list[tuple[int, int]]:
    """(limit, used) where the address space is limited (`ulimit -v`); libraries map more than they ever touch."""
    if sys.platform == "win32":
        return []
    import resource  # not on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft in (resource.RLIM_INFINITY, -1) or soft >= UNLIMITED:
        return []
    own = psutil.Process().memory_info()
    return [(soft, max(own.vms - own.rss, UNTOUCHED_BYTES))]


def _cgroup_cache(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))


def _first_numbers(path: Path) -> list[int]:
    """The numbers of a one-line kernel file; empty where it is missing or says `max`."""
    try:
        words = path.read_text().split()
    except OSError:
        return []
    return [int(word) for word in words] if words and all(word.isdigit() for word in words) else []


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


@lru_cache(maxsize=1)
def _nvidia_gpu() -> tuple[str, int] | None:
    """Name and bytes of the first GPU that nvidia-smi lists and that CUDA_VISIBLE_DEVICES does not hide."""
    program = shutil.which("nvidia-smi")
    if program is None or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=3, check=True).stdout
        name, memory = out.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(memory) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # a driver that does not answer is no GPU to plan with


@lru_cache(maxsize=1)
def _cpu_facts() -> tuple[str, bool]:
    """The CPU's name, and whether it multiplies bf16 natively."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine() or "CPU", False
    fields = dict(part for line in reversed(lines) if len(part := [w.strip() for w in line.split(":", 1)]) == 2)
    flags = set((fields.get("flags", "") + " " + fields.get("Features", "")).split())
    return fields.get("model name") or platform.machine() or "CPU", bool(flags & CPU_BF16_FLAGS or "bf16" in flags)


def _cpu_name() -> str:
    return _cpu_facts()[0]


def _cpu_bf16() -> bool:
    return _cpu_facts()[1]
