"""The `persona-lab` command: everything the page does, for scripts. Parses, calls the engine, prints.

Exit codes: 0 ok, 1 the work failed, 2 bad usage or bad input, 130 cancelled. With `--json` exactly one JSON document is
printed on standard output; logs and progress are on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.errors import BadInput, Cancelled, PersonaLabError

if TYPE_CHECKING:
    from persona_lab.engine import Engine
    from persona_lab.types import RunView, Variant

app = typer.Typer(
    name="persona-lab",
    help="Build characters out of small open language models, and measure how well it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
personas_app = typer.Typer(no_args_is_help=True, help="Who the characters are.")
datasets_app = typer.Typer(no_args_is_help=True, help="What they learn from.")
models_app = typer.Typer(no_args_is_help=True, help="Base models.")
runs_app = typer.Typer(no_args_is_help=True, help="Trainings, evaluations and exports.")
variants_app = typer.Typer(no_args_is_help=True, help="What was made.")
for _name, _group in (
    ("personas", personas_app),
    ("datasets", datasets_app),
    ("models", models_app),
    ("runs", runs_app),
    ("variants", variants_app),
):
    app.add_typer(_group, name=_name)

HomeOption = Annotated[Path | None, typer.Option("--home", help="The data folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PersonaOption = Annotated[str, typer.Option("--persona", help="A persona's id.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting, as key=value; may be repeated.")]
BaseOption = Annotated[str, typer.Option("--base", help="starter, a hub id, a local folder or a GGUF file.")]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed gives the same result on the same machine.")]
OutOption = Annotated[Path, typer.Option("--out", help="Where to write.")]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Parsed by `main`, which takes --debug out of the arguments; listed here for --help."""


@contextmanager
def opened(home: Path | None, readonly: bool = False) -> Iterator[Engine]:
    """The engine of this home."""
    from persona_lab.engine import Engine

    engine = Engine.open(home, readonly=readonly)
    try:
        yield engine
    finally:
        engine.close()


def show(data: Any, as_json: bool, table: Callable[[], None]) -> None:
    """One JSON document, or a table for people."""
    from persona_lab.terminal import print_json

    print_json(data) if as_json else table()


def follow(engine: Engine, run_id: str) -> RunView:
    """Wait for a run, showing progress; Ctrl-C stops it."""
    from persona_lab.terminal import Progress

    progress = Progress()
    offset = _offset_of_last_attempt(engine, run_id)
    try:
        return engine.wait(run_id, progress, offset)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopping the run (its checkpoints stay) ...\n")
        engine.stop(run_id)
        engine.wait(run_id, progress, engine.events(run_id)[1])
        raise Cancelled(f"Run {run_id} was stopped.", f"Go on with: persona-lab runs resume {run_id}.") from None
    finally:
        progress.close()


def _offset_of_last_attempt(engine: Engine, run_id: str) -> int:
    return engine.events(run_id)[1] if engine.run(run_id).attempt else 0


def require_done(run: RunView) -> None:
    """Raise what the run failed of, so that the exit code and the paragraph say it."""
    if run.status == "done":
        return
    error = PersonaLabError(run.message or f"Run {run.id} is {run.status}.", run.fix)
    if run.status == "cancelled":
        raise Cancelled(f"Run {run.id} was stopped.", f"Go on with: persona-lab runs resume {run.id}.")
    if run.cause in ("bad_data", "bad_setting", "bad_input"):
        raise BadInput(error.message, error.fix)
    if run.status == "interrupted":
        error = PersonaLabError(f"Run {run.id} was interrupted. {run.message}", run.fix)
    raise error


# --- the machine and the plugins ------------------------------------------------------------------


@app.command()
def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Versions, device, memory, disk, and whether the starter model is there."""
    from persona_lab.doctor import examine
    from persona_lab.terminal import print_table

    with opened(home, readonly=True) as engine:
        report = examine(engine)
    show(report, as_json, lambda: print_table(("", ""), _flat(report), "Nothing to say."))


def _flat(report: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in report.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


@app.command()
def plugins(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Strategies, evaluators, readers and exporters, where they come from, and which have problems."""
    from persona_lab.plugins import Plugins
    from persona_lab.terminal import print_table

    with opened(home, readonly=True) as engine:
        # tabs too: a plugin's broken tab should show here as it does in the page
        infos = Plugins.load(engine.home.plugins, tabs=True).infos()
    columns = ("id", "kind", "source", "version", "status", "problem")
    rows = [(i.id, i.kind, i.source, i.version, i.status, i.problem) for i in infos]
    show(infos, as_json, lambda: print_table(columns, rows, "No plugins."))


# --- personas -------------------------------------------------------------------------------------


@personas_app.command("list")
def personas_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Your personas and the shipped examples."""
    from persona_lab.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.personas()
    rows = [(p.id, p.name, "example" if p.example else "yours", p.conversations, p.variants, p.tagline[:70]) for p in found]
    columns = ("id", "name", "", "conversations", "variants", "")
    show(found, as_json, lambda: print_table(columns, rows, "None yet: persona-lab personas import FILE."))


@personas_app.command("show")
def personas_show(persona_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """One persona: its card, facts, and the prompt the model sees."""
    from persona_lab.personas.prompt import system_prompt

    with opened(home, readonly=True) as engine:
        persona = engine.persona(persona_id)
    prompt = system_prompt(persona)
    document = persona.model_dump(mode="json") | {"system_prompt": prompt}
    show(document, as_json, lambda: print(f"{persona.name} ({persona.id}), {len(persona.facts)} facts\n\n{prompt}"))


@personas_app.command("import")
def personas_import(
    file: Path,
    persona_id: Annotated[str | None, typer.Option("--id", help="The id to give it.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A character card: V1, V2 or V3, as JSON or PNG."""
    with opened(home) as engine:
        persona = engine.import_persona(file, persona_id)
    document = {"id": persona.id, "name": persona.name, "avatar": persona.avatar}
    show(document, as_json, lambda: print(f"{persona.name} is persona {persona.id!r} now."))


@personas_app.command("export")
def personas_export(
    persona_id: str,
    out: OutOption,
    format: Annotated[str, typer.Option("--format", help="png or json.")] = "png",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a persona's card."""
    with opened(home, readonly=True) as engine:
        path = engine.export_persona(persona_id, format, out)
    show({"id": persona_id, "file": str(path)}, as_json, lambda: print(path))


@personas_app.command("delete")
def personas_delete(persona_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put a persona and its datasets aside."""
    with opened(home) as engine:
        engine.delete_persona(persona_id)
        trash = engine.home.root / "trash"
    note = f"{persona_id} was put aside in {trash} until the next delete; the page can bring it back."
    show({"id": persona_id, "deleted": True}, as_json, lambda: print(note))


# --- datasets -------------------------------------------------------------------------------------


@datasets_app.command("list")
def datasets_list(
    persona: Annotated[str | None, typer.Option("--persona")] = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Datasets and their versions."""
    from persona_lab.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.datasets(persona)
    rows = [(d.id, d.persona, d.version, d.format, *(d.counts.get(s, 0) for s in SPLITS), d.source) for d in found]
    columns = ("id", "persona", "version", "format", *SPLITS, "source")
    show(found, as_json, lambda: print_table(columns, rows, "None yet: persona-lab datasets import FILE --persona ID."))


SPLITS = ("train", "validation", "test")


@datasets_app.command("import")
def datasets_import(
    file: Path,
    persona: PersonaOption,
    format: Annotated[str, typer.Option("--format", help="auto, or a reader's id.")] = "auto",
    map: Annotated[str, typer.Option("--map", help="Columns by role: user=question,assistant=answer.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A file or folder of conversations, as a new version of the persona's dataset."""
    from persona_lab.settings import parse_assignments

    mapping = parse_assignments(part for part in map.split(",") if part.strip())
    with opened(home) as engine:
        summary = engine.import_dataset(file, persona, format, mapping)

    def tell() -> None:
        print(f"{summary.id}: {summary.why}")
        print(", ".join(f"{key} {value}" for key, value in summary.counts.items()))
        for warning in summary.warnings:
            print(f"warning: {warning}")

    show(summary, as_json, tell)


@datasets_app.command("inspect")
def datasets_inspect(dataset_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Counts, warnings and the first rows."""
    with opened(home, readonly=True) as engine:
        engine.dataset(dataset_id)
        report = engine.inspect_dataset(dataset_id)

    def tell() -> None:
        for key in ("id", "persona", "format", "why", "source", "counts", "reply_words", "warnings"):
            print(f"{key}: {report.get(key)}")
        for row in report["first_rows"]:
            print(f"\n{row['id']} ({row['split']})")
            for message in row["messages"]:
                print(f"  {message['role']}: {message['content']}")

    show(report, as_json, tell)


@datasets_app.command("preview")
def datasets_preview(
    dataset_id: str,
    row: Annotated[int, typer.Option("--row", help="Row number, from 0.")] = 0,
    base: BaseOption = "starter",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """One row as the model sees it; what is trained on stands in [[ ]]."""
    with opened(home, readonly=True) as engine:
        tokens = engine.preview(dataset_id, row, base)
    document = {"dataset": dataset_id, "row": row, "base": base, "tokens": tokens}
    show(document | {"trained": sum(token.trained for token in tokens)}, as_json, lambda: print(_marked(tokens)))


def _marked(tokens: list[Any]) -> str:
    text, inside = "", False
    for token in tokens:
        if token.trained != inside:
            text += "[[" if token.trained else "]]"
            inside = token.trained
        text += token.text
    return text + ("]]" if inside else "")


# --- models ---------------------------------------------------------------------------------------


@models_app.command("list")
def models_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The starter, and every base model in the data folder."""
    from persona_lab.terminal import print_table, size

    with opened(home, readonly=True) as engine:
        found = engine.models()
    rows = [(m.id, m.name, f"{m.parameters / 1e6:.0f} M", m.license, "ready" if m.ready else "not fetched") for m in found]
    columns = ("id", "name", "parameters", "licence", "")
    show(found, as_json, lambda: print_table(columns, rows, "None."))


@models_app.command("fetch")
def models_fetch(name: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Fetch and convert a base model, once."""
    with opened(home) as engine:
        run = follow(engine, engine.fetch_model(name))
        require_done(run)
    show(run.result["model"], as_json, lambda: print(f"{run.result['model']['name']} is ready: {run.result['model']['path']}"))


# --- training -------------------------------------------------------------------------------------


@app.command()
def plan(
    persona: PersonaOption,
    strategy: Annotated[str | None, typer.Option("--strategy")] = None,
    base: BaseOption = "starter",
    set: SetOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each strategy would cost on this machine, before anything is started."""
    from persona_lab.settings import parse_assignments
    from persona_lab.terminal import duration, print_table, size

    with opened(home, readonly=True) as engine:
        rows = engine.plan(persona, strategy, base, parse_assignments(set or ()))
    table = [
        (r.rank, r.strategy, r.fits, duration(r.seconds), size(r.peak_memory_bytes), size(r.disk_bytes), r.reason) for r in rows
    ]
    columns = ("rank", "strategy", "fits", "time", "memory", "disk", "why")
    show(rows, as_json, lambda: print_table(columns, table, "No strategies."))


@app.command()
def train(
    persona: PersonaOption,
    strategy: Annotated[str, typer.Option("--strategy", help="prompt, lora, qlora, full, hybrid, or a plugin's.")],
    base: BaseOption = "starter",
    set: SetOption = None,
    seed: SeedOption = 0,
    name: Annotated[str, typer.Option("--name", help="A name for the variant.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a variant of a persona."""
    from persona_lab.settings import parse_assignments

    with opened(home) as engine:
        run_id = engine.train(persona, strategy, base, parse_assignments(set or ()), seed, name)
        _finish_training(follow(engine, run_id), as_json)


def _finish_training(run: RunView, as_json: bool) -> None:
    from persona_lab.terminal import duration, run_document

    def tell() -> None:
        if run.status == "done":
            loss, seconds = run.result["loss"], run.result["seconds"]["total"]
            print(f"Variant {run.variant} is ready after {duration(seconds)}. {run.result.get('changed', '')}")
            print(f"Validation loss {loss['validation_before']} -> {loss['validation_after']}.")
            print(f"Talk to it: persona-lab say {run.variant} base-{run.persona} --prompt \"Hello!\"")

    show(run_document(run), as_json, tell)
    require_done(run)


@runs_app.command("list")
def runs_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Every run, newest first."""
    from persona_lab.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.runs()
    rows = [(r.id, r.kind, r.status, r.cause, f"{r.step}/{r.total}" if r.total else "", r.created[:19]) for r in found]
    columns = ("id", "kind", "status", "cause", "steps", "created")
    show(found, as_json, lambda: print_table(columns, rows, "None yet: persona-lab train --persona ID --strategy lora."))


@runs_app.command("show")
def runs_show(run_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """One run: its state, settings and losses."""
    from persona_lab.terminal import print_table

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
def runs_stop(run_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop a run, whichever process started it; its checkpoints stay."""
    from persona_lab.jobs import ACTIVE, stop_worker

    with opened(home, readonly=True) as engine:
        run = engine.run(run_id)
        if run.status not in ACTIVE:
            raise BadInput(f"Run {run_id!r} is not in progress: it is {run.status}.")
        stop_worker(engine.home.run(run_id))
        run = engine.run(run_id)
    show({"run": run_id, "status": run.status}, as_json, lambda: print(f"{run_id} is {run.status}."))


@runs_app.command("resume")
def runs_resume(run_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Go on with an interrupted, stopped or failed training from its last checkpoint."""
    with opened(home) as engine:
        engine.resume(run_id)
        _finish_training(follow(engine, run_id), as_json)


# --- variants -------------------------------------------------------------------------------------


@variants_app.command("list")
def variants_list(
    persona: Annotated[str | None, typer.Option("--persona")] = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """What was made, newest first."""
    from persona_lab.terminal import print_table, size

    with opened(home, readonly=True) as engine:
        found = engine.variants(persona)
    rows = [(v.id, v.name, v.persona, v.strategy, v.base, size(v.bytes), v.created[:19]) for v in found]
    columns = ("id", "name", "persona", "strategy", "base", "size", "created")
    documents = [v.model_dump(mode="json", exclude={"examples", "system"}) for v in found]
    show(documents, as_json, lambda: print_table(columns, rows, "None yet: persona-lab train --persona ID --strategy lora."))


@variants_app.command("show")
def variants_show(variant_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """One variant: what it is made of."""
    from persona_lab.terminal import print_table

    with opened(home, readonly=True) as engine:
        variant = engine.variant(variant_id)
    rows = [(key, value) for key, value in variant.model_dump(mode="json", exclude={"examples"}).items() if value]
    show(variant, as_json, lambda: print_table(("", ""), rows, ""))


@variants_app.command("delete")
def variants_delete(variant_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put a variant aside."""
    with opened(home) as engine:
        engine.delete_variant(variant_id)
    note = f"{variant_id} was put aside until the next delete; the page can bring it back."
    show({"id": variant_id, "deleted": True}, as_json, lambda: print(note))


# --- evaluating, talking, taking away -------------------------------------------------------------


@app.command("eval")
def evaluate(
    variants: list[str],
    evaluators: Annotated[str, typer.Option("--evaluators", help="Ids, separated by commas; default: all.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer items: wider intervals, sooner.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score variants on held-out data, with intervals."""
    from persona_lab.terminal import print_metrics

    chosen = [part.strip() for part in evaluators.split(",") if part.strip()] or None
    with opened(home) as engine:
        run = follow(engine, engine.evaluate(variants, chosen, quick))
        require_done(run)
    show({"run": run.id, **run.result}, as_json, lambda: print_metrics(run.result))


@app.command()
def compare(
    variants: list[str],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer items: wider intervals, sooner.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A report of several variants and the base: HTML, Markdown and JSON with plots."""
    from persona_lab.terminal import print_metrics

    with opened(home) as engine:
        run = follow(engine, engine.evaluate(variants, None, quick, report=True, out=out))
        require_done(run)

    def tell() -> None:
        print_metrics(run.result)
        print(f"\nReport: {run.result['report']['html']}")

    show({"run": run.id, **run.result}, as_json, tell)


@app.command()
def say(
    variants: list[str],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What to say to them.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A text file, one prompt a line.")] = None,
    seed: SeedOption = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096)] = 120,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 always takes the likeliest word.")] = 0.7,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to variants side by side; `base-PERSONA` is the untrained base under that persona's card."""
    from persona_lab.conversing import read_prompts, replies
    from persona_lab.types import Sampling

    asked = read_prompts(prompt, prompts)
    sampling = Sampling(seed=seed, max_new_tokens=max_new_tokens, temperature=temperature)
    with opened(home, readonly=True) as engine:
        found: list[Variant] = [engine.variant(name) for name in variants]
        rows = []
        for row in replies(engine.chat, found, asked, sampling):
            rows.append(row)
            if not as_json:
                print(f"[{row['variant']}, {row['adapter']}]\n> {row['prompt']}\n{row['reply']}\n")
    if as_json:
        show(rows, True, lambda: None)


@app.command()
def export(
    variant: str,
    out: OutOption,
    format: Annotated[str, typer.Option("--format", help="adapter, merged, or a plugin's.")] = "merged",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a variant elsewhere."""
    with opened(home) as engine:
        run = follow(engine, engine.export(variant, format, out))
        require_done(run)
    show({"run": run.id, **run.result}, as_json, lambda: print(f"Written to {out}."))


@app.command()
def serve(
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="Any other than loopback needs PERSONA_LAB_AUTH.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Or the next free one.", min=0, max=65535)] = 7860,
    share: Annotated[bool, typer.Option("--share", help="A public link; needs PERSONA_LAB_AUTH.")] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser")] = False,
) -> None:
    """Start the page, the same as python app.py."""
    from persona_lab.ui.app import serve as serve_page

    raise typer.Exit(serve_page(home, host, port, share, not no_browser, "--debug" in sys.argv))


def main() -> None:
    """The console script: runs the command, and turns errors into one paragraph and an exit code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(args=arguments, standalone_mode=False)
    except PersonaLabError as error:
        if debug:
            raise
        from persona_lab.terminal import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if debug or not hasattr(error, "exit_code"):
            _report_bug(error, debug)
        error.show()  # type: ignore[attr-defined]  # click's own usage errors
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _report_bug(error: Exception, debug: bool) -> None:
    """The process border: an error nobody foresaw becomes a paragraph too."""
    if debug:
        raise error
    sys.stderr.write(f"persona-lab: {type(error).__name__}: {error}. This looks like a fault of ours; see --debug.\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
