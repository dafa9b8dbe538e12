"""Settings of a home, what takes room in it, and what an export will weigh."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_lab.engine import Engine
from persona_lab.errors import BadInput, BadSetting, UnknownName
from persona_lab.export.choices import ExportChoice
from persona_lab.home import Home
from persona_lab.plugins import Plugins
from persona_lab.preferences import Preferences, read_preferences, write_preferences
from persona_lab.processes import worker_environment
from persona_lab.storage import clean, usage
from persona_lab.types import Problem, RunView
from persona_lab.ui.export_tab import _card, _result
from persona_lab.ui.follow import RunPicture
from persona_lab.ui.plugins_tab import EXAMPLE, plugin_table, problem_list

EVIL = "<img src=x onerror=alert(1)>"


def test_settings_are_kept_bounded_and_readable_by_an_older_version(home: Home) -> None:
    assert read_preferences(home.root) == Preferences()
    write_preferences(home.root, {"threads": 2})
    assert write_preferences(home.root, {"default_base": " a/b "}) == Preferences(default_base="a/b", threads=2)
    with pytest.raises(BadSetting, match="threads"):
        write_preferences(home.root, {"threads": 0})
    assert read_preferences(home.root).threads == 2
    path = home.root / "settings.json"
    path.write_text('{"threads": 3, "from_the_future": true}')
    assert read_preferences(home.root).threads == 3
    path.write_text("{")
    with pytest.raises(BadInput, match="delete it"):
        read_preferences(home.root)


def test_workers_get_the_cores_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in worker_environment()
    assert worker_environment(1)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert worker_environment(1)["OMP_NUM_THREADS"] == "3"  # what the user has set wins


def test_a_blocked_plugin_is_not_loaded_and_says_so(home: Home) -> None:
    home.plugins.mkdir()
    (home.plugins / "first_lines.py").write_text(EXAMPLE)
    assert Plugins.load(home.plugins).get("strategy", "first_lines").title == "First lines"
    write_preferences(home.root, {"blocked_plugins": ("first_lines", "builtin")})
    plugins = Plugins.load(home.plugins)
    with pytest.raises(UnknownName):
        plugins.get("strategy", "first_lines")
    info = next(i for i in plugins.infos() if i.id == "first_lines")
    assert (info.status, "settings" in info.problem) == ("disabled", True)
    assert plugins.get("strategy", "lora")  # the built-in ones cannot be blocked from the page


def test_a_failed_plugin_is_shown_with_its_traceback(home: Home) -> None:
    home.plugins.mkdir()
    (home.plugins / "broken.py").write_text("raise ValueError('<b>no</b>')")
    infos = Plugins.load(home.plugins).infos()
    drawn = problem_list(infos)
    assert "broken was not loaded" in drawn
    assert "Traceback" in drawn
    assert "<b>no" not in drawn + plugin_table(infos)


def test_only_what_can_be_made_again_is_deleted(home: Home) -> None:
    for name, size in (("cache/scores.sqlite", 500), ("runs/r1/job.json", 100), ("runs/r1/deep/x.bin", 900)):
        path = home.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (home.root / "link").symlink_to("/usr")
    found = {use.kind: use for use in usage(home)}
    assert (found["runs"].bytes, found["runs"].files, found["cache"].bytes) == (1000, 2, 500)
    assert found["other"].bytes < 10_000
    for kind in ("runs", "variants", "models"):
        with pytest.raises(BadInput, match="not deleted as a whole"):
            clean(home, kind)
    with pytest.raises(UnknownName):
        clean(home, "..")
    assert clean(home, "cache") == 500
    assert clean(home, "cache") == 0
    assert (home.root / "runs/r1/deep/x.bin").exists()
    assert not list(home.root.glob(".gone-*"))


def test_the_engine_knows_the_formats_of_a_variant(home: Home, tiny_model: Path) -> None:
    (home.root / "models").mkdir()
    (home.root / "models" / "starter").symlink_to(tiny_model)
    with Engine(home) as engine:
        choices = engine.export_choices("base-magpie")
        assert {choice.format for choice in choices} >= {"adapter", "merged"}
        assert not any(choice.possible for choice in choices if choice.format in ("adapter", "merged"))
        assert engine.deleted_last() == ""
        assert engine.clean("logs") == 0


def test_an_export_says_what_it_is_for_and_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"abc")
    view = RunView(
        id="e-1", kind="export", name="Export", status="done",
        result={"out": str(folder), "files": ["a.bin", EVIL], "bytes": 3, "format": EVIL, "warnings": [EVIL]},
    )  # fmt: skip
    drawn = _result(view, RunPicture())
    assert str(folder) in drawn
    assert EVIL not in drawn
    assert "not there any more" in _result(
        view.model_copy(update={"result": view.result | {"out": "/gone"}}), RunPicture()
    )
    assert _result(view.model_copy(update={"status": "running"}), RunPicture()) == ""
    possible = ExportChoice(format="adapter", title="Adapter", summary="Small.", possible=True, bytes=2_000_000)
    assert _card(possible) == "Adapter\nSmall.\nabout 2.0 MB"
    why = (Problem(message="It has no weights."),)
    refused = possible.model_copy(update={"possible": False, "bytes": None, "problems": why})
    assert "Not for this one: It has no weights." in _card(refused)
