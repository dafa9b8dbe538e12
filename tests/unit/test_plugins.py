"""Plugins are found, isolated and reported, with a real third-party package installed next to us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from persona_lab.errors import PluginFailed, UnknownName
from persona_lab.home import Home
from persona_lab.plugins import OBSERVERS, Plugins

EXAMPLE = Path(__file__).resolve().parents[1] / "example_plugin"

LOCAL = """
from persona_lab.api import Estimate, Strategy, hookimpl

class Whisper(Strategy):
    id = "whisper"
    title = "Whisper"
    summary = "Dropped into the plugins folder."

    def estimate(self, config, base, dataset, machine):
        return Estimate(trainable_parameters=0, peak_memory_bytes=1, seconds=1, disk_bytes=1)

    def train(self, job, ctx):
        return ctx.save_prompt(())

@hookimpl
def persona_lab_strategies():
    return [Whisper]
"""


@pytest.fixture(scope="session")
def example_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the example package is really installed, with its entry points."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "--target", str(site), str(EXAMPLE)], check=True, timeout=240, env=environment)
    return site


def listed(home: Home, site: Path | None = None, **environment: str) -> dict[tuple[str, str | None, str], dict]:
    """What `persona-lab plugins --json` says, by (id, kind, status)."""
    paths = os.pathsep.join([str(site)] if site else [])
    command = [sys.executable, "-m", "persona_lab.cli", "plugins", "--json", "--home", str(home.root)]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": paths} | environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return {(row["id"], row["kind"], row["status"]): row for row in json.loads(result.stdout)}


def test_a_package_with_good_and_bad_plugins(home: Home, example_site: Path) -> None:
    rows = listed(home, example_site)
    for part, kind in (
        ("first_lines", "strategy"),
        ("system_length", "evaluator"),
        ("one_line", "reader"),
        ("name_only", "exporter"),
    ):
        row = rows[part, kind, "ok"]
        assert (row["distribution"], row["version"], row["source"]) == ("persona-lab-example", "1.2.3", "package")
    broken = rows["example_broken_import", None, "failed"]
    assert "a_library_that_nobody_has_installed" in broken["problem"]
    assert "Traceback" in broken["details"]
    assert broken["distribution"] == "persona-lab-example"
    misspelt = rows["example_misspelt", None, "failed"]
    assert "persona_lab_stratagems" in misspelt["problem"]
    assert "persona_lab_strategies" in misspelt["problem"]
    clash = rows["lora", "strategy", "failed"]
    assert "persona-lab-example" in clash["problem"]
    assert "persona-lab" in clash["problem"]
    assert rows["lora", "strategy", "ok"]["source"] == "built-in"
    assert rows["explodes", "strategy", "ok"]


def test_one_can_be_disabled_by_name(home: Home, example_site: Path) -> None:
    rows = listed(home, example_site, PERSONA_LAB_DISABLE_PLUGINS="example_good, example_clash")
    assert ("first_lines", "strategy", "ok") not in rows
    assert rows["example_good", None, "disabled"]
    assert ("lora", "strategy", "failed") not in rows


def test_a_file_in_the_plugins_folder_works(home: Home) -> None:
    home.plugins.mkdir()
    (home.plugins / "whisper.py").write_text(LOCAL)
    rows = listed(home)
    assert rows["whisper", "strategy", "ok"]["source"] == str(home.plugins / "whisper.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def nonsense(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("from persona_lab.api import hookimpl\n@hookimpl\ndef persona_lab_strategies(wrong): return []", "wrong"),
        (
            "from persona_lab.api import hookimpl\n@hookimpl\ndef persona_lab_strategies(): return [42]",
            "42 is not a class",
        ),
        (
            "from persona_lab.api import hookimpl\nclass A:\n id='a'\n title='A'\n"
            "@hookimpl\ndef persona_lab_strategies(): return [A]",
            "A lacks estimate, train",
        ),
    ],
)
def test_a_bad_file_is_reported_and_everything_else_loads(home: Home, text: str, expected: str) -> None:
    home.plugins.mkdir()
    (home.plugins / "a_bad.py").write_text(text)
    (home.plugins / "whisper.py").write_text(LOCAL)
    plugins = Plugins.load(home.plugins)
    problems = [info for info in plugins.infos() if info.status == "failed"]
    assert len(problems) == 1
    assert expected in problems[0].problem
    assert {part.id for part in plugins.all("strategy")} >= {"whisper", "lora", "full"}


def test_strict_mode_raises_for_authors(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.plugins.mkdir()
    (home.plugins / "bad.py").write_text("1 / 0")
    monkeypatch.setenv("PERSONA_LAB_STRICT_PLUGINS", "1")
    with pytest.raises(PluginFailed, match="division by zero"):
        Plugins.load(home.plugins)


def test_an_unknown_id_names_the_nearest(home: Home) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'lora'"):
        Plugins.load(home.plugins).get("strategy", "lorra")


def test_a_call_that_raises_becomes_plugin_failed_with_its_traceback(home: Home) -> None:
    plugins = Plugins.load(home.plugins)

    def explode() -> None:
        raise KeyError("fuse")

    with pytest.raises(PluginFailed) as caught:
        plugins.guarded("strategy", "lora", explode)
    assert "KeyError" in str(caught.value)
    assert "explode" in caught.value.details


def test_the_hooks_documented_are_the_hooks_there_are() -> None:
    from persona_lab import hookspecs
    from persona_lab.plugins import HOOKS

    specified = {name for name in vars(hookspecs) if name.startswith("persona_lab_")}
    assert specified == {*HOOKS.values(), *OBSERVERS}
    for name in specified:
        assert "Example:" in getattr(hookspecs, name).__doc__


def test_a_strategy_whose_estimate_raises_does_not_hide_the_others(home: Home, persona_factory) -> None:
    from persona_lab.models.machine import probe_machine
    from persona_lab.models.registry import describe
    from persona_lab.planning import plan_strategies

    home.plugins.mkdir()
    broken = LOCAL.replace(
        "        return Estimate(", "        raise RuntimeError('no idea')\n        return Estimate("
    )
    (home.plugins / "whisper.py").write_text(broken)
    plugins = Plugins.load(home.plugins)
    asked = (persona_factory(), None, describe("starter", home), probe_machine(home.root), {})
    rows = plan_strategies(plugins, plugins.all("strategy"), *asked, strict=False)
    whisper = next(row for row in rows if row.strategy == "whisper")
    assert not whisper.fits
    assert "no idea" in whisper.reason
    assert {row.strategy for row in rows if row.fits} >= {"lora", "prompt"}
    with pytest.raises(PluginFailed, match="no idea"):
        plan_strategies(plugins, [plugins.get("strategy", "whisper")], *asked, strict=True)
