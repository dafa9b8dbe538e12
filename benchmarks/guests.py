"""Many guests chatting at once with a shared page while a training goes on.

    python benchmarks/guests.py [--guests 50] [--minutes 5] [--base starter] [--out FILE]

Each guest says something, reads the reply to its end, thinks for a few seconds and goes on; what a guest is told is
counted. The page's memory and its chat worker's are read every few seconds: growth is the last quarter's median over
the second quarter's, since the first loads models and fills caches. The training was started before the page and goes
on in its own process; what counts is that it made steps throughout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
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
from shared_page import SharedPage, fill  # noqa: E402

from persona_lab.engine import Engine  # noqa: E402
from persona_lab.home import Home  # noqa: E402
from persona_lab.testing import make_tiny_model  # noqa: E402

SAMPLE_SECONDS = 3.0
THINKING = (2.0, 8.0)
WORDS = ("What time is it?", "Tell me about your work.", "Why?", "Do you like rain?", "Who taught you that?")


@dataclass
class Crowd:
    """What the guests were told."""

    told: Counter[str] = field(default_factory=Counter)
    replies: list[float] = field(default_factory=list)
    """Seconds from sending to the last word."""
    longest_place: int = 0
    memory: dict[str, list[int]] = field(default_factory=lambda: {"page": [], "chat_worker": []})


async def guest(url: str, path: str, until: float, crowd: Crowd, seed: int) -> None:
    """One guest, until the time is over."""
    dice = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        reply = await client.post(path)
        if reply.status_code != 303:
            crowd.told[f"not let in: {reply.status_code}"] += 1
            return
        await asyncio.sleep(dice.uniform(0, THINKING[1]))
        while time.monotonic() < until:
            await _talk(client, crowd, dice)
            await asyncio.sleep(dice.uniform(*THINKING))


async def _talk(client: httpx.AsyncClient, crowd: Crowd, dice: random.Random) -> None:
    began = time.monotonic()
    async with client.stream("POST", "/guest/say", json={"text": dice.choice(WORDS)}) as reply:
        if reply.status_code != 200:
            said = json.loads(await reply.aread())
            kind = (
                "busy, nobody else may wait" if "position" in said else "go slower" if "seconds" in said else "refused"
            )
            if said.get("full"):
                kind = "a conversation at its end"
                await client.post("/guest/new", json={})
            crowd.told[kind if kind != "refused" else f"error: {reply.status_code} {said}"] += 1
            return
        words = False
        async for line in reply.aiter_lines():
            heard = json.loads(line)
            crowd.longest_place = max(crowd.longest_place, int(heard.get("position", 0)))
            words = words or bool(heard.get("text"))
            if heard.get("error"):
                crowd.told[f"error: {heard['error']}"] += 1
        crowd.told["answered" if words else "an empty reply"] += 1
        crowd.replies.append(time.monotonic() - began)


async def watch(page: psutil.Process, until: float, crowd: Crowd) -> None:
    """Memory, every few seconds."""
    while time.monotonic() < until:
        crowd.memory["page"].append(page.memory_info().rss)
        workers = [p for p in page.children(recursive=True) if "chat_worker" in " ".join(p.cmdline())]
        if workers:
            crowd.memory["chat_worker"].append(workers[0].memory_info().rss)
        await asyncio.sleep(SAMPLE_SECONDS)


def growth(samples: list[int]) -> dict[str, float] | None:
    """The last quarter's median over the second quarter's."""
    if len(samples) < 8:
        return None
    quarter = len(samples) // 4
    early, late = statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])
    return {"early_bytes": early, "late_bytes": late, "growth_percent": round(100 * (late / early - 1), 2)}


def measure(guests: int, minutes: float, folder: Path, base: str = "") -> dict[str, Any]:
    """The crowd on a page of its own.

    Args:
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
        run = engine.train("nan_tolliver", "lora", base=model, settings={"epochs": 50, "samples": 0, "patience": 0})
    page = SharedPage(home.root).start()
    try:
        limits = {"messages_a_minute": 60, "tokens": 10_000_000, "link_tokens": 1_000_000_000, "guests": guests}
        options = [part for key, value in limits.items() for part in ("--limit", f"{key}={value}")]
        both = ("--variant", "tam-1", "--variant", "tam-2", "--limit", "reply_tokens=40")
        link = str(page.share("create", "--persona", "tam", *both, *options)["path"])
        crowd = Crowd()
        assert page.process is not None
        until = time.monotonic() + 60 * minutes
        steps = [_steps(home, run)]

        async def play() -> None:
            process = psutil.Process(page.process.pid)  # type: ignore[union-attr]
            people = [guest(page.url, link, until, crowd, seed) for seed in range(guests)]
            await asyncio.gather(watch(process, until, crowd), *people)

        asyncio.run(play())
        steps.append(_steps(home, run))
    finally:
        page.stop()
        with Engine.open(home.root) as engine:
            status = engine.run(run).status
            if status in ("running", "queued"):
                engine.stop(run)
                engine.wait(run)
    ordered = sorted(crowd.replies)
    return {
        "guests": guests,
        "minutes": minutes,
        "base": base or "a tiny random model",
        "told": dict(crowd.told),
        "errors": sum(count for kind, count in crowd.told.items() if kind.startswith(("error", "not let in"))),
        "longest_place": crowd.longest_place,
        "reply_seconds": {
            "median": round(statistics.median(ordered), 2) if ordered else None,
            "p95": round(ordered[int(len(ordered) * 0.95)], 2) if ordered else None,
        },
        "memory": {name: growth(samples) for name, samples in crowd.memory.items()},
        "training": {"status_at_the_end": status, "steps_before": steps[0], "steps_after": steps[1]},
    }


def _steps(home: Home, run: str) -> int:
    file = home.run(run) / "events.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines() if '"step"' in line] if file.exists() else []
    return max((event["step"] for event in found if event.get("kind") == "step"), default=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--guests", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--base", default="", help="starter, or nothing for a tiny random model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = [round(value, 1) for value in os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.guests, options.minutes, Path(folder), options.base)
    head = {
        "command": f"python benchmarks/guests.py --guests {options.guests} --minutes {options.minutes:g}"
        + (f" --base {options.base}" if options.base else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "load": load,
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
    }
    text = json.dumps(head | found, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
