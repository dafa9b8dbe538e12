"""How long does a file of many rows take to import, and how much memory?

    python benchmarks/importing.py [--rows 100000] [--text TEXT] [--seed 0]

Rows are OpenAI messages of 15 to 70 words: windows of TEXT (a hard case: windows overlap, so that many rows share
phrases and near-duplicates must be looked for among them), or of made-up words. Prints one JSON document with seconds,
processor seconds, the largest memory, and how often progress was reported. The import is the page's and the command's.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from persona_lab.engine import Engine
from persona_lab.types import Persona


def write_rows(path: Path, count: int, words: list[str], seed: int) -> None:
    """`count` rows of windows of `words`, three words of each reply its own."""
    dice = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, said = dice.randrange(len(words) - 60), dice.randrange(len(words) - 60)
            question = words[asked : asked + dice.randrange(5, 20)]
            reply = words[said : said + dice.randrange(10, 50)]
            for _ in range(3):
                reply[dice.randrange(len(reply))] = f"w{dice.randrange(10**6)}"
            turns = [("user", f"{' '.join(question)} {number}"), ("assistant", " ".join(reply))]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    words = (
        options.text.read_text("utf-8").split()
        if options.text
        else [f"word{dice.randrange(9000)}" for _ in range(50_000)]
    )
    reports: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, options.rows, words, options.seed)
        with Engine.open(Path(folder) / "home") as engine:
            engine.save_persona(Persona(id="many", name="Many", card={"data": {"name": "Many"}}))
            started, worked = time.monotonic(), time.process_time()
            made = engine.import_dataset(path, "many", watcher=lambda _, __: reports.append(time.monotonic()))
            seconds, processor = time.monotonic() - started, time.process_time() - worked
        bytes_read = path.stat().st_size
    gaps = [b - a for a, b in zip([started, *reports], [*reports, started + seconds], strict=True)]
    scale = 2**20 if sys.platform == "darwin" else 2**10
    result = {
        "rows": options.rows,
        "bytes": bytes_read,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale,
        "progress_reports": len(reports),
        "longest_silence_seconds": max(gaps),
        "counts": made.counts,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
