"""Training on the real starter: it learns a voice nobody here wrote, within minutes, by the paths meant for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.datasets.store import save_dataset
from persona_lab.home import Home
from persona_lab.plugins import Plugins
from persona_lab.training.run import run
from persona_lab.types import Conversation, Dataset, Job, Message, now


class Watcher:
    """A reporter that keeps what matters here."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.events: list[Any] = []

    def phase(self, title: str, total: int | None = None) -> None: ...

    def step(self, step: int, total: int, **values: Any) -> None: ...

    def log(self, message: str, level: str = "info") -> None:
        self.said.append(message)

    def emit(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture
def train(starter_home: Home, test_data: Path, persona_factory: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a strategy on the starter with a small part of the play's lines."""
    rows = [json.loads(line) for line in (test_data / "lord_goring" / "pairs.jsonl").read_text().splitlines()][:72]
    conversations = tuple(
        Conversation(
            id=row["id"],
            messages=(Message(role="user", content=row["user"]), Message(role="assistant", content=row["assistant"])),
            split="validation" if number % 6 == 0 else "train",
        )
        for number, row in enumerate(rows)
    )
    dataset = Dataset(id="g", persona="goring", version=1, name="lines", conversations=conversations)
    save_dataset(starter_home.root / "g.jsonl", dataset)
    persona = persona_factory("goring", "Lord Goring", description="{{char}} is a witty, idle London dandy of 1895.")

    def go(strategy: str, watcher: Watcher, **config: Any) -> Any:
        job = Job(
            id=f"run-{strategy}",
            kind="train",
            name="test",
            home=str(starter_home.root),
            created=now(),
            persona=persona,
            dataset=str(starter_home.root / "g.jsonl"),
            strategy=strategy,
            config=config,
        )
        return run(job, watcher, Plugins.load())

    return go


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "config"),
    [
        ("lora", {}),
        ("full", {}),
        ("hybrid", {"map_conversations": 2}),
        ("qlora", {}),
    ],
)
def test_the_starter_learns_the_voice(strategy: str, config: dict[str, Any], train: Callable[..., Any]) -> None:
    watcher = Watcher()
    result = train(strategy, watcher, epochs=1, evaluations_per_epoch=1, samples=1, **config)
    loss = result["loss"]
    assert loss["validation_after"] < loss["validation_before"] - 0.1
    assert not [text for text in watcher.said if "is not used" in text]
    assert result["changed"].startswith("Yes:")
    assert result["total_parameters"] > 134_000_000
    if strategy == "hybrid":
        assert len(result["artifact"]["details"]["chosen"]) == 8


@pytest.mark.slow
def test_examples_in_the_prompt_are_measured(train: Callable[..., Any]) -> None:
    result = train("prompt", Watcher(), choose="fixed")
    assert len(result["artifact"]["examples"]) == 4
    assert result["loss"]["validation_after"] != result["loss"]["validation_before"]
