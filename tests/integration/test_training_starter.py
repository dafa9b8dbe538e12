"""Training on the real starter: it learns a voice nobody here wrote, within minutes, by the paths meant for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.datasets.store import save_dataset
from persona_lab.evaluation.probes import reply_probes
from persona_lab.home import Home
from persona_lab.inference.decoding import generate
from persona_lab.inference.loading import VariantHost
from persona_lab.inference.prompting import messages_for
from persona_lab.inference.trait_files import KeptTrait, write_kept
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.plugins import Plugins
from persona_lab.training.run import run
from persona_lab.traits import library
from persona_lab.traits.contrast import contrast
from persona_lab.types import Conversation, Dataset, Job, Message, Sampling, TraitCalibration, Variant, now


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

    def go(strategy: str, watcher: Watcher, run_id: str = "", **config: Any) -> Any:
        job = Job(
            id=run_id or f"run-{strategy}",
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


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine needs many times what an idle one does
def test_pulled_to_modern_and_back_it_is_what_it_was(
    train: Callable[..., Any],
    starter_home: Home,
    test_data: Path,
    tmp_path: Path,
    specificity_of: Callable[..., dict[str, float]],
) -> None:
    """The slider "archaic" at -100 and back at 0: the same logits and the same specificity, bit by bit."""
    result = train("lora", Watcher(), run_id="run-pulled", epochs=1, evaluations_per_epoch=1, samples=0)
    trained = Variant(
        id="goring", name="goring", persona="goring", base="starter", strategy="lora", kind="adapter",
        path=result["artifact"]["path"], system=result["system"],
    )  # fmt: skip
    host = VariantHost(registry.describe("starter", starter_home), worker_machine(starter_home.root), starter_home)
    renderer = ChatRenderer(starter_home.model("starter"))
    archaic = library.trait(starter_home, "archaic")
    with host.model_for(None) as model:
        vector = contrast(model, renderer, archaic, 0, lambda: None)[20].numpy()
    found = TraitCalibration(layers=(20,), towards=0.8, away=0.8, unsteered_bits_per_byte=0.5, unsteered_repetition=0.0)
    write_kept(tmp_path / "archaic.safetensors", KeptTrait(archaic, found, {20: vector}))
    rows = [json.loads(line) for line in (test_data / "lord_goring" / "pairs.jsonl").read_text().splitlines()]
    others = (test_data / "lord_goring" / "other_characters.jsonl").read_text().splitlines()
    conversations = [
        Conversation(
            id=row["id"], split="test",
            messages=(Message(role="user", content=row["user"]), Message(role="assistant", content=row["assistant"])),
        )
        for row in rows if row["split"] == "test"
    ]  # fmt: skip
    lines = tuple(json.loads(line)["text"] for line in others)
    dataset = Dataset(id="g", persona="goring", version=1, name="g", conversations=conversations, others=lines)
    probes = reply_probes(dataset)[:12]

    def state(pull: float | None) -> tuple[torch.Tensor, dict[str, float]]:
        changes = {} if pull is None else {"traits": {"archaic": pull}, "steering": str(tmp_path)}
        who = trained.model_copy(update=changes)
        ids = torch.tensor([renderer.prompt_ids(messages_for(who, probes[0].messages))])
        with host.model_for(who) as model, torch.no_grad():
            logits = model(input_ids=ids).logits.clone()
            said = generate(model, renderer, [messages_for(who, probes[0].messages)], Sampling(max_new_tokens=12))
        assert said[0].text.strip()
        return logits, specificity_of(host, renderer, who, probes)

    before, modern, back, without = state(None), state(-100), state(0), state(None)
    assert not torch.equal(before[0], modern[0])
    assert before[1]["mean"] != modern[1]["mean"]
    for logits, specificity in (back, without):
        assert torch.equal(logits, before[0])
        assert specificity == before[1]
