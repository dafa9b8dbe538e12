"""`persona-lab studio`: batches of replies, prompts x variants x seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.common import HomeOption, JsonOption, OutOption, opened, show
from persona_lab.errors import BadInput, Cancelled, WorkFailed

if TYPE_CHECKING:
    from persona_lab.engine import Engine
    from persona_lab.studio.records import Batch, Prompt, Row

studio_app = typer.Typer(no_args_is_help=True, help="Many replies at once: prompts x variants x seeds.")


@studio_app.command("list")
def studio_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Batches, newest first, and how far each is."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.studio.batches()
    rows = [(b.id, b.name, b.status, f"{b.done}/{b.total}", b.failed, b.rated, b.created[:19]) for b in found]
    columns = ("id", "name", "status", "done", "failed", "rated", "created")
    show(found, as_json, lambda: print_table(columns, rows, "None yet: persona-lab studio run VARIANT --tag story."))


@studio_app.command("prompts")
def studio_prompts(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The prompt library."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.studio.shelf.prompts()
    rows = [(p.id, ", ".join(p.tags), p.text) for p in found]
    show(found, as_json, lambda: print_table(("id", "tags", "text"), rows, "No prompts."))


@studio_app.command("styles")
def studio_styles(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Styles that can be applied to a batch."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.studio.shelf.styles()
    rows = [(s.id, s.name, s.sampling.temperature, s.sampling.max_new_tokens, s.notes) for s in found]
    columns = ("id", "name", "temperature", "longest", "notes")
    show(found, as_json, lambda: print_table(columns, rows, "No styles."))


@studio_app.command("run")
def studio_run(
    variants: Annotated[list[str] | None, typer.Argument(help="Ids; base-PERSONA is the untrained base.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A text file, one prompt a line.")] = None,
    use: Annotated[list[str] | None, typer.Option("--use", help="A prompt of the library, by id or name.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="All prompts of the library with this tag.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Replies to each, with seeds from --seed.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="The first seed.")] = 0,
    style: Annotated[str, typer.Option("--style", help="Id or name of a style.")] = "plain",
    name: Annotated[str, typer.Option("--name", help="A name for the batch.")] = "",
    go_on: Annotated[str, typer.Option("--go-on", help="Write what is missing of this batch instead.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate a batch. Stopped, it can be gone on with: --go-on BATCH. Works beside a running page."""
    with opened(home, readonly=True) as engine:
        studio = engine.studio
        if go_on:
            batch = studio.store.batch(go_on)
        else:
            asked = _prompts(engine, prompt or [], prompts, use or [], tag or [])
            found = [engine.variant(variant) for variant in variants or ()]
            names = {summary.id: summary.name for summary in engine.personas()}
            chosen = studio.shelf.style(style)
            batch = studio.create(asked, found, range(seed, seed + seeds), chosen, name, names)
        try:
            view = studio.run(batch.id, _teller(batch, len(studio.rows(batch.id))))
        except KeyboardInterrupt:
            studio.stop(batch.id)
            fix = f"Go on with: persona-lab studio run --go-on {batch.id}."
            raise Cancelled(f"Batch {batch.id} was stopped; what was written is kept.", fix) from None
        rows = studio.rows(batch.id)
    document = {"batch": view.model_dump(mode="json"), "rows": [row.model_dump(mode="json") for row in rows]}
    show(document, as_json, lambda: _tell(view.id, rows))
    if view.failed:
        reason = next(row.error for row in rows if row.error)
        fix = f"Mend that, then: persona-lab studio run --go-on {batch.id}."
        raise WorkFailed(f"{view.failed} of {view.total} replies could not be written: {reason}", fix)


@studio_app.command("export")
def studio_export(
    batch: str,
    out: OutOption,
    format: Annotated[str, typer.Option("--format", help="csv, jsonl or md; default: the file's ending.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a batch's replies and ratings to a new file."""
    from persona_lab.home import refuse_existing

    refuse_existing(out)
    chosen = format or out.suffix.removeprefix(".").lower().replace("markdown", "md")
    with opened(home, readonly=True) as engine:
        path = engine.studio.export(batch, chosen, out.resolve())
        count = len(engine.studio.rows(batch))
    document = {"batch": batch, "format": chosen, "out": str(path), "rows": count}
    show(document, as_json, lambda: print(f"{count} rows written to {path}."))


def _prompts(engine: Engine, texts: list[str], file: Path | None, use: list[str], tags: list[str]) -> list[Prompt]:
    from persona_lab.cli.conversing import read_prompts
    from persona_lab.studio.studio import own_prompts

    shelf = engine.studio.shelf
    found = [shelf.prompt(name) for name in use]
    for tag in tags:
        tagged = shelf.prompts([tag])
        if not tagged:
            raise BadInput(f"No prompt has the tag {tag!r}.", f"Tags: {', '.join(shelf.tags()) or 'none'}.")
        found += tagged
    own = own_prompts([*texts, *(read_prompts(None, file) if file else [])])
    return [*{prompt.id: prompt for prompt in found}.values(), *own]


def _teller(batch: Batch, before: int) -> Any:
    """Says on standard error how far the batch is."""
    done = before

    def tell(row: Row) -> None:
        nonlocal done
        done += 1
        problem = f": {row.error}" if row.error else ""
        print(f"{min(done, batch.size)} of {batch.size}: {row.variant}, {row.prompt}{problem}", file=sys.stderr)

    return tell


def _tell(batch_id: str, rows: list[Row]) -> None:
    for row in rows:
        print(f"[{row.variant}, seed {row.seed}]\n> {row.text}\n{row.reply or row.error}\n")
    print(f"Take it along: persona-lab studio export {batch_id} --out {batch_id}.csv")
