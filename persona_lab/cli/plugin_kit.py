"""`new-plugin`: a package of one's own to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona_lab.cli.common import JsonOption, show


def new_plugin(
    kind: Annotated[str, typer.Argument(help="strategy, evaluator, reader or exporter.")],
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and -; it becomes the id.")],
    out: Annotated[Path, typer.Option("--out", help="Where the package's folder is made.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Make a plugin package that installs and passes its tests; then make it your own."""
    from persona_lab.kit.scaffold import scaffold

    folder = scaffold(kind, name, out)

    def tell() -> None:
        print(f'Made {folder}.\nTry it:  cd {folder} && pip install -e ".[test]" && pytest')

    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    show({"folder": str(folder), "files": files}, as_json, tell)
