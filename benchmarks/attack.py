"""A scripted attacker against a shared page, with the owner's poll timed all the while.

    python benchmarks/attack.py [--scale 1.0] [--out docs/sharing.json]

Starts the real page over a home of its own with a tiny random model, logs the owner in, opens a link as a guest, and
then attacks in every way of `ATTACKS`, as nobody and as that guest. Each attack counts what was sent, what was refused,
and what got through that should not have. The owner's poll is what an open page asks for at every tick of its clock
(all of its tick handlers through gradio's queue), timed from the first request to the last answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from attack_ways import ATTACKS, MESSAGES_A_MINUTE, Outcome, Target  # noqa: E402
from common import command, machine, p95  # noqa: E402
from shared_page import SharedPage, fill  # noqa: E402

POLL_PAUSE = 0.25


class Poll:
    """One owner's open page: every tick handler of it."""

    def __init__(self, owner: httpx.Client) -> None:
        self.owner = owner
        config = owner.get("/config").raise_for_status().json()
        props = {part["id"]: part for part in config["components"]}
        self.ticks = [
            (tick["id"], [_value(props[part]) for part in tick["inputs"]])
            for tick in config["dependencies"]
            if any(target[1] == "tick" for target in tick["targets"])
        ]
        assert self.ticks, "the page has no clock"
        self.session = os.urandom(6).hex()

    def once(self) -> float:
        """One tick; seconds until all of it was answered."""
        began = time.monotonic()
        waiting = set()
        for number, data in self.ticks:
            body = {"data": data, "fn_index": number, "session_hash": self.session, "trigger_id": None}
            reply = self.owner.post("/gradio_api/queue/join", json=body)
            waiting.add(reply.raise_for_status().json()["event_id"])
        with self.owner.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                said_now = json.loads(line[5:])
                if said_now.get("msg") == "process_completed":
                    waiting.discard(said_now["event_id"])
                if not waiting:
                    break
        if waiting:
            raise ValueError(f"{len(waiting)} handlers were not answered")
        return time.monotonic() - began


def _value(part: dict[str, Any]) -> Any:
    return None if part["type"] == "state" else part["props"].get("value")


def poll_for_ever() -> None:
    """The process that polls: prints the number of handlers, then the seconds of each poll. Its own, so that what the
    attacker's interpreter is busy with does not count as the page's."""
    with httpx.Client(
        base_url=os.environ["POLL_URL"], headers={"cookie": os.environ["POLL_COOKIE"]}, timeout=60
    ) as owner:
        poll = Poll(owner)
        print(len(poll.ticks), flush=True)
        while True:
            try:
                print(f"{poll.once():.4f}", flush=True)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                print(f"failed {error!r}", flush=True)
            time.sleep(POLL_PAUSE)


class Poller:
    """`poll_for_ever` in a process, and what it said so far."""

    def __init__(self, page: SharedPage, owner: httpx.Client) -> None:
        cookie = "; ".join(f"{name}={value}" for name, value in owner.cookies.items())
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--poll"], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"POLL_URL": page.url, "POLL_COOKIE": cookie},
        )  # fmt: skip
        self.times: list[float] = []
        self.failed: list[str] = []
        assert self.process.stdout is not None
        self.handlers = int(self.process.stdout.readline())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.failed.append(line.strip()) if line.startswith("failed") else self.times.append(float(line))

    def __enter__(self) -> Poller:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._thread.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def campaign(page: SharedPage, scale: float = 1.0) -> dict[str, Any]:
    """Every attack on a running page; what came of it, and the owner's poll before and during."""
    made = page.share("create", "--persona", "tam", "--variant", "tam-1", "--limit", "reply_tokens=12",
                      "--limit", f"messages_a_minute={MESSAGES_A_MINUTE}")  # fmt: skip
    link = str(made["path"])
    assert page.process is not None
    process = psutil.Process(page.process.pid)
    outcomes = []
    with page.nobody() as owner, page.guest(link) as guest:
        owner.get(str(page.share("login-link")["path"]))
        cookie = "; ".join(f"{name}={value}" for name, value in guest.cookies.items())
        with Poller(page, owner) as poller:
            while len(poller.times) < max(5, 30 * scale) and not poller.failed:
                time.sleep(0.1)
            quiet = list(poller.times)
            before = process.memory_info().rss
            for attack in ATTACKS:
                outcome = Outcome(attack.__name__)
                first, began = len(poller.times), time.monotonic()
                attack(Target(page, cookie, link, scale), outcome)
                while len(poller.times) < first + 2 and not poller.failed:  # a short attack is still polled through
                    time.sleep(0.1)
                during = poller.times[first:]
                outcome.seconds = round(time.monotonic() - began, 1)
                outcome.polls, outcome.poll_p95, outcome.poll_worst = _times(during).values()
                outcome.through = outcome.through[:20]
                outcome.page_bytes = process.memory_info().rss
                outcomes.append(outcome)
                print(json.dumps(asdict(outcome)), file=sys.stderr, flush=True)
        config = owner.get("/config").status_code
        whole = poller.times[len(quiet) :]
    return {
        "attacks": [asdict(outcome) for outcome in outcomes],
        "poll": {
            "handlers": poller.handlers,
            "quiet": _times(quiet),
            "attacked": _times(whole),
            "failed": poller.failed,
        },
        "memory_bytes": {"before": before, "after": process.memory_info().rss},
        "owner_still_in": config == 200,
    }


def _times(seconds: list[float]) -> dict[str, Any]:
    """How many polls, their 95th percentile and the slowest, in seconds."""
    middle = p95(seconds)
    return {
        "polls": len(seconds),
        "p95": None if middle is None else round(middle, 3),
        "worst": round(max(seconds), 3) if seconds else None,
    }


def main() -> None:
    """Run the campaign and write its document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--poll", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.poll:
        poll_for_ever()
    from persona_lab.home import Home
    from persona_lab.testing import make_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        home = Home.resolve(Path(folder) / "home")
        model = make_tiny_model(Path(folder) / "tiny", "llama")
        fill(home, model)
        page = SharedPage(home.root).start()
        try:
            found = campaign(page, options.scale)
        finally:
            page.stop()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    head = {
        "command": command(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "machine": machine(),
        "scale": options.scale,
    }
    text = json.dumps(head | found, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
