"""`plan`, `train`, `runs`, `eval`, `compare`, `say`, `export`: what is done with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona_lab.cli.common import (
    BaseOption,
    HomeOption,
    JsonOption,
    OutOption,
    PersonaOption,
    SeedOption,
    SetOption,
    follow,
    opened,
    require_done,
    show,
)
from persona_lab.errors import BadInput

if TYPE_CHECKING:
    from persona_lab.types import RunView, Variant

commands = typer.Typer()
EvaluatorsOption = Annotated[str, typer.Option("--evaluators", help="Ids, separated by commas; default: all.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Fewer items: wider intervals, sooner.")]
EvaluatorSetOption = Annotated[
    list[str] | None, typer.Option("--set", help="An evaluator's setting, as evaluator.key=value; may be repeated.")
]
WhoseOption = Annotated[
    str | None,
    typer.Option("--persona", help="Whose lines to score on; variants of other personas are wrong characters."),
]
runs_app = typer.Typer(no_args_is_help=True, help="Trainings, evaluations and exports.")


# --- training -------------------------------------------------------------------------------------


@commands.command()
def plan(
    persona: PersonaOption,
    strategy: Annotated[str | None, typer.Option("--strategy")] = None,
    base: BaseOption = "starter",
    set: SetOption = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.1, help="The most a training may take.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First measure a few real steps on this machine (about a minute).")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each strategy would cost on this machine, and which to take, before anything is started."""
    from persona_lab.cli.terminal import print_plan
    from persona_lab.settings import parse_assignments

    settings = parse_assignments(set or ())
    with opened(home, readonly=not calibrate) as engine:
        if calibrate:
            require_done(follow(engine, engine.calibrate(base)))
        rows = engine.plan(persona, strategy, base, settings, minutes)
    show(rows, as_json, lambda: print_plan(rows))


@commands.command()
def train(
    persona: PersonaOption,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy", help="prompt, steer, lora, qlora, full, hybrid, foundation, aspects, or a plugin's."
        ),
    ],
    base: BaseOption = "starter",
    set: SetOption = None,
    seed: SeedOption = 0,
    name: Annotated[str, typer.Option("--name", help="A name for the variant.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Start even what is predicted not to fit.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a variant of a persona."""
    from persona_lab.settings import parse_assignments

    with opened(home) as engine:
        run_id = engine.train(persona, strategy, base, parse_assignments(set or ()), seed, name, force=force)
        _finish_training(follow(engine, run_id), as_json)


def _finish_training(run: RunView, as_json: bool) -> None:
    from persona_lab.cli.terminal import duration, run_document

    def tell() -> None:
        if run.status == "done":
            loss, seconds = run.result["loss"], run.result["seconds"]["total"]
            print(f"Variant {run.variant} is ready after {duration(seconds)}. {run.result.get('changed', '')}")
            print(f"Validation loss {loss['validation_before']} -> {loss['validation_after']}.")
            beside = f" base-{run.persona}" if run.base == "starter" else ""  # which is the starter under its card
            print(f'Talk to it: persona-lab say {run.variant}{beside} --prompt "Hello!"')

    show(run_document(run), as_json, tell)
    require_done(run)


@runs_app.command("list")
def runs_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Every run, newest first."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.runs()
    rows = [(r.id, r.kind, r.status, r.cause, f"{r.step}/{r.total}" if r.total else "", r.created[:19]) for r in found]
    columns = ("id", "kind", "status", "cause", "steps", "created")
    show(
        found, as_json, lambda: print_table(columns, rows, "None yet: persona-lab train --persona ID --strategy lora.")
    )


@runs_app.command("show")
def runs_show(run_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """One run: its state, settings and losses."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        run = engine.run(run_id)
        events = engine.events(run_id)[0]
    curves = {
        "train": [(e.step, e.loss) for e in events if e.kind == "step" and e.loss is not None],
        "validation": [(e.step, e.loss) for e in events if e.kind == "validation"],
    }
    document = run.model_dump(mode="json") | {"curves": curves}
    rows = [(key, value) for key, value in run.model_dump(mode="json", exclude={"result"}).items() if value]
    show(document, as_json, lambda: print_table(("", ""), rows, ""))


@runs_app.command("stop")
def runs_stop(
    run_id: str,
    keep: Annotated[
        bool, typer.Option("--keep", help="End a training now and keep its best weights: it finishes as done.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a run, whichever process started it; its checkpoints stay."""
    from persona_lab.jobs import ACTIVE, stop_worker

    with opened(home, readonly=True) as engine:
        run = engine.run(run_id)
        if keep:
            engine.stop_and_keep(run_id)
            document = {"run": run_id, "status": run.status, "ending": True}
            show(document, as_json, lambda: print(f"{run_id} ends after the step in progress; its best weights stay."))
            return
        if run.status not in ACTIVE:
            raise BadInput(f"Run {run_id!r} is not in progress: it is {run.status}.")
        stop_worker(engine.home.run(run_id))
        run = engine.run(run_id)
    show({"run": run_id, "status": run.status}, as_json, lambda: print(f"{run_id} is {run.status}."))


@runs_app.command("resume")
def runs_resume(run_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Go on with an interrupted, stopped or failed run: a training from its last checkpoint, others anew."""
    with opened(home) as engine:
        engine.resume(run_id)
        run = follow(engine, run_id)
        if run.kind == "train":
            _finish_training(run, as_json)
            return
    show(run, as_json, lambda: print(f"{run.id} is {run.status}."))
    require_done(run)


@runs_app.command("retry")
def runs_retry(run_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Start a training that memory was not enough for again, with the cheapest change that needs less."""
    with opened(home) as engine:
        _finish_training(follow(engine, engine.retry_smaller(run_id)), as_json)


@runs_app.command("compare")
def runs_compare(a: str, b: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Two runs side by side: only what was set differently, and what came of it."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.compare_runs(a, b)

    def tell() -> None:
        rows = [(row["setting"], row["a"], row["b"]) for row in found["differences"]]
        print_table(("setting", a, b), rows, "The two were started alike.")
        print_table(("outcome", a, b), [(row["measure"], row["a"], row["b"]) for row in found["outcomes"]], "")

    show(found, as_json, tell)


# --- evaluating, talking, taking away -------------------------------------------------------------


@commands.command("eval")
def evaluate(
    variants: list[str],
    evaluators: EvaluatorsOption = "",
    quick: QuickOption = False,
    set: EvaluatorSetOption = None,
    persona: WhoseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score variants on held-out data, with intervals."""
    from persona_lab.cli.terminal import print_metrics
    from persona_lab.settings import parse_assignments

    with opened(home) as engine:
        settings = parse_assignments(set or ())
        run = follow(engine, engine.evaluate(variants, _ids(evaluators), quick, settings=settings, persona_id=persona))
        require_done(run)
    show({"run": run.id, **run.result}, as_json, lambda: print_metrics(run.result))


def _ids(text: str) -> list[str] | None:
    """`a,b` as a list; None for an empty text."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    if text.strip() and not named:
        raise BadInput(f"--evaluators {text!r} names none.", "Write ids, such as --evaluators held_out_gain,voice.")
    return named or None


@commands.command()
def compare(
    variants: list[str],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report.")] = None,
    evaluators: EvaluatorsOption = "",
    quick: QuickOption = False,
    set: EvaluatorSetOption = None,
    persona: WhoseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A report of several variants and the base: HTML, Markdown and JSON with plots."""
    from persona_lab.cli.terminal import print_metrics
    from persona_lab.settings import parse_assignments

    with opened(home) as engine:
        settings = parse_assignments(set or ())
        chosen = _ids(evaluators)
        asked = engine.evaluate(variants, chosen, quick, report=True, out=out, settings=settings, persona_id=persona)
        run = follow(engine, asked)
        require_done(run)

    def tell() -> None:
        print_metrics(run.result)
        print(f"\nReport: {run.result['report']['html']}")

    show({"run": run.id, **run.result}, as_json, tell)


@commands.command()
def say(
    variants: list[str],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What to say to them.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A text file, one prompt a line.")] = None,
    seed: SeedOption = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096)] = 120,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 always takes the likeliest word.")] = 0.7,
    blend: Annotated[str, typer.Option("--blend", help="Of variants with aspects: voice=1,mood=0.5.")] = "",
    traits: Annotated[str, typer.Option("--traits", help="Sliders from -100 to 100: grumpy=60,archaic=-30.")] = "",
    int8: Annotated[bool, typer.Option("--int8", help="Weights rounded to 8 bits: faster, a little off.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to variants side by side; `base-PERSONA` is the untrained base under that persona's card."""
    from persona_lab.cli.conversing import read_prompts, replies
    from persona_lab.datasets.aspects import parse_weights
    from persona_lab.inference.trait_files import parse_traits
    from persona_lab.types import Sampling

    asked = read_prompts(prompt, prompts)
    sampling = Sampling(seed=seed, max_new_tokens=max_new_tokens, temperature=temperature)
    with opened(home, readonly=True) as engine:
        weights = parse_weights(blend)
        found: list[Variant] = [engine.variant(name) for name in variants]
        if weights:
            found = engine.blended(found, weights)
        if traits:
            found = engine.pulled(found, parse_traits(traits))
        rows = []
        for row in replies(engine.chat, found, asked, sampling, "int8" if int8 else "native"):
            rows.append(row)
            if not as_json:
                print(f"[{row['variant']}, {row['adapter']}]\n> {row['prompt']}\n{row['reply']}\n")
    if as_json:
        show(rows, True, lambda: None)


@commands.command()
def export(
    variant: str,
    out: OutOption,
    format: Annotated[
        str, typer.Option("--format", help="adapter, merged, gguf, control-vector, ollama, bundle, or a plugin's.")
    ] = "merged",
    set: SetOption = None,
    license: Annotated[
        str, typer.Option("--license", help="The base's licence, stated by you, where it is not known.")
    ] = "",
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not load the result again and compare it.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a variant elsewhere; what was written is loaded again and compared with it."""
    from persona_lab.settings import parse_assignments

    with opened(home) as engine:
        asked = engine.export(variant, format, out, parse_assignments(set or ()), license, not no_check)
        run = follow(engine, asked)
        require_done(run)

    def tell() -> None:
        print(f"Written to {out} ({run.result['bytes'] / 1e6:.1f} MB).")
        if run.result["check"]:
            print(run.result["check"]["verdict"])
        if usage := run.result.get("usage"):
            print(f"\nUse, in that folder:\n{usage}")

    show({"run": run.id, **run.result}, as_json, tell)
