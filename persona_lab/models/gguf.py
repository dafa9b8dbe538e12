"""GGUF files: a bounded look at the header, and conversion (once) to a folder of safetensors.

The look needs no library and trusts nothing: every count and length is checked against the file before it is used.
Conversion imports torch and transformers and belongs in a worker.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import BadModel, OutOfMemory

if TYPE_CHECKING:
    from persona_lab.api import Reporter

MAX_ENTRIES = 65_536  # metadata keys, or tensors; real models have under 5,000
MAX_ARRAY = 4_000_000  # elements of one array; the largest vocabularies have about 260,000
MAX_STRING = 16_000_000
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
GGUF_TRAITS = "gguf_traits.json"
"""In a converted folder: what the file said of its tokenizer that transformers' files have no place for."""

KEPT_TRAITS = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")


@dataclass
class GGUFHeader:
    """Scalar metadata, the lengths of array metadata, and the number of parameters."""

    metadata: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    parameters: int = 0

    def config(self) -> dict[str, Any]:
        """What transformers would call the main fields of config.json, for estimates before conversion."""
        architecture = str(self.metadata.get("general.architecture", ""))
        names = {
            "num_hidden_layers": "block_count",
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv",
            "max_position_embeddings": "context_length",
        }
        found = {ours: self.metadata.get(f"{architecture}.{theirs}") for ours, theirs in names.items()}
        vocabulary = self.lengths.get("tokenizer.ggml.tokens") or self.metadata.get(f"{architecture}.vocab_size")
        found |= {"model_type": architecture, "vocab_size": vocabulary}
        return {name: value for name, value in found.items() if value is not None}


class _Cursor:
    """Reads values from a mapped file, never past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> Any:
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise ValueError("the file ends inside its header")
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += size
        return value

    def count(self, limit: int, what: str) -> int:
        value: int = self.take("<Q")
        if value > limit:
            raise ValueError(f"it claims {value} {what}")
        return value

    def skip(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise ValueError("the file ends inside its header")
        self.at += size

    def text(self) -> str:
        size = self.count(MAX_STRING, "bytes of text in one value")
        start = self.at
        self.skip(size)
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A scalar or text; of an array only the length, as a tuple of one number."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return (self.array(),)
        if kind not in SCALARS:
            raise ValueError(f"unknown value type {kind}")
        return self.take(SCALARS[kind])

    def array(self) -> int:
        kind = self.take("<I")
        length = self.count(MAX_ARRAY, "elements in one list")
        if kind == STRING:
            for _ in range(length):
                self.skip(self.count(MAX_STRING, "bytes of text in one value"))
        elif kind in SCALARS:
            self.skip(length * struct.calcsize(SCALARS[kind]))
        else:
            raise ValueError(f"a list of value type {kind}")
        return length


def read_gguf(path: Path) -> GGUFHeader:
    """The header of a GGUF file (versions 2 and 3, little endian).

    Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
        BadModel: it is not a GGUF file, is cut short, or its counts are absurd.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with the letters GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_header(_Cursor(data))
    except (OSError, ValueError, struct.error) as error:
        raise BadModel(
            f"{path} is not a usable GGUF file: {error}.", "Download it again, or choose another file."
        ) from error


def _read_header(cursor: _Cursor) -> GGUFHeader:
    cursor.skip(4)
    version = cursor.take("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}, while 2 and 3 are known")
    tensors = cursor.count(MAX_ENTRIES, "tensors")
    entries = cursor.count(MAX_ENTRIES, "metadata entries")
    header = GGUFHeader()
    for _ in range(entries):
        name = cursor.text()
        value = cursor.value(cursor.take("<I"))
        if isinstance(value, tuple):
            header.lengths[name] = value[0]
        else:
            header.metadata[name] = value
    last = 0
    for _ in range(tensors):
        shape, offset = _tensor(cursor)
        header.parameters += math.prod(shape)
        last = max(last, offset)
    if tensors == 0 or "general.architecture" not in header.metadata:
        raise ValueError("it holds no model (no tensors, or no architecture)")
    if cursor.at + last >= len(cursor.data):
        raise ValueError("its last tensors are missing: the file is cut short")
    return header


def _tensor(cursor: _Cursor) -> tuple[list[int], int]:
    cursor.text()
    dimensions = cursor.take("<I")
    if dimensions > 8:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    shape = [cursor.count(1 << 40, "numbers in one dimension") for _ in range(dimensions)]
    cursor.take("<I")
    return shape, cursor.take("<Q")


def convert_gguf(source: Path, folder: Path, reporter: Reporter) -> None:
    """Write `source` as a transformers folder: bf16 safetensors, config, tokenizer.json, chat template.

    Raises:
        BadModel: an architecture that transformers cannot read from GGUF, or no chat template. OutOfMemory
    """
    header = read_gguf(source)
    if "tokenizer.chat_template" not in header.metadata:
        raise BadModel(
            f"{source} has no chat template, so it is not known how turns are written for it.",
            "Choose an instruct or chat model.",
        )
    reporter.phase(f"Converting {source.name}", 3)
    _quiet_libraries()
    try:
        _convert_weights(source, folder)
        reporter.step(1, 3)
        _convert_tokenizer(source, folder, header)
        reporter.step(2, 3)
    except MemoryError as error:
        raise OutOfMemory(f"There is not enough memory to convert {source.name}.", "Choose a smaller model.") from error
    except (ValueError, KeyError, NotImplementedError) as error:
        architecture = header.metadata["general.architecture"]
        raise BadModel(
            f"{source.name} ({architecture}) cannot be converted: {str(error).splitlines()[0]}.",
            "Choose the same model as safetensors (a hub id or a folder).",
        ) from error
    _tidy_config(folder)
    reporter.step(3, 3)


def _quiet_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _convert_weights(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        # without dequantize=True the model cannot be saved
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        trust_remote_code=False,
        local_files_only=True,
    )
    model.save_pretrained(folder)


def _convert_tokenizer(source: Path, folder: Path, header: GGUFHeader) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    length = header.config().get("max_position_embeddings")
    if length:
        tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    traits = {name: value for name, value in header.metadata.items() if name in KEPT_TRAITS}
    (folder / GGUF_TRAITS).write_text(json.dumps(traits, indent=2) + "\n", encoding="utf-8")
    if header.metadata.get("tokenizer.ggml.pre") == "smollm":
        _split_digits(folder / "tokenizer.json")


def _split_digits(path: Path) -> None:
    """Give SmolLM's tokenizer back its first rule, one token a digit, which transformers drops when it reads a GGUF."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _tidy_config(folder: Path) -> None:
    """Undo two traces of GGUF: a title where a path belongs, and epsilons rounded through fp32."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)
    for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"):
        if isinstance(config.get(name), float):
            config[name] = float(f"{config[name]:.6g}")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
