"""Fixtures for plugin authors. In your tests' conftest.py:

pytest_plugins = ["persona_lab.testing.pytest_plugin"]
"""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_lab.testing import Workshop, made_up_persona, make_tiny_model
from persona_lab.types import Persona


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with a real tokenizer and a chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture
def tiny_persona() -> Persona:
    """A small made-up character with one fact."""
    return made_up_persona()


@pytest.fixture
def workshop(tmp_path: Path, tiny_model: Path) -> Workshop:
    """A data home with the tiny model, a persona, and every installed plugin, where parts run as in a worker."""
    return Workshop(tmp_path, base=tiny_model)
