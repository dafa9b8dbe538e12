"""Which weights of a run should be kept: those with the lowest validation loss, the most specific ones, or the last?

    python benchmarks/keeping.py --home DIR --persona lord_goring --persona socrates --seeds 3 --out docs
                                 [--conversations 64] [--epochs 4] [--methods lora full]

Each persona, method and seed is trained three times alike, but for `keep`; so the three runs take the same steps and
differ only in the weights they end with, and in when they stop. Judged on held-out lines as `locating.py` judges. The
comparison is paired: a difference is taken within a persona and seed. Results are written as they come, and what is
there is not done again; runs of another number of epochs are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import mean_interval
from locating import Judge, context, fit

from persona_lab.home import Home, write_atomic
from persona_lab.models.machine import worker_machine
from persona_lab.training.lora import attach_lora

KEEPS = ("validation_loss", "specificity", "last")
RATES = {"lora": 5e-4, "full": 1e-4}
MEASURES = ("specificity", "bpb", "forgetting")


def one(home: Home, persona: str, method: str, seed: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Three rows: one a way to keep."""
    rows = []
    judge: Judge | None = None
    for keep in KEEPS:
        ctx = context(home, persona, seed, given.conversations)
        judge = judge or Judge(ctx)
        torch.manual_seed(seed)
        model: Any = ctx.load_base()
        if method == "lora":
            model = attach_lora(model, rank=16, alpha=32)
        else:
            model.requires_grad_(True)
        settings = {"learning_rate": RATES[method], "epochs": given.epochs, "evaluations_per_epoch": 3}
        fitted = fit(ctx, model, f"{method}-{keep}", keep=keep, **settings)
        what = {"persona": persona, "method": method, "epochs": given.epochs, "seed": seed, "keep": keep}
        rows.append({**what, **fitted, **judge.judge(model)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: means, and each way less `validation_loss`, paired, with a 95% interval (Student's t)."""
    lines = ["| trained | kept by | n | specificity | bits/byte | change on plain text | seconds |", "|---" * 7 + "|"]
    differences = [
        "| trained | less validation_loss | n | specificity | bits/byte | change on plain text |",
        "|---" * 6 + "|",
    ]
    for epochs, method in dict.fromkeys((row["epochs"], row["method"]) for row in rows):
        by: dict[str, dict[Any, Any]] = {keep: {} for keep in KEEPS}
        for row in rows:
            if (row["epochs"], row["method"]) == (epochs, method):
                by[row["keep"]][row["persona"], row["seed"]] = row
        trained = f"{method}, {epochs:g} epochs"
        for keep, mine in by.items():
            means = [f"{statistics.mean(row[m] for row in mine.values()):.3f}" for m in MEASURES]
            means.append(f"{statistics.mean(row['seconds'] for row in mine.values()):.0f}")
            lines.append(f"| {trained} | {keep} | {len(mine)} | {' | '.join(means)} |")
            if keep != "validation_loss":
                cells = [
                    mean_interval([row[m] - by["validation_loss"][at][m] for at, row in mine.items()]) for m in MEASURES
                ]
                differences.append(f"| {trained} | {keep} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *differences]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", required=True, help="a data home that holds the personas and the starter model")
    parser.add_argument("--persona", action="append", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], choices=list(RATES))
    parser.add_argument("--conversations", type=int, default=64, help="of the training split; 0: all")
    parser.add_argument("--epochs", type=float, default=4, help="enough for the loss to rise again")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    file = given.out / "keeping.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    home = Home.resolve(given.home)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in range(given.seeds):
        for persona in given.persona:
            for method in given.methods:
                asked = (persona, method, seed, given.epochs)
                if any((r["persona"], r["method"], r["seed"], r["epochs"]) == asked for r in rows):
                    continue
                rows += one(home, persona, method, seed, given)
                about = {"machine": worker_machine(home.root).device_name, "conversations": given.conversations}
                write_atomic(file, json.dumps(about | {"rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
