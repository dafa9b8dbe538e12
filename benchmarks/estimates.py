"""How far plans are off: real runs of mixed strategies, ranks, lengths and batch sizes, each predicted before it runs.

    python benchmarks/estimates.py --home DIR [--model-from HOME] [--data DIR] [--only N] [--out DIR]

Subsets of the shipped examples (and of lord_goring, where --data names test data) are trained by the command's own
engine in a home of their own. First the machine is calibrated, as `persona-lab plan --calibrate` does. Stopped, it goes
on: finished rows are kept in the home, `--only 5` does five more, and without it all are done. Errors are
|predicted - measured| / measured of the seconds and the peak of memory that the run's own result states.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from persona_lab.engine import Engine
from persona_lab.home import write_atomic
from persona_lab.types import RunView, now

EXAMPLES = ("nan_tolliver", "magpie", "ambrose_pell")
VALIDATION = 6
MEDIAN_GOAL, WORST_GOAL = 0.15, 0.40
BUSY, MOST_TRIES = 0.1, 3
"""Share of the cores' time that other programs may take, and how often a disturbed run is done again."""
ROWS_FILE = "estimates-rows.json"


@dataclass(frozen=True)
class Case:
    """One run: a subset of a persona's conversations, a strategy and its settings."""

    persona: str
    conversations: int
    strategy: str
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("nan_tolliver", 24, "lora", {"epochs": 1}),
    Case("magpie", 40, "lora", {"epochs": 1, "rank": 64}),
    Case("ambrose_pell", 16, "full", {"epochs": 1}),
    Case("lord_goring", 40, "lora", {"epochs": 2, "rank": 8, "batch_size": 8}),
    Case("nan_tolliver", 12, "lora", {"epochs": 2, "rank": 4, "batch_size": 2}),
    Case("magpie", 24, "full", {"epochs": 1, "batch_size": 8}),
    Case("nan_tolliver", 16, "qlora", {"epochs": 1}),
    Case("ambrose_pell", 24, "hybrid", {"epochs": 1}),
    Case("lord_goring", 24, "full", {"epochs": 1, "batch_size": 2}),
    Case("nan_tolliver", 40, "lora", {"epochs": 1, "max_tokens": 300}),
    Case("ambrose_pell", 40, "lora", {"epochs": 1, "batch_size": 1}),
    Case("magpie", 16, "prompt", {}),
    Case("lord_goring", 40, "qlora", {"epochs": 1, "rank": 32}),
    Case("nan_tolliver", 24, "full", {"epochs": 2, "max_tokens": 256}),
    Case("magpie", 12, "lora", {"epochs": 2, "rank": 16, "evaluations_per_epoch": 1}),
    Case("lord_goring", 40, "hybrid", {"epochs": 1, "layers": 4}),
    Case("ambrose_pell", 32, "lora", {"epochs": 1, "rank": 32, "batch_size": 16}),
    Case("magpie", 40, "full", {"epochs": 1, "samples": 0}),
    Case("lord_goring", 12, "lora", {"epochs": 3, "samples": 4}),
    Case("nan_tolliver", 32, "hybrid", {"epochs": 1, "lora_epochs": 1, "layers": 12}),
    Case("ambrose_pell", 12, "prompt", {"count": 8, "token_budget": 1024}),
    Case("magpie", 32, "qlora", {"epochs": 1, "rank": 8, "batch_size": 8}),
    Case("nan_tolliver", 40, "freeze", {"epochs": 1}),
    Case("lord_goring", 40, "freeze", {"epochs": 2, "batch_size": 8}),
)


def main() -> int:
    """Run what is left to do, then report."""
    options = _options()
    home = Path(options.home)
    if options.model_from and not (home / "models").exists():
        shutil.copytree(Path(options.model_from) / "models", home / "models", symlinks=True)
    with Engine.open(home) as engine:
        state = _state(home)
        if not state.get("calibrated"):
            state |= {"calibrated": now(), "machine": engine.machine().model_dump(mode="json")}
            _done(engine, engine.calibrate())
            _keep(home, state)
        data = _Data(engine, Path(options.data) if options.data else None, home)
        todo = _todo(engine, data, state)
        # the largest subsets first: what they hold out with its near-duplicates, smaller ones must not train on
        for case in sorted(todo, key=lambda case: -case.conversations):
            data.dataset(case)
        for case in todo[: options.only]:
            print(f"{case.strategy} on {case.conversations} of {case.persona} {case.settings}", file=sys.stderr)
            row = _measure(engine, data.dataset(case), case)
            # beside other busy programs nothing is measured: the run is done again, a few times at most
            tries = sum(other["case"] == row["case"] for other in state["disturbed"])
            state["disturbed" if row["others"] > BUSY and tries < MOST_TRIES else "rows"].append(row)
            _keep(home, state)
    text = report(state)
    print(text)
    if options.out:
        write_atomic(Path(options.out) / "estimates.json", json.dumps(state, indent=1) + "\n")
        write_atomic(Path(options.out) / "estimates.md", text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", required=True, help="A home for this alone; kept, so that it can go on.")
    parser.add_argument("--model-from", help="A home whose base models are copied, to spare the download.")
    parser.add_argument("--data", help="Folder of test data with lord_goring/pairs.jsonl.")
    parser.add_argument("--only", type=int, default=len(CASES), help="Do at most so many runs now.")
    parser.add_argument("--out", help="Folder for estimates.json and estimates.md.")
    return parser.parse_args()


# --- running --------------------------------------------------------------------------------------


def _state(home: Path) -> dict[str, Any]:
    path = home / ROWS_FILE
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "disturbed": []}


def _keep(home: Path, state: dict[str, Any]) -> None:
    write_atomic(home / ROWS_FILE, json.dumps(state, indent=1) + "\n")


def _todo(engine: Engine, data: _Data, state: dict[str, Any]) -> list[Case]:
    """What is not done and can be: its strategy is registered and its data is there."""
    known = {part.id for part in engine.plugins.all("strategy")}
    finished = [row["case"] for row in state["rows"]]
    return [c for c in CASES if asdict(c) not in finished and c.strategy in known and data.has(c.persona)]


def _measure(engine: Engine, dataset: str, case: Case) -> dict[str, Any]:
    """Predict with the engine's own plan, then run."""
    plan = engine.plan(case.persona, case.strategy, settings=case.settings, dataset_id=dataset)[0]
    run = _done(engine, engine.train(case.persona, case.strategy, settings=case.settings, dataset_id=dataset))
    result = run.result
    return {
        "case": asdict(case),
        "time": now(),
        "predicted": {
            "seconds": plan.seconds,
            "uncertainty": plan.uncertainty,
            "peak_memory_bytes": plan.peak_memory_bytes,
            "memory_uncertainty": plan.memory_uncertainty,
            "parts": plan.parts,
        },
        "measured": {
            "seconds": result["seconds"]["total"],
            "parts": result["seconds"],
            "peak_memory_bytes": result["peak_memory_bytes"],
        },
        "loss": result["loss"],
        "others": result["predicted"]["others"],
        "stopped_early": bool((result["artifact"].get("fit") or {}).get("stopped_early")),
    }


def _done(engine: Engine, run_id: str) -> RunView:
    run = engine.wait(run_id)
    if run.status != "done":
        raise SystemExit(f"Run {run_id} is {run.status}: {run.message} {run.fix}")
    return run


class _Data:
    """Subsets of personas' conversations as datasets of their own, made once."""

    def __init__(self, engine: Engine, folder: Path | None, home: Path) -> None:
        self.engine, self.folder, self.home = engine, folder, home
        self.kept = home / "estimates-datasets.json"

    def has(self, persona: str) -> bool:
        """Whether its data can be had here."""
        return persona in EXAMPLES or (self.folder is not None and (self.folder / persona / "pairs.jsonl").exists())

    def dataset(self, case: Case) -> str:
        """The id of the subset: a few for validation, and the next conversations of a seeded shuffle."""
        known: dict[str, str] = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        key = f"{case.persona}-{case.conversations}"
        if key not in known:
            known[key] = self._make(case.persona, case.conversations)
            write_atomic(self.kept, json.dumps(known, indent=1))
        return known[key]

    def _make(self, persona: str, count: int) -> str:
        rows = self._rows(persona)
        random.Random(0).shuffle(rows)
        # the same ones for validation every time: no subset may train on what another one holds out
        chosen = [row | {"split": "validation" if i < VALIDATION else "train"} for i, row in enumerate(rows)]
        file = self.home / f"estimates-{persona}-{count}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in chosen[: VALIDATION + count]))
        return self.engine.import_dataset(file, persona).id

    def _rows(self, persona: str) -> list[dict[str, Any]]:
        """Conversations as OpenAI messages, from the example's training split or the test data's pairs."""
        if persona in EXAMPLES:
            self.engine.persona(persona)
            oldest = self.engine.dataset(self.engine.datasets(persona)[-1].id)
            return [{"messages": [m.model_dump(mode="json") for m in c.messages]} for c in oldest.of("train")]
        assert self.folder is not None
        self._persona_of_data(persona)
        pairs = [json.loads(line) for line in (self.folder / persona / "pairs.jsonl").read_text().splitlines()]
        return [
            {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]}
            for user, reply in ((pair["user"], pair["assistant"]) for pair in pairs)
        ]

    def _persona_of_data(self, persona: str) -> None:
        if any(known.id == persona for known in self.engine.personas()):
            return
        card = self.home / f"{persona}.json"
        name = persona.replace("_", " ").title()
        card.write_text(json.dumps({"name": name, "description": f"{name}, as the play has it."}))
        self.engine.import_persona(card, persona)


# --- reporting ------------------------------------------------------------------------------------


def errors(rows: Sequence[dict[str, Any]], what: str) -> list[float]:
    """|predicted - measured| / measured; of time, runs that stopped early do not count: plans are for the whole."""
    counted = [row for row in rows if what != "seconds" or not row["stopped_early"]]
    return [abs(row["predicted"][what] - row["measured"][what]) / row["measured"][what] for row in counted]


def report(state: dict[str, Any]) -> str:
    """Markdown: the verdict, then a line a run."""
    rows, machine = state["rows"], state["machine"]
    lines = [
        f"# Estimates against {len(rows)} runs",
        "",
        f"{machine['device_name']}, {machine['cores']} cores, {state['calibrated'][:10]}. One command: "
        "`python benchmarks/estimates.py --home DIR --out docs`. "
        f"{len(state['disturbed'])} runs were disturbed by other programs and are not counted.",
        "",
        "| | median error | worst | within the error bar |",
        "|---|---|---|---|",
    ]
    for what, bar, title in (
        ("seconds", "uncertainty", "time"),
        ("peak_memory_bytes", "memory_uncertainty", "peak memory"),
    ):
        found = errors(rows, what)
        if not found:
            continue
        inside = [_inside(row, what, bar) for row in rows if what != "seconds" or not row["stopped_early"]]
        lines.append(
            f"| {title} | {statistics.median(found):.0%} (goal: under {MEDIAN_GOAL:.0%}) | {max(found):.0%} "
            f"(goal: under {WORST_GOAL:.0%}) | {sum(inside)} of {len(inside)} |"
        )
    head = "| run | seconds: predicted, measured | error | GB: predicted, measured | error |"
    lines += ["", head, "|---|---|---|---|---|"]
    return "\n".join([*lines, *(_line(row) for row in rows)]) + "\n"


def _inside(row: dict[str, Any], what: str, bar: str) -> bool:
    """Whether the truth lay within the error bar."""
    factor = row["measured"][what] / row["predicted"][what]
    return bool(1 / row["predicted"][bar] <= factor <= row["predicted"][bar])


def _line(row: dict[str, Any]) -> str:
    case, predicted, measured = row["case"], row["predicted"], row["measured"]
    settings = ", ".join(f"{key} {value}" for key, value in case["settings"].items())
    cells = [f"{case['strategy']} on {case['conversations']} of {case['persona']}{': ' if settings else ''}{settings}"]
    for what, unit in (("seconds", 1.0), ("peak_memory_bytes", 2**30)):
        guess, truth = predicted[what] / unit, measured[what] / unit
        early = " (stopped early)" if what == "seconds" and row["stopped_early"] else ""
        cells += [f"{guess:.3g}, {truth:.3g}{early}", f"{guess / truth - 1:+.0%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
