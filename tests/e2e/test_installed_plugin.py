"""A package of `new-plugin` as a wheel beside the app's own wheel, in a fresh virtual environment, page and all.

The environment has the two wheels; what they depend on is lent by the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from persona_lab.kit.scaffold import scaffold

from .conftest import REPOSITORY, App
from .test_train_tab import field, roomy

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

Opener = Callable[[str], Any]
LONG = 240_000
BIN = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh virtual environment with both wheels."""
    work = tmp_path_factory.mktemp("installed")
    package = scaffold("strategy", "my-idea", work)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(work / "dist")]
    subprocess.run([*build, str(REPOSITORY), str(package)], check=True, timeout=300)
    venv.create(work / "venv")
    programs = work / "venv" / BIN
    wheels = [str(wheel) for wheel in (work / "dist").glob("*.whl")]
    assert len(wheels) == 2
    install = [*pip, "--python", str(programs / "python"), "install", "--no-deps", *wheels]
    subprocess.run(install, check=True, timeout=300)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_said(programs, "python", "-c", ask).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def _alone() -> dict[str, str]:
    """The environment's variables without this checkout's own paths."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _said(programs: Path, program: str, *arguments: str) -> str:
    command = [str(programs / program), *arguments]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120, env=_alone(), cwd=programs.parent
    )
    return done.stdout


def test_it_is_in_the_page_with_its_own_form_and_trains(
    environment: Path, app: App, new_page: Opener, tiny_model: Path, tmp_path: Path
) -> None:
    where = _said(environment, "python", "-c", "import persona_lab, persona_lab_my_idea as m; print(persona_lab, m)")
    assert where.count(str(environment.parent)) == 2, "both are the installed wheels, not this checkout"
    base = roomy(tiny_model, tmp_path / "tiny")
    app.program = (str(environment / "persona-lab"), "serve")
    app.folder, app.environment = tmp_path, _alone() | {"PYTHONUNBUFFERED": "1"}
    page: Page = new_page(app.start())
    page.set_default_timeout(LONG)
    page.get_by_role("button", name="Train Magpie").click()
    expect(page.locator("#plan .pl-plan")).to_be_visible(timeout=LONG)  # all are priced, and one is recommended
    card = page.locator("#strategy label").filter(has_text="My idea")
    expect(card).to_contain_text("A small LoRA on the attention layers only.", timeout=LONG)
    card.click()
    expect(card.locator("input")).to_be_checked()
    expect(page.locator("#plan .pl-plan[data-strategy=my_idea]")).to_be_visible(timeout=LONG)
    form = page.get_by_text("How much the adapter can learn; more needs more memory.").locator("visible=true")
    expect(form).to_have_count(1)
    field(page, "Rank").fill("5")
    page.get_by_role("button", name="Base model, seed and name").click()
    field(page, "Base model").fill(str(base))
    field(page, "Base model").press("Enter")
    field(page, "Epochs").fill("0.3")
    page.get_by_role("button", name="Start training").click()
    page.locator("#train-status .pl-status[data-status=done]").wait_for(timeout=LONG)
    expect(page.locator("#train-talk")).to_be_visible(timeout=LONG)  # the variant is in the library

    home = ("--json", "--home", str(app.home))
    (made,) = json.loads(_said(environment, "persona-lab", "variants", "list", *home))
    assert made["strategy"] == "my_idea"
    run = json.loads(_said(environment, "persona-lab", "runs", "show", made["run"], *home))
    assert run["config"]["rank"] == 5
    rows = json.loads(_said(environment, "persona-lab", "plugins", *home))
    (row,) = [row for row in rows if row["id"] == "my_idea"]
    assert (row["distribution"], row["version"], row["source"]) == ("persona-lab-my-idea", "0.1.0", "package")
