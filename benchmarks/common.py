"""What several benchmarks need: what they ran on, how they were started, percentiles, a folder that goes away.

A neighbour of scripts and no package: `from common import ...` works in `python benchmarks/NAME.py`.
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from scipy import stats

OUT = "--out"
FOLDERS = (OUT, "--work", "--home")
"""Options whose value is a folder of the machine at hand: it says nothing to others."""


def machine() -> str:
    """What it ran on, for people: cores, memory, system, Python."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def command(arguments: Sequence[str] | None = None) -> str:
    """How the script was started, without the folders of this machine: `--out` stands as `docs`, others are left out.

    Args:
        arguments: the script and what it was given; None: those of this process.
    """
    script, *given = sys.argv if arguments is None else arguments
    shown, name = [f"python benchmarks/{Path(script).name}"], ""
    for word in given:
        if name:  # the value of a folder's option
            name = ""
            continue
        option, equals, _ = word.partition("=")
        if option not in FOLDERS:
            shown.append(word)
            continue
        shown += [f"{OUT} docs"] if option == OUT else []
        name = "" if equals else option
    return " ".join(shown)


def p95(values: Sequence[float]) -> float | None:
    """The 95th percentile by nearest rank (numpy's `inverted_cdf`): the smallest value that at least 95% do not exceed.

    None of nothing. https://en.wikipedia.org/wiki/Percentile#The_nearest-rank_method
    """
    return sorted(values)[-(-len(values) * 95 // 100) - 1] if values else None


def mean_interval(values: Sequence[float]) -> str:
    """Mean and its 95% interval (Student's t), to three places; the mean alone where there is nothing to vary."""
    mean = statistics.mean(values)
    if len(values) < 2 or len(set(values)) == 1:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


@contextmanager
def fresh_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder, gone afterwards with all that is in it. Nothing else of `parent` is touched.

    Args:
        parent: where to make it; None: the system's folder for temporary files.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    # a worker that is just being killed may still write there
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
