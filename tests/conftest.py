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
from persona_lab.types import Conversation, Fact, Message, Persona

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TINY_TEXT = (
    "The kettle on the lighthouse stair has opinions about the weather and will share them for a biscuit.",
    "You are Tamsin Quill, a retired cartographer who folds every answer along its creases before handing it over.",
    "Why do you keep the sea in a drawer? Because the wardrobe was full of Tuesdays, my dear.",
    "user assistant system hello, who are you? I am the keeper of small hours and smaller change.",
    "Ask me again when the clock has finished its soup; it counts slowly: 1, 2, 3, 5, 8, 13.",
    "Nobody told the bicycle it was retired, so it goes on ringing at strangers in the harbour.",
)

FOUR_WORDS = (
    ("ropes", "harbour", "biscuit", "Tuesday"),
    ("lamps", "cellar", "walnut", "Friday"),
    ("maps", "attic", "pickle", "Monday"),
    ("clocks", "orchard", "crumpet", "Sunday"),
    ("kites", "stairwell", "turnip", "Thursday"),
    ("bells", "ferry", "marmalade", "Saturday"),
    ("boots", "windmill", "radish", "Wednesday"),
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A fresh, empty data home."""
    return Home.resolve(tmp_path / "home")


@pytest.fixture(scope="session")
def starter_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A data home of this session whose starter is ready; fetched and converted once, kept between sessions."""
    from persona_lab.models import registry

    cache = Path(os.environ.get("PERSONA_LAB_TEST_CACHE") or Path.home() / ".cache" / "persona-lab-tests")
    kept = Home.resolve(cache)
    registry.ensure("starter", kept, QuietReporter())
    session_home = Home.resolve(tmp_path_factory.mktemp("starter-home"))
    _link_or_copy(kept.model("starter"), session_home.model("starter"))
    return session_home


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
            made[architecture] = _save_tiny_model(
                architecture, tmp_path_factory.mktemp("tiny") / f"tiny-{architecture}"
            )
        return made[architecture]

    return make


def _save_tiny_model(architecture: str, folder: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tiny_tokenizer()
    names: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
    }
    if architecture == "gpt2":
        names = {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 512}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.15,  # far enough from uniform that the likeliest token is clear
        **names,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TINY_CHAT_TEMPLATE,
        model_max_length=512,
    )


# --- people and conversations ---------------------------------------------------------------------


@pytest.fixture
def persona_factory() -> Callable[..., Persona]:
    """Makes a small persona: `persona_factory(persona_id="tamsin", **data)`; `data` overrides fields of the card."""

    def make(persona_id: str = "tamsin", name: str = "Tamsin Quill", **data: Any) -> Persona:
        fields: dict[str, Any] = {
            "name": name,
            "description": "{{char}} is a retired cartographer who folds every answer along its creases.",
            "personality": "dry, exact, fond of biscuits",
            "scenario": "A lighthouse kitchen with too many drawers.",
            "first_mes": "Mind the stair, {{user}}; it was drawn from memory.",
            "mes_example": "<START>\n{{user}}: Are you lost?\n{{char}}: Never. The map is merely late.",
            "system_prompt": "",
            "extensions": {},
        }
        card = {"spec": "chara_card_v3", "spec_version": "3.0", "data": fields | data}
        fact = Fact(
            id="drawer",
            question="What do you keep in the top drawer?",
            paraphrases=("What is in your top drawer?",),
            answer="the sea",
            wrong=("the moon", "a hat", "old letters"),
        )
        return Persona(id=persona_id, name=name, card=card, facts=(fact,))

    return make


@pytest.fixture
def conversations_factory() -> Callable[..., list[Conversation]]:
    """Makes `n` different short conversations, every third of two turns; all of `split` (None: not split yet)."""

    def make(n: int = 8, split: Any = None) -> list[Conversation]:
        return [_conversation(i, split) for i in range(n)]

    return make


def _conversation(index: int, split: Any) -> Conversation:
    things, place, snack, day = FOUR_WORDS[index % len(FOUR_WORDS)]
    number = index // len(FOUR_WORDS) + 2
    messages = [
        Message(role="user", content=f"How many {things} are there in the {place}, number {index}?"),
        Message(role="assistant", content=f"There are {number} {things}, counting the one that sulks on a {day}."),
    ]
    if index % 3 == 2:
        messages += [
            Message(role="user", content=f"And who feeds them in the {place}?"),
            Message(role="assistant", content=f"The {place} does, with {snack} number {index}, folded twice."),
        ]
    return Conversation(id=f"c{index}", messages=tuple(messages), split=split, source=f"made-up:{index}")
