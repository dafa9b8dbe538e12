"""`backup` and `restore`: everything that cannot be made again, in one file and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona_lab.cli.common import HomeOption, JsonOption, opened, show


def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it; nothing is overwritten.")],
    weights: Annotated[bool, typer.Option("--weights", help="Also the weights of variants and foundations.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up characters, data, votes, conversations and records of runs; the page need not be closed."""
    from persona_lab.cli.terminal import size

    with opened(home, readonly=True) as engine:
        made = engine.back_up(file, weights)

    def tell() -> None:
        held = f"{made.personas} personas, {made.variants} variants and {made.runs} runs in {made.files} files"
        print(f"{made.file} holds {held} ({size(made.bytes)}).")
        if not made.weights and made.variants:
            print("Without the weights of the variants: add --weights to keep them too.")

    show(made, as_json, tell)


def restore(
    file: Annotated[Path, typer.Argument(help="What `persona-lab backup` wrote.")],
    check: Annotated[bool, typer.Option("--check", help="Only read it through and compare its checksums.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a backup back; what it replaces is kept, and what it does not hold stays."""
    if check:
        from persona_lab.backup import check as check_backup

        checked = check_backup(file)
        told = f"{file} is whole: {checked.files} files of {checked.created[:19]}."
        show(checked, as_json, lambda: print(told))
        return
    with opened(home) as engine:
        done = engine.restore(file)

    def tell() -> None:
        print(f"{done.restored} files were put back, {done.unchanged} were there already ({done.created[:19]}).")
        if done.left:
            print(f"{done.left} files belong to runs that are here already, and were left as they are.")
        if done.replaced:
            print(f"What was replaced lies in {done.replaced}.")

    show(done, as_json, tell)
