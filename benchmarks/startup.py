"""Measures what a user waits for: `persona-lab --help`, and the page from process start to its first answer.

    python benchmarks/startup.py            prints minimum, median and maximum of 5 runs, and the page's memory

The first run warms the disk and is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PORT = 7971


def help_seconds() -> float:
    """Wall time of `persona-lab --help`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "persona_lab.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def page(home: str) -> tuple[float, float]:
    """Seconds from process start to the page's first answer, and its resident memory in MB three seconds later."""
    begun = time.perf_counter()
    command = [sys.executable, str(ROOT / "app.py"), "--home", home, "--port", str(PORT), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5).read()
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.perf_counter() - begun > 60:
                    raise SystemExit("the page did not come up") from None
                time.sleep(0.02)
        seconds = time.perf_counter() - begun
        time.sleep(3)
        return seconds, psutil.Process(process.pid).memory_info().rss / 2**20
    finally:
        process.terminate()
        process.wait(timeout=20)


def line(name: str, values: list[float], unit: str) -> str:
    """Minimum, median, maximum."""
    return (
        f"{name}: {min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f} {unit} (min / median / max)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    helps = [help_seconds() for _ in range(runs + 1)][1:]
    with tempfile.TemporaryDirectory() as home:
        pages = [page(home) for _ in range(runs + 1)][1:]
    print(line("persona-lab --help", helps, "s"))
    print(line("page ready", [seconds for seconds, _ in pages], "s"))
    print(line("page's memory", [memory for _, memory in pages], "MB"))


if __name__ == "__main__":
    main()
