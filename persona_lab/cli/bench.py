"""`persona-lab bench-strategies`: the measured comparison of strategies over training seeds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.common import BaseOption, HomeOption, JsonOption, follow, opened, show
from persona_lab.errors import BadInput
from persona_lab.home import usable_folder

if TYPE_CHECKING:
    from persona_lab.bench.measure import Measured, Plan
    from persona_lab.types import Comparison

STRATEGIES = "prompt,lora,qlora,full,hybrid"


def bench_strategies(
    persona: Annotated[list[str], typer.Option("--persona", help="A persona with a dataset; may be repeated.")],
    strategies: Annotated[str, typer.Option("--strategies", help="Ids, separated by commas.")] = STRATEGIES,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=20, help="Trainings of each; to rank takes 3.")] = 3,
    evaluators: Annotated[str, typer.Option("--evaluators", help="Ids, separated by commas; default: all.")] = "",
    base: BaseOption = "starter",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer items: wider intervals, sooner.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for measured.md and measured.json.")] = Path("measured"),
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train every strategy over several seeds, evaluate all of them, and write the table. Stopped, it can go on."""
    from persona_lab.bench.measure import Plan, measure
    from persona_lab.bench.page import write_page
    from persona_lab.evaluation.seeds import combine

    plan = Plan(_ids(persona), _ids([strategies]), seeds, base, _ids([evaluators]), quick)
    if not plan.personas or not plan.strategies:
        raise BadInput("There is nothing to measure.", "Name at least one --persona and one of --strategies.")
    out = usable_folder(out)
    with opened(home) as engine:
        measured = measure(engine, plan, follow, lambda text: print(text, file=sys.stderr))
        machine = engine.machine()
    combined = {m.persona: {g: combine(rows) for g, rows in m.groups.items()} for m in measured}
    comparisons = {m.persona: _compared(m) for m in measured}
    commands = [command for m in measured for command in m.prepared] + _commands(plan, out)
    paths = write_page(measured, combined, comparisons, machine, commands, out)
    document = {"report": paths, "personas": [_summary(m, comparisons[m.persona]) for m in measured]}
    show(document, as_json, lambda: print(f"Written: {paths['markdown']} and {paths['json']}."))


def _compared(measured: Measured) -> list[Comparison]:
    from persona_lab.bench.measure import BASE, CONTROL
    from persona_lab.evaluation.seeds import compare_groups

    return compare_groups(measured.groups, deterministic={BASE, *_untrained(measured)}, controls={CONTROL})


def _untrained(measured: Measured) -> set[str]:
    """Strategies whose seeds all give the same: nothing is trained."""
    return {s for s, costs in measured.costs.items() if all(c.get("trainable_parameters") == 0 for c in costs)}


def _ids(values: list[str]) -> tuple[str, ...]:
    found = (part.strip() for value in values for part in value.split(","))
    return tuple(dict.fromkeys(part for part in found if part))


def _commands(plan: Plan, out: Path) -> list[str]:
    parts = ["persona-lab", "bench-strategies"]
    parts += [part for persona in plan.personas for part in ("--persona", persona)]
    parts += ["--strategies", ",".join(plan.strategies), "--seeds", str(plan.seeds), "--out", str(out)]
    parts += ["--base", plan.base] if plan.base != "starter" else []
    parts += ["--evaluators", ",".join(plan.evaluators)] if plan.evaluators else []
    parts += ["--quick"] if plan.quick else []
    return [shlex.join(parts)]


def _summary(measured: Measured, comparisons: Any) -> dict[str, Any]:
    return {
        "persona": measured.persona,
        "run": measured.run,
        "problems": measured.problems,
        "seeds": {group: len(rows) for group, rows in measured.groups.items()},
        "comparisons": [c.model_dump(mode="json") for c in comparisons],
    }
