"""What the benchmarks share: percentiles against numpy's, commands without folders, folders that go away alone."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/common.py`, which is a script's neighbour and no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("common")


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 39, 40, 100, 101, 351])
def test_p95_is_the_nearest_rank(common: Any, count: int) -> None:
    values = [random.Random(count).random() for _ in range(count)]
    assert common.p95(values) == numpy.percentile(values, 95, method="inverted_cdf")


def test_p95_of_nothing_and_of_a_hundred(common: Any) -> None:
    assert common.p95([]) is None
    assert common.p95(range(1, 101)) == 95


def test_a_command_is_told_without_folders(common: Any) -> None:
    given = ["/x/benchmarks/soak.py", "--runs", "21", "--out", "/tmp/x", "--work=/tmp/y", "--kinds", "train", "eval"]
    assert common.command(given) == "python benchmarks/soak.py --runs 21 --out docs --kinds train eval"


def test_a_fresh_folder_takes_nothing_with_it(common: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("kept")
    with common.fresh_folder("soak-", tmp_path) as folder:
        assert folder.parent == tmp_path
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("gone")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert mine.read_text() == "kept"


def test_a_fresh_folder_makes_its_parent_and_leaves_it(common: Any, tmp_path: Path) -> None:
    with common.fresh_folder("soak-", tmp_path / "new") as folder:
        assert folder.is_dir()
    assert list((tmp_path / "new").iterdir()) == []
