"""What README and docs say is true: commands exist, the plugin shown loads, hooks and links are real."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import typer

from persona_lab import hookspecs
from persona_lab.home import Home
from persona_lab.plugins import Plugins

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def known_commands() -> set[str]:
    from persona_lab.cli import app

    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():
        found |= {f"{name} {sub}" for sub in getattr(command, "commands", {})} or {name}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_shown_exists(page: Path) -> None:
    known = known_commands()
    for first, second in re.findall(r"^\s*persona-lab\s+([a-z-]+)\s+(\S+)", page.read_text(), flags=re.MULTILINE):
        assert first in known or f"{first} {second}" in known, f"{page.name}: persona-lab {first} {second}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_plugin_in_the_readme_loads(home: Home) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert code is not None
    home.plugins.mkdir()
    (home.plugins / "first_lines.py").write_text(code.group(1))
    plugins = Plugins.load(home.plugins)
    assert plugins.get("strategy", "first_lines").title == "First lines"
    assert [info for info in plugins.infos() if info.status == "failed"] == []


def test_the_evaluator_in_the_evaluation_page_loads(home: Home) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), flags=re.DOTALL)
    assert code is not None
    home.plugins.mkdir()
    (home.plugins / "exclaims.py").write_text(code.group(1))
    plugins = Plugins.load(home.plugins)
    assert plugins.get("evaluator", "exclaims").title == "Exclaims"
    assert [info for info in plugins.infos() if info.status == "failed"] == []


def test_the_evaluation_page_names_every_evaluator() -> None:
    text = (ROOT / "docs/evaluation.md").read_text()
    assert [part.id for part in Plugins.load().all("evaluator") if f"`{part.id}`" not in text] == []


def test_the_plugin_page_names_every_hook_and_real_toolkit_functions() -> None:
    from persona_lab import api

    text = (ROOT / "docs/plugins.md").read_text()
    for name in vars(hookspecs):
        if name.startswith("persona_lab_"):
            assert name in text
    for name in re.findall(r"from persona_lab\.api import ([\w, ]+)", text):
        for part in name.split(", "):
            assert part in api.__all__ or part in api._TOOLKIT, part


def plugins_shown() -> list[str]:
    return re.findall(r"```python plugin\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), flags=re.DOTALL)


def test_every_plugin_in_the_plugin_page_loads(home: Home) -> None:
    home.plugins.mkdir()
    for number, code in enumerate(plugins_shown()):
        (home.plugins / f"shown_{number}.py").write_text(code)
    plugins = Plugins.load(home.plugins, tabs=True)
    assert [info for info in plugins.infos() if info.status == "failed" or info.problem] == []
    kinds = ("strategy", "evaluator", "reader", "exporter", "tab")
    shown = {(kind, part.id) for kind in kinds for part in plugins.all(kind)}
    assert shown >= {
        ("strategy", "whisper"),
        ("evaluator", "asks_back"),
        ("reader", "question_answer"),
        ("exporter", "with_card"),
        ("tab", "diary"),
    }


def test_the_plugins_in_the_plugin_page_do_what_they_say(tmp_path: Path, tiny_model: Path) -> None:
    from persona_lab.testing import Workshop, check_result, made_up_persona

    (tmp_path / "plugins").mkdir()
    for number, code in enumerate(plugins_shown()[:4]):
        (tmp_path / "plugins" / f"shown_{number}.py").write_text(code)
    shop = Workshop(tmp_path / "shop", Plugins.load(tmp_path / "plugins"), tiny_model)
    check_result(shop, "whisper", {"epochs": 2, "learning_rate": 5e-3, "samples": 0})
    (tmp_path / "lines.qa").write_text("Are you lost? | Never.\nno bar\n")
    read = shop.plugins.get("reader", "question_answer").read(tmp_path / "lines.qa", made_up_persona(), {})
    assert (len(read.conversations), read.skipped[0][0]) == (1, 2)
    exporter = shop.plugins.get("exporter", "with_card")
    assert exporter.check(shop.variant("whole-whisper")) == []


def test_the_plugin_page_is_in_step_with_the_contract() -> None:
    from persona_lab import api

    text = (ROOT / "docs/plugins.md").read_text()
    shown = set(re.search(r"<!-- signatures.*?```text\n(.*?)```", text, flags=re.DOTALL)[1].split("\n")) - {""}
    real = set()
    for kind in (api.Strategy, api.Evaluator, api.DatasetReader, api.Exporter, api.Tab):
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                real.add(f"{kind.__name__}.{name}({', '.join(inspect.signature(method).parameters)})")
    assert shown == real
    for name, hook in vars(hookspecs).items():
        if name.startswith("persona_lab_"):
            assert f"`{name}({', '.join(inspect.signature(hook).parameters)})`" in text


def test_every_toolkit_name_is_there() -> None:
    from persona_lab import api

    for name in api._TOOLKIT:
        assert getattr(api, name) is not None


def test_the_readmes_test_command_is_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme.split("<!-- test-command -->")[1].split("```")[1]
    assert block.strip().splitlines()[-1] == 'pip install -e ".[test]" && pytest'
    assert "test-command" in (ROOT / ".ci/run").read_text()
