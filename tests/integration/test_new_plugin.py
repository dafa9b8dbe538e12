"""A package from `new-plugin`, built as a wheel, is found beside the app, and its own tests pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from persona_lab.errors import BadInput
from persona_lab.kit.scaffold import scaffold

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """All four kinds, built as wheels and installed into a folder of their own; (that folder, package folders)."""
    work = tmp_path_factory.mktemp("kit")
    made = {kind: scaffold(kind, f"my-{kind}", work) for kind in ("strategy", "evaluator", "reader", "exporter")}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(work / "dist"), *map(str, made.values())]
    subprocess.run(build, check=True, timeout=200)
    wheels = map(str, (work / "dist").glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(work / "site"), *wheels], check=True, timeout=200)
    return work / "site", made


def beside(site: Path) -> dict[str, str]:
    """The environment in which those packages are installed beside the app."""
    paths = [str(site), str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def test_the_packages_are_found_and_have_no_problems(installed: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "persona_lab.cli", "plugins", "--json", "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, env=beside(installed[0]))
    rows = {row["id"]: row for row in json.loads(done.stdout) if row["distribution"].startswith("persona-lab-my")}
    assert {row["kind"] for row in rows.values()} == {"strategy", "evaluator", "reader", "exporter"}
    assert {(row["status"], row["problem"], row["source"], row["version"]) for row in rows.values()} == {
        ("ok", "", "package", "0.1.0")
    }


def test_the_generated_tests_pass(installed: Any) -> None:
    site, made = installed
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    folders = list(made.values())
    # one as its author would; the others in one process, which saves the imports of torch
    runs = {
        folders[0]: [str(folders[0] / "tests")],
        folders[1]: [
            "--noconftest",
            "-p",
            "persona_lab.testing.pytest_plugin",
            *(str(f / "tests") for f in folders[1:]),
        ],
    }
    for folder, arguments in runs.items():
        done = subprocess.run(
            [*command, "-c", str(folder / "pyproject.toml"), *arguments],
            capture_output=True,
            text=True,
            timeout=280,
            env=beside(site),
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0, f"{folder.name}\n{done.stdout[-4000:]}"
        assert f"{2 if folder == folders[0] else 3} passed" in done.stdout


def test_the_form_of_the_generated_strategy_is_its_own(installed: Any) -> None:
    """What the page shows: a control for the setting that only this strategy has."""
    code = (
        "from persona_lab.plugins import Plugins\n"
        "part = Plugins.load().get('strategy', 'my_strategy')\n"
        "print(part.Config.model_json_schema()['properties']['rank']['description'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=beside(installed[0])
    )
    assert done.stdout.startswith("How much the adapter can learn")


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("tab", "mine", "no kind of plugin"),
        ("strategy", "My Plugin", "cannot be a plugin's name"),
        ("strategy", "../up", "cannot be a plugin's name"),
        ("strategy", "lora", "a strategy 'lora' already"),
    ],
)
def test_what_cannot_be_made_is_refused(kind: str, name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=why):
        scaffold(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = scaffold("reader", "mine", tmp_path)
    with pytest.raises(BadInput, match="exists already"):
        scaffold("reader", "mine", tmp_path)
    assert (folder / "tests" / "test_mine.py").is_file()
