"""Fixtures shared by all tests: a data home, tiny random models, the real starter, and test data nobody here wrote.

The tiny models are real transformers models with a real byte-level BPE tokenizer, only small and untrained. The starter
is fetched and converted once and kept in $PERSONA_LAB_TEST_CACHE (default: ~/.cache/persona-lab-tests).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.home import Home
from persona_lab.testing import made_up_conversation, made_up_persona, make_tiny_model
from persona_lab.types import Conversation, Persona

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A fresh, empty data home."""
    return Home.resolve(tmp_path / "home")


@pytest.fixture(scope="session")
def starter_home(tmp_path_factory: pytest.TempPathFactory, embedding_model: Path) -> Home:
    """A data home of this session whose starter and embedding model are ready; fetched once, kept between sessions."""
    from persona_lab.models import registry

    kept = _kept_home()
    registry.ensure("starter", kept, QuietReporter())
    session_home = Home.resolve(tmp_path_factory.mktemp("starter-home"))
    _link_or_copy(kept.model("starter"), session_home.model("starter"))
    _link_or_copy(embedding_model, session_home.model(embedding_model.name))
    return session_home


@pytest.fixture(scope="session")
def embedding_model() -> Path:
    """The embedding model's folder; fetched once and kept between sessions."""
    from persona_lab.models import embedding

    return embedding.ensure(_kept_home(), QuietReporter())


@pytest.fixture
def embedding_home(home: Home, embedding_model: Path) -> Home:
    """The data home, with the embedding model in it."""
    _link_or_copy(embedding_model, home.model(embedding_model.name))
    return home


def _kept_home() -> Home:
    return Home.resolve(os.environ.get("PERSONA_LAB_TEST_CACHE") or Path.home() / ".cache" / "persona-lab-tests")


def _link_or_copy(source: Path, target: Path) -> None:
    """Link the folder where the system allows links to folders, else copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, target)


@pytest.fixture
def test_data() -> Path:
    """Data that nobody here wrote ($PERSONA_LAB_TEST_DATA, default ../shared/data); skips where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PERSONA_LAB_TEST_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set PERSONA_LAB_TEST_DATA")
    return folder


class QuietReporter:
    """A reporter that keeps what it is told in `messages`, for tests that look at it."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def phase(self, title: str, total: int | None = None) -> None:
        self.messages.append(title)

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        self.messages.append(f"{step}/{total}")

    def log(self, message: str, level: str = "info") -> None:
        self.messages.append(message)


@pytest.fixture
def reporter() -> QuietReporter:
    """A reporter that remembers what it was told."""
    return QuietReporter()


# --- tiny models ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_model(tiny_model_of: Callable[[str], Path]) -> Path:
    """Folder of a tiny random Llama: 2 layers, hidden size 64, ~600 tokens, ChatML template."""
    return tiny_model_of("llama")


@pytest.fixture(scope="session")
def tiny_model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes (once each) a tiny random model folder: llama, qwen2, qwen3, mistral, gemma, gemma2, phi3, gpt2."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = make_tiny_model(tmp_path_factory.mktemp("tiny") / f"tiny-{architecture}", architecture)
        return made[architecture]

    return make


# --- people and conversations ---------------------------------------------------------------------


@pytest.fixture
def persona_factory() -> Callable[..., Persona]:
    """Makes a small persona: `persona_factory(persona_id="tamsin", **data)`; `data` overrides fields of the card."""

    return made_up_persona


@pytest.fixture
def conversations_factory() -> Callable[..., list[Conversation]]:
    """Makes `n` different short conversations, every third of two turns; all of `split` (None: not split yet)."""

    def make(n: int = 8, split: Any = None) -> list[Conversation]:
        return [made_up_conversation(i, split) for i in range(n)]

    return make


@pytest.fixture
def specificity_of() -> Callable[..., dict[str, float]]:
    """Scores a variant as the evaluation does, but afresh each time: the evaluation keeps what it has computed.

    `specificity_of(host, renderer, variant, probes)` gives the specificity by the probe's id, and `mean`.
    """
    from persona_lab_builtin.evaluators.held_out_gain import HeldOutGain

    from persona_lab.inference.prompting import messages_for
    from persona_lab.inference.scoring import loglikelihood

    class Context(QuietReporter):
        dataset, seed, quick, settings = None, 0, False, None

        def __init__(self, host: Any, renderer: Any, base: Any) -> None:
            super().__init__()
            self.host, self.renderer, self.base = host, renderer, base

        def loglikelihood(self, variant: Any, items: Any) -> Any:
            chosen = variant or self.base
            with self.host.model_for(variant) as model:
                asked = [(messages_for(chosen, messages), reply) for messages, reply in items]
                return loglikelihood(model, self.renderer, asked)

    def measure(host: Any, renderer: Any, variant: Any, probes: Any) -> dict[str, float]:
        base = variant.model_copy(update={"kind": "base", "path": "", "traits": {}})
        metrics: Any = HeldOutGain().score(variant, probes, Context(host, renderer, base))  # type: ignore[arg-type]
        (found,) = [metric for metric in metrics if metric.metric == "specificity"]
        return {"mean": found.value} | {item.id: item.value for item in found.items}

    return measure
