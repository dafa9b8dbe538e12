"""The page's process stays light: no torch, and the import rules of the design hold."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "sklearn", "scipy", "matplotlib")
ROOT = Path(__file__).resolve().parents[2]


def modules_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import persona_lab.api, persona_lab.cli, persona_lab.engine, persona_lab.catalog",
        "from persona_lab.plugins import Plugins; assert len(Plugins.load().all('strategy')) >= 5",
        "import persona_lab.ui.app",
        "import persona_lab.inference.blending, persona_lab.datasets.aspects, persona_lab.datasets.corpus",
        "import persona_lab.inference.client, persona_lab.models.registry, persona_lab.models.machine",
        "import persona_lab.datasets.rendering, persona_lab.datasets.reading, persona_lab.personas.cards",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert modules_after(code) & set(HEAVY) == set()


def test_a_whole_engine_with_plan_and_preview_stays_light(home) -> None:
    code = f"""
from persona_lab.engine import Engine
with Engine.open({str(home.root)!r}, tabs=True) as engine:
    engine.personas(); engine.persona('nan_tolliver'); engine.plan('nan_tolliver'); engine.datasets(); engine.runs()
    engine.plugin_infos(); engine.models(); engine.machine()
"""
    assert modules_after(code) & set(HEAVY) == set()


def test_the_command_line_does_not_import_gradio() -> None:
    assert "gradio" not in modules_after("import persona_lab.cli, persona_lab.engine")


def test_rooms_import_downwards_only() -> None:
    from importlinter.cli import lint_imports

    names = list(logging.root.manager.loggerDict)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0
    for name in names:  # it sets up its own logging, and with that silences everybody else's for the tests after this
        logging.getLogger(name).disabled = False
