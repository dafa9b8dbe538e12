"""What every command shares: options, opening the engine, showing, following a run."""

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
    from persona_lab.types import RunView

HomeOption = Annotated[Path | None, typer.Option("--home", help="The data folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PersonaOption = Annotated[str, typer.Option("--persona", help="A persona's id.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting, as key=value; may be repeated.")]
BaseOption = Annotated[str, typer.Option("--base", help="starter, a hub id, a local folder or a GGUF file.")]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed gives the same result on the same machine.")]
OutOption = Annotated[Path, typer.Option("--out", help="Where to write.")]


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
    from persona_lab.cli.terminal import print_json

    print_json(data) if as_json else table()


def follow(engine: Engine, run_id: str) -> RunView:
    """Wait for a run, showing progress; Ctrl-C stops it."""
    from persona_lab.cli.terminal import Progress

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
    if run.cause in ("bad_data", "bad_setting", "bad_input", "will_not_fit"):
        raise BadInput(error.message, error.fix)
    if run.status == "interrupted":
        error = PersonaLabError(f"Run {run.id} was interrupted. {run.message}", run.fix)
    raise error
