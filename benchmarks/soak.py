"""A soak, compressed: many short runs one after another under one page's engine; does anything grow?

    python benchmarks/soak.py --runs 500 --out docs [--minutes 30] [--kinds train eval export] [--work DIR]

One process does what the page does (the engine, its supervisor, the library and its files) and starts run after run on
a tiny random model, each in a worker of its own: trainings, evaluations and exports in turns. After each run its
resident memory, Python objects, threads, open files and child processes are noted, and so are the temporary files of
the home and of the system's folder. Growth is the slope of a straight line (Theil-Sen) over the second half of the
runs, times their number, so that what is loaded once does not count. Variants are deleted as they come, as by a user
who tries things. What there is is written every ten runs, and when it is stopped. `--work`: where the home is made, in
a folder of its own that is gone afterwards.

    python benchmarks/soak.py --fresh 1 250 500

How much of a growth is only that there is more to list: what a fresh process holds once it has listed a home of so many
runs ten times (copies of one training).
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from common import command, fresh_folder, machine
from scipy import stats

from persona_lab.engine import Engine
from persona_lab.home import write_atomic
from persona_lab.testing import make_tiny_model
from persona_lab.types import now

MEASURES = {
    "memory_mb": "resident memory, MB",
    "objects": "Python objects",
    "threads": "threads",
    "files": "open files",
    "children": "child processes",
    "temporary": "temporary files",
    "seconds": "seconds a run",
}
TRAINING = {"epochs": 1, "rank": 2, "samples": 0}
KEEP_EVERY = 10
LISTING = """
import gc, sys, psutil
from pathlib import Path
from persona_lab.engine import Engine
with Engine.open(Path(sys.argv[1])) as engine:
    for _ in range(10):
        engine.runs(), engine.variants(), engine.personas()
    gc.collect()
    print(len(engine.runs()), psutil.Process().memory_info().rss / 2**20)
"""


def prepared(home: Path, folder: Path) -> None:
    """A character with data in a fresh home."""
    card, data = folder / "tam.json", folder / "tam.jsonl"
    card.write_text(json.dumps({"name": "Tam", "description": "A mender of clocks."}))
    things, verbs = ("kettle", "harbour", "violin", "orchard", "ladder"), ("sings", "rusts", "floats", "glows")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What about the {things[n % 5]} that {verbs[n % 4]}, number {n}?"},
                {
                    "role": "assistant",
                    "content": f"Ah, {things[n * 3 % 5]} {n}: {verbs[n * 3 % 4]}, friend {n * 31}.",
                },
            ]
        }
        for n in range(24)
    ]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    with Engine.open(home) as engine:
        engine.import_persona(card, "tam")
        engine.import_dataset(data, "tam")


def noted(home: Path, system: Path) -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    process = psutil.Process()
    hidden = sum(1 for path in home.rglob(".*") if path.name.endswith(".tmp") or path.name == ".reserve")
    return {
        "memory_mb": process.memory_info().rss / 2**20,
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "files": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        "children": len(process.children(recursive=True)),
        "temporary": hidden + sum(1 for _ in system.iterdir()),
    }


def soak(given: argparse.Namespace, work: Path) -> None:
    """The runs; what they held is written as they come."""
    tiny, home, system = str(make_tiny_model(work / "tiny", "llama")), work / "home", work / "system-temp"
    system.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(system)
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * given.minutes
    try:
        prepared(home, work)
        with Engine.open(home) as engine:
            kept = engine.wait(engine.train("tam", "lora", base=tiny, settings=TRAINING)).variant
            for number in range(given.runs):
                if time.monotonic() > end:
                    break
                kind, began = given.kinds[number % len(given.kinds)], time.monotonic()
                one_run(engine, kind, number, kept, tiny, work / "exports")
                seconds = round(time.monotonic() - began, 2)
                rows.append({"kind": kind, "seconds": seconds, **noted(home, system)})
                print(json.dumps(rows[-1]), flush=True)
                if len(rows) % KEEP_EVERY == 0:
                    keep(given, rows)
    finally:
        tempfile.tempdir = before
        if rows:
            keep(given, rows)


def one_run(engine: Engine, kind: str, number: int, kept: str, tiny: str, exports: Path) -> None:
    """A run from its start to its end, and what the page does between: lists, and looks at the run."""
    if kind == "train":
        run_id = engine.train("tam", "lora", base=tiny, settings=TRAINING, seed=number)
    elif kind == "eval":
        run_id = engine.evaluate([kept], ["held_out_gain"], quick=True, seed=number)
    else:
        run_id = engine.export(kept, "adapter", exports / str(number), license="made", check=False)
    run = engine.wait(run_id)
    assert run.status == "done", run.message
    if run.variant and run.variant != kept:
        engine.delete_variant(run.variant)
    engine.runs(), engine.variants(), engine.personas(), engine.events(run_id)


def fresh(counts: Sequence[int], work: Path) -> str:
    """Resident memory of a fresh process that has listed a home of so many runs, as Markdown."""
    tiny, first = str(make_tiny_model(work / "tiny", "llama")), work / "first"
    prepared(first, work)
    with Engine.open(first) as engine:
        run = engine.wait(engine.train("tam", "lora", base=tiny, settings=TRAINING)).id
    lines = ["| runs in the home | a fresh process that lists them, MB |", "|--:|--:|"]
    for count in counts:
        home = work / f"home-{count}"
        for number in range(count):
            copy = home / "runs" / f"{run}{number}"
            shutil.copytree(first / "runs" / run, copy, ignore=shutil.ignore_patterns("checkpoints", "artifact"))
            job = (copy / "job.json").read_text("utf-8").replace(run, copy.name)
            (copy / "job.json").write_text(job, encoding="utf-8")
        told = subprocess.run(
            [sys.executable, "-c", LISTING, str(home)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert int(told[0]) == count, told
        lines.append(f"| {count} | {float(told[1]):.1f} |")
    return "\n".join(lines) + "\n"


def keep(given: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows so far, and the page."""
    found = {
        "date": now()[:16],
        "machine": machine(),
        "command": command(),
        "asked": given.runs,
        "kinds": given.kinds,
        "runs": len(rows),
        "rows": rows,
        "growth": growth(rows),
    }
    write_atomic(given.out / "soak.json", json.dumps(found, indent=1) + "\n")
    write_atomic(given.out / "soak.md", page(found))


def growth(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By measure: its median over the first and last tenth, and its growth over the second half.

    `growth` is absolute, with `low` and `high`, the 95% bounds of the slope; `percent` is of the median there.
    """
    half = rows[len(rows) // 2 :]
    tenth = max(1, len(rows) // 10)
    found = {}
    for name in MEASURES:
        values = [row[name] for row in half]
        slope, _, low, high = stats.theilslopes(values) if len(values) > 2 else (0.0, 0.0, 0.0, 0.0)
        middle = statistics.median(values) if values else 0.0
        found[name] = {
            "first": statistics.median(row[name] for row in rows[:tenth]),
            "last": statistics.median(row[name] for row in rows[-tenth:]),
            "growth": float(slope) * len(half),
            "percent": 100 * float(slope) * len(half) / middle if middle else 0.0,
            "low": float(low) * len(half),
            "high": float(high) * len(half),
        }
    return found


def page(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    runs, asked = found["runs"], found["asked"]
    part = "" if runs == asked else f" of the {asked} that were asked for (it was stopped, or its time was over)"
    lines = [
        "# Soak",
        "",
        f"{runs} short runs{part}, {', '.join(found['kinds'])} in turns, one after another under one",
        f"engine, on a tiny random model; the last ended on {found['date']} UTC, on {found['machine']}:",
        f"`{found['command']}`.",
        "Growth is over the second half of the runs (Theil-Sen slope times their number, with its 95% bounds), so what",
        "is loaded once does not count. Every row is in [soak.json](soak.json).",
        "",
        "| | first tenth | last tenth | growth in the second half | in percent |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, title in MEASURES.items():
        g = found["growth"][name]
        bounds = f"{g['growth']:+.2f} [{g['low']:+.2f}, {g['high']:+.2f}]"
        lines.append(f"| {title} | {g['first']:.1f} | {g['last']:.1f} | {bounds} | {g['percent']:+.2f}% |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it; prints the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument(
        "--minutes", type=float, default=600.0, help="stop after so long; the page says how many it were"
    )
    parser.add_argument("--kinds", nargs="+", default=["train", "eval", "export"], choices=["train", "eval", "export"])
    parser.add_argument("--fresh", type=int, nargs="+", help="only measure what a fresh process needs for so many runs")
    parser.add_argument("--out", type=Path, help="folder for soak.json and soak.md")
    parser.add_argument("--work", type=Path, help="where to make a folder for the home; default: the temporary files")
    given = parser.parse_args()
    if given.fresh:
        with fresh_folder("persona-lab-soak-", given.work) as work:
            sys.stdout.write(fresh(given.fresh, work))
        return
    if given.out is None:
        parser.error("--out is needed: the folder for soak.json and soak.md.")
    given.out.mkdir(parents=True, exist_ok=True)
    with fresh_folder("persona-lab-soak-", given.work) as work:
        soak(given, work)
    sys.stdout.write((given.out / "soak.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
