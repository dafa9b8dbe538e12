"""Many guests chatting at once with a shared page while the owner's training goes on.

    python benchmarks/guests.py [--guests 50] [--minutes 5] [--warm 0] [--base starter] [--out FILE]

Each guest says something, reads the reply to its end, thinks for a few seconds and goes on; what a guest is told is
counted. The clock starts when the training makes steps and one reply was written: what is loaded once is loaded then.
The chat worker keeps keys and values of earlier turns, 256 MB at most; `--warm` minutes before the clock starts let the
guests fill that first: with the starter and fifty guests on two cores six are enough and two are not. A tiny random
model, whose turns are small, takes longer.

It claims three things, and ends with 1 where one of them does not hold (or was not measured):
- no guest was told of an error: replies, "busy, position N", and the end of a conversation of many turns are none;
- the memory of the page's process and of its chat worker grew by less than 5%: the last quarter's median over the
  second quarter's, read every second;
- the training made steps in every 30 seconds, counted while the guests talked. It runs in a process of its own, which
  was started before the page; more of it waits in the queue, so that it does not end too soon.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from common import command, fresh_folder, machine, p95  # noqa: E402
from shared_page import SharedPage, fill  # noqa: E402

from persona_lab.engine import Engine  # noqa: E402
from persona_lab.events import read_events  # noqa: E402
from persona_lab.home import Home  # noqa: E402
from persona_lab.jobs import ACTIVE  # noqa: E402
from persona_lab.testing import make_tiny_model  # noqa: E402

SAMPLE_SECONDS = 1.0
WINDOW_SECONDS = 30.0
MOST_GROWTH = 5.0
"""Percent."""
FIRST_STEP_SECONDS = 600.0
STOP_SECONDS = 120.0
THINKING = (2.0, 8.0)
WORDS = ("What time is it?", "Tell me about your work.", "Why?", "Do you like rain?", "Who taught you that?")
STRATEGY = "hybrid"
TRAINING = {"lora_epochs": 100, "epochs": 100, "samples": 0, "patience": 1000, "batch_size": 1}
"""As long as one can be: two stages in one process."""
TRAININGS = 4
"""One runs, the others wait."""


@dataclass
class Crowd:
    """What the guests were told, and what was seen meanwhile."""

    told: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    answered: set[int] = field(default_factory=set)
    """The guests who had a reply."""
    replies: list[float] = field(default_factory=list)
    """Seconds from sending to the last word."""
    longest_place: int = 0
    memory: dict[str, list[int]] = field(default_factory=lambda: {"page": [], "chat_worker": []})
    """Resident bytes."""
    steps: list[int] = field(default_factory=list)
    """Of the training, in each window."""


class Steps:
    """Counts the steps of some runs as they are written."""

    def __init__(self, home: Home, runs: list[str]) -> None:
        self._files = {home.run(run) / "events.jsonl": 0 for run in runs}

    def new(self) -> int:
        """How many there are since it was asked last."""
        count = 0
        for file, offset in self._files.items():
            events, self._files[file] = read_events(file, offset)
            count += sum(event.kind == "step" and event.loss is not None for event in events)
        return count


# --- the guests -----------------------------------------------------------------------------------


async def guest(url: str, path: str, until: float, crowd: Crowd, seed: int) -> None:
    """One guest, until the time is over. What breaks on the way is an error that this guest was told of."""
    dice = random.Random(seed)
    # shorter than the page keeps an idle connection: one that it has just closed must not be used again
    limits = httpx.Limits(keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        reply = await client.post(path)
        if reply.status_code != 303:
            crowd.errors[f"not let in: {reply.status_code}"] += 1
            return
        await asyncio.sleep(dice.uniform(0, THINKING[1]))
        while time.monotonic() < until:
            try:
                await talk(client, crowd, dice, seed)
            except (httpx.HTTPError, ValueError) as error:
                crowd.errors[f"broken: {type(error).__name__} {error}"] += 1
            await asyncio.sleep(min(dice.uniform(*THINKING), max(0.0, until - time.monotonic())))


async def talk(client: httpx.AsyncClient, crowd: Crowd, dice: random.Random, seed: int) -> None:
    """A message and its reply."""
    began = time.monotonic()
    async with client.stream("POST", "/guest/say", json={"text": dice.choice(WORDS)}) as reply:
        if reply.status_code == 200:
            await _read(reply, crowd, seed)
            crowd.replies.append(time.monotonic() - began)
            return
        said = json.loads(await reply.aread())
    if "position" in said:
        crowd.told["busy, and nobody else may wait"] += 1
    elif said.get("full"):
        crowd.told["a conversation at its end"] += 1
        await client.post("/guest/new", json={})
    else:
        crowd.errors[f"{reply.status_code}: {said.get('error')}"] += 1


async def _read(reply: httpx.Response, crowd: Crowd, seed: int) -> None:
    place, words, failed, done = 0, False, False, False
    async for line in reply.aiter_lines():
        heard = json.loads(line)
        place = max(place, int(heard.get("position", 0)))
        words, done = words or bool(heard.get("text")), done or bool(heard.get("done"))
        if heard.get("error"):
            failed = True
            crowd.errors[str(heard["error"])] += 1
    if not done and not failed:
        crowd.errors["the reply broke off"] += 1
    elif not failed:
        crowd.told["answered" if words else "an empty reply"] += 1
        crowd.answered.add(seed)
    crowd.told["busy, position N"] += bool(place)
    crowd.longest_place = max(crowd.longest_place, place)


# --- what is seen meanwhile -----------------------------------------------------------------------


async def watch(page: psutil.Process, steps: Steps, begin: float, until: float, crowd: Crowd) -> None:
    """Memory every second, steps of the training every WINDOW_SECONDS (the last window may be cut off: left out)."""
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    steps.new()
    window = time.monotonic() + WINDOW_SECONDS
    while (moment := time.monotonic()) < until + SAMPLE_SECONDS:
        if moment >= window:
            crowd.steps.append(steps.new())
            window += WINDOW_SECONDS
        if moment < until:
            crowd.memory["page"].append(page.memory_info().rss)
            crowd.memory["chat_worker"] += _chat_worker(page)
        await asyncio.sleep(SAMPLE_SECONDS)


def _chat_worker(page: psutil.Process) -> list[int]:
    """Its resident bytes, if there is one."""
    for process in page.children(recursive=True):
        try:
            if any("chat_worker" in word for word in process.cmdline()):
                return [process.memory_info().rss]
        except psutil.Error:  # it ended just now
            continue
    return []


def growth(samples: list[int]) -> dict[str, float] | None:
    """The last quarter's median over the second quarter's; None of too few samples."""
    if len(samples) < 8:
        return None
    quarter = len(samples) // 4
    early, late = statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])
    return {"early_bytes": early, "late_bytes": late, "growth_percent": round(100 * (late / early - 1), 2)}


def claims(found: dict[str, Any]) -> dict[str, bool]:
    """Which of the claims hold."""
    grown = found["memory"].values()
    return {
        "no guest was told of an error": found["replies"] > 0 and not found["errors"],
        "memory is flat": all(one is not None and one["growth_percent"] < MOST_GROWTH for one in grown),
        "the training went on": bool(found["steps_a_window"]) and all(found["steps_a_window"]),
    }


# --- the run --------------------------------------------------------------------------------------


def measure(guests: int, minutes: float, folder: Path, base: str = "", warm: float = 0.0) -> dict[str, Any]:
    """The crowd on a page of its own.

    Args:
        warm: minutes that the guests talk before memory and steps are looked at.
        base: a base model that is ready in the default home; empty: a tiny random one.
    """
    home = Home.resolve(folder / "home")
    if base:
        home.model(base).parent.mkdir(parents=True, exist_ok=True)
        home.model(base).symlink_to(Home.resolve().model(base), target_is_directory=True)
    model = base or str(make_tiny_model(folder / "tiny", "llama"))
    fill(home, Path(model))
    with Engine.open(home.root) as engine:
        engine.persona("nan_tolliver")
        runs = [engine.train("nan_tolliver", STRATEGY, base=model, settings=TRAINING, seed=n) for n in range(TRAININGS)]
    crowd = Crowd()
    page = SharedPage(home.root)
    try:
        page.start()
        _first_step(home, runs)
        asyncio.run(_play(page, guest_link(page, guests), Steps(home, runs), guests, minutes, crowd, warm))
    finally:
        if page.process is not None and page.process.poll() is None:
            page.stop()
        stopped = _stop(home, runs)
    middle = p95(crowd.replies)
    found = {
        "guests": guests,
        "minutes": minutes,
        "warm_minutes": warm,
        "base": base or "a tiny random model",
        "told": dict(crowd.told),
        "errors": dict(crowd.errors),
        "replies": len(crowd.replies),
        "guests_answered": len(crowd.answered),
        "longest_place": crowd.longest_place,
        "reply_seconds": {
            "median": round(statistics.median(crowd.replies), 2) if crowd.replies else None,
            "p95": None if middle is None else round(middle, 2),
        },
        "memory": {name: growth(samples) for name, samples in crowd.memory.items()},
        "steps_a_window": crowd.steps,
        "window_seconds": WINDOW_SECONDS,
        "trainings_at_the_end": stopped,
    }
    return found | {"claims": claims(found)}


def guest_link(page: SharedPage, guests: int) -> str:
    """A link that lets so many in, and is never used up."""
    limits = {"messages_a_minute": 60, "tokens": 10_000_000, "link_tokens": 1_000_000_000, "guests": guests + 1}
    options = [part for key, value in limits.items() for part in ("--limit", f"{key}={value}")]
    both = ("--variant", "tam-1", "--variant", "tam-2", "--limit", "reply_tokens=40")
    return str(page.share("create", "--persona", "tam", *both, *options)["path"])


async def _play(
    page: SharedPage, link: str, steps: Steps, guests: int, minutes: float, crowd: Crowd, warm: float
) -> None:
    first = Crowd()
    await guest(page.url, link, time.monotonic() + THINKING[1] + 1, first, -1)  # loads what is loaded once
    if first.errors or not first.answered:
        raise SystemExit(f"The first guest was not answered: {dict(first.errors)}")
    assert page.process is not None
    begin = time.monotonic() + 60 * warm
    until = begin + 60 * minutes
    people = [guest(page.url, link, until, crowd, seed) for seed in range(guests)]
    await asyncio.gather(watch(psutil.Process(page.process.pid), steps, begin, until, crowd), *people)


def _first_step(home: Home, runs: list[str]) -> None:
    steps, end = Steps(home, runs), time.monotonic() + FIRST_STEP_SECONDS
    while not steps.new():
        if time.monotonic() > end:
            raise SystemExit(f"The training made no step within {FIRST_STEP_SECONDS:.0f} s.")
        time.sleep(0.5)


def _stop(home: Home, runs: list[str]) -> list[str]:
    """End the trainings; what they were until then. The page's engine is closed."""
    with Engine.open(home.root) as engine:
        states = [engine.run(run).status for run in runs]
        for run in reversed(runs):  # those that wait first: none of them is started meanwhile
            if engine.run(run).status in ACTIVE:
                engine.stop(run)
        end = time.monotonic() + STOP_SECONDS
        while any(engine.run(run).status in ACTIVE for run in runs):
            if time.monotonic() > end:
                raise SystemExit(f"The trainings did not stop within {STOP_SECONDS:.0f} s.")
            time.sleep(0.5)
    return states


def main() -> int:
    """Measure and print; 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--warm", type=float, default=0, help="minutes that the guests talk before the clock starts")
    parser.add_argument("--base", default="", help="starter, or nothing for a tiny random model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = [round(value, 1) for value in os.getloadavg()]
    with fresh_folder("persona-lab-guests-") as folder:
        found = measure(options.guests, options.minutes, folder, options.base, options.warm)
    head = {"command": command(), "date": datetime.now(UTC).date().isoformat(), "load": load, "machine": machine()}
    text = json.dumps(head | found, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)
    for claim, holds in found["claims"].items():
        print(f"{claim}: {'yes' if holds else 'NO'}", file=sys.stderr)
    return int(not all(found["claims"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
