"""Writes a plugin package: pyproject with the entry point, code that works, tests that pass, a README."""

from __future__ import annotations

import re
import string
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from persona_lab.errors import BadInput
from persona_lab.home import write_atomic
from persona_lab.plugins import Plugins

PluginKind = Literal["strategy", "evaluator", "reader", "exporter"]
_CONFTEST = (
    '"""Fixtures: workshop, tiny_model, tiny_persona."""\n\npytest_plugins = ["persona_lab.testing.pytest_plugin"]\n'
)


def scaffold(kind: str, name: str, out: Path) -> Path:
    """Make the package `persona-lab-NAME` in `out`; gives its folder.

    Raises:
        BadInput: no such kind, a name that cannot be an id or is taken, or the folder exists.
    """
    if kind not in get_args(PluginKind):
        raise BadInput(f"{kind!r} is no kind of plugin that can be made here.", f"{', '.join(get_args(PluginKind))}.")
    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name) or len(name) > 40:
        raise BadInput(f"{name!r} cannot be a plugin's name.", "Use lower-case letters, digits and -, up to 40.")
    part_id = name.replace("-", "_")
    if any(part.id == part_id for part in Plugins.load().all(kind)):  # type: ignore[arg-type]
        raise BadInput(f"There is a {kind} {part_id!r} already.", "Choose another name: ids are never taken over.")
    folder = out.expanduser().resolve() / f"persona-lab-{name.replace('_', '-')}"
    if folder.exists():
        raise BadInput(f"{folder} exists already.", "Choose another name or another --out folder.")
    words = {
        "kind": kind,
        "id": part_id,
        "module": f"persona_lab_{part_id}",
        # with its kind, so that no name hides what the template imports
        "cls": "".join(word.capitalize() for word in [*part_id.split("_"), kind]),
        "title": part_id.replace("_", " ").capitalize(),
        "distribution": folder.name,
    }
    for path, template in (
        ("pyproject.toml", "pyproject.toml.txt"),
        ("README.md", "README.md.txt"),
        (f"src/{words['module']}/__init__.py", f"{kind}.py.txt"),
        (f"tests/test_{part_id}.py", f"test_{kind}.py.txt"),
    ):
        text = (files("persona_lab.kit") / "templates" / template).read_text(encoding="utf-8")
        write_atomic(folder / path, string.Template(text).substitute(words))
    write_atomic(folder / "tests/conftest.py", _CONFTEST)
    write_atomic(folder / f"src/{words['module']}/py.typed", "")
    return folder
