"""The real page in its own process, and a real Chromium that fails the test on any console error or outside request."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from persona_lab.home import Home

REPOSITORY = Path(__file__).resolve().parents[2]
CHROMIUM = Path(os.environ.get("PERSONA_LAB_CHROMIUM", "/usr/bin/chromium"))
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass
class App:
    """`python app.py` over one home; can be killed and started again. `program`: what else to start, and where."""

    home: Path
    log: Path
    program: tuple[str, ...] = (sys.executable, "-u", "app.py")
    folder: Path = REPOSITORY
    environment: dict[str, str] | None = None
    process: subprocess.Popen[str] | None = None
    url: str = ""
    workers: list[psutil.Process] = field(default_factory=list)

    def start(self) -> str:
        """Start the page; its address once it is ready."""
        command = [*self.program, "--home", str(self.home), "--port", "0", "--no-browser", "--debug"]
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=self.environment
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"Persona Lab is ready at (http://127\.0\.0\.1:\d+)", line)
        assert found, f"the page said {line!r}; {self.log.read_text()}"
        self.url = found[1]
        return self.url

    def memory(self) -> int:
        """Resident bytes of the page's process."""
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        assert self.process is not None
        self.workers += psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """TERM, as a closing terminal would; the exit code."""
        assert self.process is not None
        self.workers += psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        return self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        code = self.process.wait(30)
        self.process.stdout.close()
        self.process = None
        return code

    def clean(self) -> None:
        """Leave no process behind: runs outlive the page by design, but not the test."""
        if self.process is not None:
            self.stop()
        for worker in self.workers:
            if worker.is_running():
                worker.kill()


CUT_OFF = re.compile(r"AbortError: signal is aborted|Unexpected error Connection errored out")
LEAVING_SECONDS = 5
"""For so long before and after a reload is heard of, the page left may say that its own requests were cut off."""


@pytest.fixture
def app(starter_home: Home, tmp_path: Path) -> Iterator[App]:
    """The page, not started yet, over a home that has the starter model already."""
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / "starter").symlink_to(starter_home.model("starter").resolve(), target_is_directory=True)
    made = App(home, tmp_path / "page.log")
    yield made
    made.clean()


@pytest.fixture(scope="package")
def chromium():  # type: ignore[no-untyped-def]
    """A browser for these tests. It goes with them: its driver keeps an event loop running in this thread, in which no
    other test could start one."""
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; name one in PERSONA_LAB_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium) -> Iterator[Callable[[str], object]]:  # type: ignore[no-untyped-def]
    """Opens an address in a fresh session; at the end, nothing may have left this machine or logged an error."""
    outside: list[str] = []
    said: list[tuple[float, str]] = []
    left: list[float] = []
    contexts = []

    def leave(*_: object) -> None:
        left.append(time.monotonic())

    def heard(text: str) -> None:
        said.append((time.monotonic(), text))

    def check(request) -> None:  # type: ignore[no-untyped-def]
        if request.is_navigation_request():
            leave()
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            outside.append(request.url)

    def opened(url: str):  # type: ignore[no-untyped-def]
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", check)
        page.on("load", leave)
        page.on("console", lambda message: heard(f"{message.text} {message.location['url']}")
                if message.type == "error" else None)  # fmt: skip
        page.on("pageerror", lambda error: heard(str(error)))
        page.goto(url)
        return page

    yield opened
    leave()
    for context in contexts:
        context.close()
    assert not outside, f"requests left this machine: {outside}"
    errors = [
        text for at, text in said
        if not (CUT_OFF.search(text) and any(-1 < at - gone < LEAVING_SECONDS for gone in left))
    ]  # fmt: skip
    assert not errors, f"errors in the browser's console: {errors}"
