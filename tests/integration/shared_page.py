"""A page that is shared, in a process of its own: a home with two tiny variants, a login, and doors for three roles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from persona_lab.engine import Engine
from persona_lab.home import Home
from persona_lab.types import Variant

REPOSITORY = Path(__file__).resolve().parents[2]
PUBLIC = "https://lab.example.org"
READY_SECONDS = 120


def fill(home: Home, model: Path, variants: int = 2) -> None:
    """Persona `tam` with variants `tam-1`, `tam-2`, ...: a base under a card, as if they had been trained."""
    card = home.root / "tam.json"
    card.write_text(json.dumps({"name": "Tam", "description": "A mender of clocks.", "first_mes": "Tick, {{user}}."}))
    with Engine.open(home.root) as engine:
        engine.import_persona(card, "tam")
        for number in range(1, variants + 1):
            variant = Variant(
                id=f"tam-{number}", name=f"Tam {number}", persona="tam", base=str(model), strategy="prompt",
                kind="prompt", system=f"You are Tam the {number}.",
            )  # fmt: skip
            home.variant(variant.id).mkdir(parents=True)
            (home.variant(variant.id) / "variant.json").write_text(variant.model_dump_json())
        engine.catalog.recover()


@dataclass
class SharedPage:
    """`python app.py` with a login, behind the public address `PUBLIC` unless `options` say otherwise."""

    home: Path
    options: tuple[str, ...] = ("--public-url", PUBLIC)
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""
    password: str = ""
    told: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self) -> SharedPage:
        """Start it and wait until it answers."""
        command = [sys.executable, "-u", "app.py", "--home", str(self.home), "--port", "0", "--no-browser"]
        self.process = subprocess.Popen(
            [*command, *self.options], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | self.environment,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()
        end = time.monotonic() + READY_SECONDS
        while not self.url:
            if time.monotonic() > end or self.process.poll() is not None:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the page did not start: {self.told}")
            time.sleep(0.1)
        found = re.search(r"Your password is (\S+)", "".join(self.told))
        self.password = found[1] if found else self.password
        return self

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line)
            if found := re.search(r"ready at (http://(?:127\.0\.0\.1|localhost):\d+)", line):
                self.url = found[1]

    def stop(self) -> int:
        """TERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def share(self, *arguments: str) -> dict[str, object]:
        """`persona-lab share ARGUMENTS --json`, in another process beside the page."""
        command = [sys.executable, "-m", "persona_lab.cli", "share", *arguments, "--home", str(self.home), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=REPOSITORY)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def nobody(self, **headers: str) -> httpx.Client:
        """A browser that knows nothing."""
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    @contextmanager
    def owner(self, **headers: str) -> Iterator[httpx.Client]:
        """A browser in which the owner is logged in."""
        with self.nobody(**headers) as client:
            reply = client.post("/login", data={"password": self.password, "user": "ann"})
            assert reply.status_code == 303, (reply.status_code, reply.text)
            yield client

    @contextmanager
    def guest(self, path: str, **headers: str) -> Iterator[httpx.Client]:
        """A browser in which a link was opened."""
        with self.nobody(**headers) as client:
            reply = client.post(path)
            assert reply.status_code == 303, (reply.status_code, reply.text)
            yield client


def running(folder: Path, model: Path) -> Iterator[SharedPage]:
    """A page over a home with `tam` in a folder; it must end well."""
    home = Home.resolve(folder / "home")
    fill(home, model)
    started = SharedPage(home.root).start()
    yield started
    assert started.stop() == 0


def say(client: httpx.Client, text: str) -> tuple[int, list[dict[str, object]]]:
    """Say something as a guest: the status, and every line of the answer (the refusal as the only one)."""
    with client.stream("POST", "/guest/say", json={"text": text}) as reply:
        reply.read() if reply.status_code != 200 else None
        if reply.status_code != 200:
            return reply.status_code, [reply.json()]
        return 200, [json.loads(line) for line in reply.iter_lines() if line]


def said(lines: list[dict[str, object]], pane: int = 0) -> str:
    """What a pane was told in all."""
    return "".join(str(line.get("text", "")) for line in lines if line.get("pane") == pane)
