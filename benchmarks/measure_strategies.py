"""Measures every strategy on one dataset, end to end, through the command line: the table in docs/measured.md.

    python benchmarks/measure_strategies.py ../shared/data/lord_goring --name "Lord Goring" --out docs/measured.md

Trains each strategy with its defaults in a fresh data home, evaluates them all on the same held-out rows, and writes
what was measured, with the machine, the date and the commands. Nothing in the table comes from anywhere else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STRATEGIES = ("prompt", "lora", "qlora", "full", "hybrid")
METRICS = (
    ("held_out_gain", "bpb_variant"),
    ("held_out_gain", "g_true"),
    ("held_out_gain", "g_other"),
    ("held_out_gain", "specificity"),
    ("held_out_gain", "generalisation_gap"),
    ("break_character", "off"),
    ("break_character", "aligned"),
)


def command(home: Path, *arguments: str) -> Any:
    """Run `persona-lab ARGS --json`; its JSON document."""
    line = [sys.executable, "-m", "persona_lab.cli", *arguments, "--home", str(home), "--json"]
    print("$ persona-lab", *arguments, file=sys.stderr, flush=True)
    result = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"exit code {result.returncode}")
    return json.loads(result.stdout)


def prepare(home: Path, data: Path, name: str, persona: str) -> dict[str, Any]:
    """A persona with a one-line card, and the dataset."""
    card = home / "card.json"
    description = f"{name}, as in the play." if persona == "lord_goring" else f"{name}."
    card.write_text(json.dumps({"name": name, "description": description}))
    command(home, "personas", "import", str(card), "--id", persona)
    return command(home, "datasets", "import", str(data), "--persona", persona)


def train_all(home: Path, persona: str, strategies: tuple[str, ...], seeds: int) -> list[dict[str, Any]]:
    """Every strategy with its defaults, once a seed; `wall` is the whole command's time in seconds."""
    rows = []
    for strategy in strategies:
        for seed in range(seeds if strategy != "prompt" else 1):
            begun = time.perf_counter()
            name = f"{strategy}-s{seed}"
            row = command(
                home, "train", "--persona", persona, "--strategy", strategy, "--seed", str(seed), "--name", name
            )
            rows.append(row | {"wall": time.perf_counter() - begun, "label": name})
    return rows


def value(metrics: list[dict[str, Any]], evaluator: str, metric: str) -> str:
    """`0.146 [0.090, 0.207]`, or `withheld`."""
    for entry in metrics:
        if (entry["evaluator"], entry["metric"]) == (evaluator, metric):
            if entry["value"] is None:
                return "withheld"
            return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    return "-"


def machine() -> str:
    """One line about this machine."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def document(data: Path, dataset: dict[str, Any], trained: list[dict[str, Any]], evaluation: dict[str, Any]) -> str:
    """The Markdown page."""
    counts = ", ".join(f"{key} {number}" for key, number in dataset["counts"].items())
    lines = [
        "# Measured: every strategy on one character",
        "",
        f"`python benchmarks/measure_strategies.py {os.path.relpath(data)}` on {datetime.date.today().isoformat()};",
        f"{machine()}.",
        f"Base model: starter. Dataset `{dataset['id']}`: {counts}.",
        "",
        "## Cost",
        "",
        "| variant | wall s | train s | peak memory | trainable | artifact | validation loss before -> after |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in trained:
        loss, seconds = row["loss"], row["seconds"]
        after = "-" if loss["validation_after"] is None else f"{loss['validation_after']:.3f}"
        before = "-" if loss["validation_before"] is None else f"{loss['validation_before']:.3f}"
        cells = (
            row["label"],
            f"{row['wall']:.0f}",
            f"{seconds['train']:.0f}",
            f"{row['peak_memory_bytes'] / 2**30:.1f} GB",
            f"{row['trainable_parameters'] / 1e6:.1f} M",
            f"{row['artifact_bytes'] / 2**20:.0f} MB",
            f"{before} -> {after}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## On held-out rows (95% intervals over conversations)", ""]
    lines += ["| variant | " + " | ".join(metric for _, metric in METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    names = {row["variant"]: row["label"] for row in trained}
    for entry in evaluation["variants"]:
        cells = " | ".join(value(entry["metrics"], *metric) for metric in METRICS)
        lines.append(f"| {names.get(entry['variant'], 'base')} | {cells} |")
    lines += ["", "## What can be told apart", ""]
    for comparison in evaluation["comparisons"]:
        if comparison["metric"] in ("specificity", "g_true"):
            lines.append(f"- {comparison['verdict']}")
    lines += [
        "",
        "The intervals cover the choice of held-out rows, not the noise of training seeds: to rank strategies takes at",
        "least three seeds (`--seeds 3`).",
        "",
    ]
    text = "\n".join(lines)
    for identifier, label in names.items():
        text = text.replace(f"{identifier} ", f"{label} ").replace(f"`{identifier}`", label)
    return text


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", default="Lord Goring")
    parser.add_argument("--persona", default="lord_goring")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/measured.md"))
    parser.add_argument("--home", type=Path, help="Keep the data home here; default: a temporary one.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = options.home or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        dataset = prepare(home, options.data, options.name, options.persona)
        command(home, "models", "fetch", "starter")
        trained = train_all(home, options.persona, tuple(options.strategies.split(",")), options.seeds)
        variants = [row["variant"] for row in trained]
        evaluation = command(home, "compare", *variants, f"base-{options.persona}", "--out", str(home / "report"))
        (home / "measured.json").write_text(json.dumps({"trained": trained, "evaluation": evaluation}, indent=1))
        options.out.write_text(document(options.data, dataset, trained, evaluation))
    print(options.out.read_text())


if __name__ == "__main__":
    main()
