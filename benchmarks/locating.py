"""Where should a hybrid train in full? Criteria compared on real characters, over seeds, at their own learning rates.

    python benchmarks/locating.py --home DIR --persona lord_goring --persona socrates --seeds 3 --out docs
                                  [--conversations 64] [--rates 1e-4,3e-4] [--criteria ...]

Each persona and seed: LoRA for one epoch; the layers ranked by each criterion; then, from the same merged weights, full
training of a quarter of the layers (or of as many last layers as the criterion says) at each rate. Beside them LoRA and
full fine-tuning at their defaults, and a LoRA for as many epochs as the quickest of the hybrids had time for (of each
criterion at the rate that the validation loss would choose). Measured on held-out lines: specificity and bits per byte
against the untouched base, what was forgotten on plain text, and the processor's seconds of every part, by which other
programs on the machine count less than by the clock's. The first seed of a persona tries every rate; the others take,
for each criterion, the one with the lower validation loss there, and the strategy's own default. Results are written
after each persona and seed, and what is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import mean_interval

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.engine import Engine
from persona_lab.evaluation.probes import build_probes
from persona_lab.home import Home, write_atomic
from persona_lab.inference.scoring import loglikelihood
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.personas.prompt import system_prompt
from persona_lab.plugins import Plugins
from persona_lab.training.context import Context
from persona_lab.training.locate import ablation, benefit_per_cost
from persona_lab.training.lora import attach_lora, merged_model, train_layers
from persona_lab.types import FitSettings, Message

QUARTER = 8 / 30
RANKED_ON = 12
"""Validation conversations that the ablations are measured on."""
RATES = (1e-4, 3e-4)
SHIPPED = ("last quarter", 3e-4)
"""What the strategy does unless told otherwise: tried with every seed, whatever the validation loss says."""
FULL = "full, 2 epochs"
AS_LONG = "lora, as long as a hybrid"
PLAIN = (
    "The committee will meet on Thursday to review the budget for the coming year; members are asked to bring copies.",
    "Water boils at a lower temperature at high altitude because the pressure of the air above it is lower there.",
    "To replace the battery, remove the two screws at the back, lift the cover, and slide the old cell out.",
    "The museum is open from ten to five every day except Monday; admission is free for children and students.",
    "In 1876 the railway reached the valley, and within ten years the number of inhabitants had doubled.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3]))",
    "Plants take up water through their roots and release most of it again through small openings in their leaves.",
    "Please find attached the minutes of last week's meeting. Let me know if anything is missing before Friday noon.",
)
"""Plain text of several kinds, written for this file: what a model should still be good at."""


class Quiet:
    """A reporter that keeps warnings to itself."""

    def phase(self, title: str, total: int | None = None) -> None: ...
    def step(self, step: int, total: int, **values: Any) -> None: ...
    def log(self, message: str, level: str = "info") -> None: ...


def spent() -> float:
    """Seconds of processor time so far, of all threads, divided by the cores: the clock's on a machine of one's own."""
    return time.process_time() / torch.get_num_threads()


def context(home: Home, persona_id: str, seed: int, conversations: int) -> Context:
    """What a strategy gets, without a worker; `conversations` of the training split, all for 0."""
    with Engine.open(home.root, readonly=True) as engine:
        persona = engine.persona(persona_id)
        dataset = engine.dataset(engine.datasets(persona_id)[0].id)
    train = {c.id for c in dataset.of("train")[: conversations or None]}
    kept = tuple(c for c in dataset.conversations if c.split != "train" or c.id in train)
    dataset = dataset.model_copy(update={"conversations": kept})
    base = registry.ensure("starter", home, Quiet())
    shutil.rmtree(home.root / "locating" / f"{persona_id}-{seed}", ignore_errors=True)
    return Context(
        reporter=Quiet(),
        plugins=Plugins.load(),
        persona=persona,
        dataset=dataset,
        base=base,
        machine=worker_machine(home.root),
        seed=seed,
        run_dir=home.root / "locating" / f"{persona_id}-{seed}",
        system=system_prompt(persona),
        renderer=ChatRenderer(Path(base.path)),
    )


class Judge:
    """Scores models on held-out lines against the untouched base, per item, in bits a byte."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        probes = [p for p in build_probes(ctx.persona, ctx.dataset) if p.kind == "reply" and p.other]
        system = Message(role="system", content=ctx.system)
        self.own = [((system, *p.messages), p.reply) for p in probes]
        self.other = [((system, *p.messages), p.other) for p in probes]
        self.plain = [((Message(role="user", content="Write a sentence."),), text) for text in PLAIN]
        self.base = self._scores(ctx.load_base())

    def _scores(self, model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        model.eval()
        kinds = (self.own, self.other, self.plain)
        every = loglikelihood(model, self.ctx.renderer, [item for kind in kinds for item in kind])
        bits = np.array([result.per_byte / math.log(2) for result in every])
        return tuple(np.split(bits, [len(self.own), 2 * len(self.own)]))  # type: ignore[return-value]

    def judge(self, model: Any) -> dict[str, float]:
        own, other, plain = self._scores(model)
        specific = (own - self.base[0]) - (other - self.base[1])
        return {
            "specificity": float(specific.mean()),
            "bpb": float(-own.mean()),
            "forgetting": float((self.base[2] - plain).mean()),
        }


def fit(ctx: Context, model: Any, stage: str, **settings: Any) -> dict[str, float]:
    started = spent()
    result = ctx.fit(model, FitSettings(samples=0, **settings), stage)
    return {"seconds": spent() - started, "validation": result.validation_after}


def one(ctx: Context, rates: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """All rows of one persona and seed. `rates`: to be tried, of each criterion."""
    persona, seed = ctx.persona.id, ctx.seed
    judge = Judge(ctx)
    rows: list[dict[str, Any]] = []

    def row(name: str, model: Any, timing: dict[str, float], **more: Any) -> None:
        rows.append({"persona": persona, "seed": seed, "method": name, **timing, **more, **judge.judge(model)})
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)

    torch.manual_seed(seed)
    whole = attach_lora(ctx.load_base(), rank=16, alpha=32)
    row("lora, 2 epochs", whole, fit(ctx, whole, "lora2", learning_rate=5e-4, epochs=2))
    full = ctx.load_base()
    full.requires_grad_(True)
    row(FULL, full, fit(ctx, full, "full2", learning_rate=1e-4, epochs=2))
    del whole, full

    torch.manual_seed(seed)
    model = attach_lora(ctx.load_base(), rank=16, alpha=32)
    first = fit(ctx, model, "lora1", learning_rate=5e-4, epochs=1)
    row("lora, 1 epoch", model, first)
    started = spent()
    rises = ablation(model, lambda m: ctx.validation_loss(m, limit=RANKED_ON), lambda done, total: None)
    ablated = spent() - started
    merged = merged_model(model)
    kept = {name: p.detach().clone() for name, p in merged.named_parameters()}
    started = spent()
    fisher = ctx.layer_sensitivity(merged, 2 * RANKED_ON)
    sensed = spent() - started
    layers = len(rises)
    count = max(1, round(QUARTER * layers))
    suffix = benefit_per_cost(rises)
    places = {
        "ablation": (_top(rises, count), ablated),
        "sensitivity": (_top(fisher, count), sensed),
        "benefit a second": (list(range(layers - suffix, layers)), ablated),
        "last quarter": (list(range(layers - count, layers)), 0.0),
    }
    for name, tried in rates.items():
        chosen, located = places[name]
        for rate in tried:
            with torch.no_grad():
                for parameter_name, p in merged.named_parameters():
                    p.copy_(kept[parameter_name])
            train_layers(merged, chosen)
            timing = fit(ctx, merged, f"{name}-{rate}".replace(" ", "_"), learning_rate=rate, epochs=2)
            timing["seconds"] += first["seconds"] + located
            merged.requires_grad_(False)
            row(f"{name}, {rate:g}", merged, timing, chosen=chosen, located=located, criterion=name, rate=rate)
    rows[2] |= {"ablation": rises, "sensitivity": fisher}
    del merged, kept
    epochs = epochs_in(_quickest(rows), rows[0]["seconds"] / 2)
    torch.manual_seed(seed)
    longer = attach_lora(ctx.load_base(), rank=16, alpha=32)
    timing = fit(ctx, longer, "lora-long", learning_rate=5e-4, epochs=epochs)
    row(AS_LONG, longer, timing, epochs=epochs)
    return rows


def _quickest(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds of the quickest hybrid, of those at each criterion's best rate here."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row.get("criterion")
        if name and (name not in best or row["validation"] < best[name]["validation"]):
            best[name] = row
    return min((row["seconds"] for row in best.values()), default=0.0)


def epochs_in(seconds: float, epoch: float) -> float:
    """How many epochs of so many seconds there is time for, in quarters, and at least one."""
    return max(1.0, round(4 * seconds / max(epoch, 1e-9)) / 4)


def _top(values: list[tuple[int, float]], count: int) -> list[int]:
    return sorted(layer for layer, _ in sorted(values, key=lambda pair: -pair[1])[:count])


def rates_to_try(
    rows: Sequence[dict[str, Any]], persona: str, rates: Sequence[float], criteria: Sequence[str]
) -> dict[str, Sequence[float]]:
    """Of each criterion: all, or what did best on this persona's validation lines before, and what is shipped."""
    found: dict[str, Sequence[float]] = {}
    for criterion in criteria:
        best = _best_rate(rows, persona, criterion)
        shipped = {SHIPPED[1]} if criterion == SHIPPED[0] else set()
        found[criterion] = rates if best is None else sorted({best, *shipped})
    return found


def _best_rate(rows: Sequence[dict[str, Any]], persona: str, criterion: str) -> float | None:
    """The one with the lowest validation loss on the first seed; None: none was tried."""
    mine = [row for row in rows if row["persona"] == persona and row.get("criterion") == criterion]
    mine = [row for row in mine if row["seed"] == mine[0]["seed"]]
    return min(mine, key=lambda row: row["validation"])["rate"] if mine else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean over seeds (and its standard deviation) of each persona and method."""
    lines = [
        "| persona | method | n seeds | specificity | bits/byte | forgetting | validation loss | processor seconds |",
        "|---" * 8 + "|",
    ]
    for persona in dict.fromkeys(row["persona"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows if row["persona"] == persona):
            mine = [row for row in rows if (row["persona"], row["method"]) == (persona, method)]

            def cell(key: str, digits: int = 3, mine: Sequence[dict[str, Any]] = mine) -> str:
                values = [row[key] for row in mine]
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                return f"{statistics.mean(values):.{digits}f}{spread}"

            cells = [cell("specificity"), cell("bpb"), cell("forgetting"), cell("validation"), cell("seconds", 0)]
            lines.append(f"| {persona} | {method} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: each criterion at the rate chosen by validation loss, less others of the same persona and seed.

    Means over personas and seeds with 95% intervals. Specificity against the LoRA of about equal time, forgetting
    against `full`; time as a ratio.
    """
    at = {(row["persona"], row["seed"], row["method"]): row for row in rows}
    lines = [
        f"| criterion | n | specificity less `{AS_LONG}` | bits/byte less that | change on plain text less `full` "
        "| time / that LoRA's |",
        "|---" * 6 + "|",
    ]
    personas = dict.fromkeys(row["persona"] for row in rows)
    criteria = dict.fromkeys(row["criterion"] for row in rows if row.get("criterion"))
    told = {c: (c, {persona: _best_rate(rows, persona, c) for persona in personas}) for c in criteria}
    if any((row.get("criterion"), row.get("rate")) == SHIPPED for row in rows):
        name = f"{SHIPPED[0]} at {SHIPPED[1]:g}, as shipped"
        told[name] = (SHIPPED[0], dict.fromkeys(personas, SHIPPED[1]))
    for name, (criterion, best) in told.items():
        mine = [r for r in rows if r.get("criterion") == criterion and r["rate"] == best[r["persona"]]]
        long = [at[row["persona"], row["seed"], AS_LONG] for row in mine]
        full = [at[row["persona"], row["seed"], FULL] for row in mine]
        cells = [
            mean_interval([row["specificity"] - other["specificity"] for row, other in zip(mine, long, strict=True)]),
            mean_interval([row["bpb"] - other["bpb"] for row, other in zip(mine, long, strict=True)]),
            mean_interval([row["forgetting"] - other["forgetting"] for row, other in zip(mine, full, strict=True)]),
            f"{statistics.mean(row['seconds'] / other['seconds'] for row, other in zip(mine, long, strict=True)):.2f}",
        ]
        lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", required=True, help="a data home that holds the personas and the starter model")
    parser.add_argument("--persona", action="append", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=0, help="of the training split; 0: all")
    parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES))
    parser.add_argument("--criteria", default="ablation,sensitivity,benefit a second,last quarter")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    file = arguments.out / "locating.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    home = Home.resolve(arguments.home)
    rates = [float(rate) for rate in arguments.rates.split(",")]
    for seed in range(arguments.seeds):
        for persona in arguments.persona:
            if any((row["persona"], row["seed"]) == (persona, seed) for row in rows):
                continue
            tried = rates_to_try(rows, persona, rates, arguments.criteria.split(","))
            rows += one(context(home, persona, seed, arguments.conversations), tried)
            arguments.out.mkdir(parents=True, exist_ok=True)
            about = {"machine": worker_machine(home.root).device_name, "conversations": arguments.conversations}
            write_atomic(file, json.dumps(about | {"rows": rows}, indent=1) + "\n")
    print(table(rows))
    print(comparison(rows))


if __name__ == "__main__":
    main()
