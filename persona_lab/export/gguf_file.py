"""Writes a model folder as one GGUF file that llama.cpp, Ollama, LM Studio and KoboldCpp load.

For Llama-like models (llama, mistral, qwen2, qwen3) with a byte-level BPE tokenizer. Whatever would come out wrong is
refused with a reason. Tensors are read, converted and written one at a time, so memory stays small.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names and order of rows as in llama.cpp's
convert_hf_to_gguf.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from persona_lab.api import Reporter
from persona_lab.errors import BadInput
from persona_lab.export.gguf_tokenizer import Vocabulary, read_vocabulary
from persona_lab.models.weights import read_json

GGUFType = Literal["F16", "Q8_0", "Q5_0", "Q4_1", "Q4_0"]
BITS: Mapping[str, float] = {"F16": 16, "Q8_0": 8.5, "Q5_0": 5.5, "Q4_1": 5, "Q4_0": 4.5}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Our model_type -> llama.cpp's name."""
_MERGED = "Export it as `merged`, which transformers loads."
_LARGEST_F16 = 65504.0


def refuse_architecture(config: Mapping[str, Any]) -> None:
    """Say so where a model of this config.json would come out wrong or not at all.

    Raises:
        BadInput
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BadInput(f"A model of the kind {kind!r} cannot be written as GGUF here; only {known} can.", _MERGED)
    rope = rope_of(config)["rope_type"]
    if rope not in ("default", "linear", "llama3"):
        raise BadInput(f"Its way to count positions ({rope!r}) cannot be written as GGUF here.", _MERGED)
    if config.get("hidden_act", "silu") != "silu":
        raise BadInput(f"llama.cpp has no {config['hidden_act']!r} activation for this kind of model.", _MERGED)
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        raise BadInput("llama.cpp ignores the sliding window of this model.", _MERGED)


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are counted: `rope_type`, `rope_theta` and its factors, in transformers' new or old spelling."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = found.get("rope_type") or found.get("type") or "default"
    theta = found.get("rope_theta") or config.get("rope_theta") or 10000.0
    return {**found, "rope_type": kind, "rope_theta": theta}


def estimate_gguf_bytes(config: Mapping[str, Any], parameters: int, kind: str) -> int:
    """Size of the file: the large matrices in `kind`, the embedding in at least 8 bits, vocabulary."""
    embedding = int(config.get("vocab_size", 0)) * int(config.get("hidden_size", 0))
    ends = embedding * (1 if config.get("tie_word_embeddings") else 2)
    bits = BITS[kind]
    return int((ends * max(bits, BITS["Q8_0"]) + max(parameters - ends, 0) * bits) / 8) + 3_000_000


def write_gguf(
    folder: Path, path: Path, kind: str, ctx: Reporter, name: str = "", details: Mapping[str, str] | None = None
) -> Path:
    """Write the model of `folder` (safetensors, config.json, tokenizer.json, a chat template) to `path`.

    Args:
        kind: type of the large matrices. Small tensors stay in F32; embeddings and the output head of the 4 and 5 bit
            types are Q8_0, and a matrix whose rows are no multiple of 32 is F16.
        details: more text fields of the file's head, such as `general.license`.

    Raises:
        BadInput: this kind of model, or its tokenizer, cannot be written. Cancelled, DiskFull
    """
    from gguf import GGUFWriter

    config = read_json(folder / "config.json")
    refuse_architecture(config)
    tensors = _Tensors(folder, config, kind)
    vocabulary = read_vocabulary(folder, tensors.rows)
    writer = GGUFWriter(path, ARCHITECTURES[config["model_type"]])
    try:
        _describe(writer, config, kind, name or folder.name, details or {})
        _add_vocabulary(writer, vocabulary, folder)
        plan = list(tensors.plan())
        for target, shape, stored in plan:
            writer.add_tensor_info(target, shape, *_stored_as(shape, stored))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        ctx.phase(f"Writing {path.name} ({kind})", len(plan))
        for number, (target, _, stored) in enumerate(plan, 1):
            writer.write_tensor_data(tensors.read(target, stored))
            ctx.step(number, len(plan))
    finally:
        writer.close()
    return path


def _stored_as(shape: tuple[int, ...], stored: str) -> tuple[Any, int, Any]:
    """(numpy type, bytes, raw type) as `add_tensor_info` wants them."""
    import numpy
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if stored == "F32":
        return numpy.dtype(numpy.float32), math.prod(shape) * 4, None
    if stored == "F16":
        return numpy.dtype(numpy.float16), math.prod(shape) * 2, None
    raw = GGMLQuantizationType[stored]
    block, size = GGML_QUANT_SIZES[raw]
    return numpy.dtype(numpy.float32), math.prod(shape) // block * size, raw


class _Tensors:
    """A folder's safetensors under llama.cpp's names, one at a time."""

    def __init__(self, folder: Path, config: Mapping[str, Any], kind: str) -> None:
        from gguf import MODEL_ARCH, get_tensor_name_map
        from safetensors import safe_open

        self.config, self.kind = config, kind
        arch = MODEL_ARCH[ARCHITECTURES[config["model_type"]].upper()]
        names = get_tensor_name_map(arch, int(config["num_hidden_layers"]))
        self.sources: dict[str, tuple[Any, str, tuple[int, ...]]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened = safe_open(str(file), framework="pt")
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if name.endswith(".rotary_emb.inv_freq"):
                    continue
                target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if target is None:
                    raise BadInput(f"The model has a part that llama.cpp does not know: {name}.", _MERGED)
                if target == "output.weight" and config.get("tie_word_embeddings"):
                    continue  # the embedding itself
                self.sources[target] = (opened, name, tuple(opened.get_slice(name).get_shape()))
        self.rows = self.sources["token_embd.weight"][2][0]

    def plan(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """(name, shape, type stored) of every tensor, in the order of the file."""
        if rope_of(self.config)["rope_type"] == "llama3":
            yield "rope_freqs.weight", (_head_size(self.config) // 2,), "F32"
        order = sorted(self.sources, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])
        for target in order:
            shape = self.sources[target][2]
            yield target, shape, self._type(target, shape)

    def _type(self, target: str, shape: tuple[int, ...]) -> str:
        if len(shape) < 2:
            return "F32"
        ends = target in ("token_embd.weight", "output.weight")
        kind = "Q8_0" if ends and self.kind not in ("F16", "Q8_0") else self.kind
        if kind != "F16" and shape[-1] % 32:
            kind = "F16"
        # values that F16 cannot hold are rare and known only by looking
        return "F32" if kind == "F16" and self._largest(target) > _LARGEST_F16 else kind

    def _largest(self, target: str) -> float:
        opened, name, _ = self.sources[target]
        return float(opened.get_tensor(name).abs().max())

    def read(self, target: str, stored: str) -> Any:
        """The tensor as it stands in the file."""
        import numpy
        from gguf import GGMLQuantizationType, quants

        if target == "rope_freqs.weight":
            return numpy.array(_llama3_factors(self.config), dtype=numpy.float32)
        opened, name, _ = self.sources[target]
        values = opened.get_tensor(name).float().numpy()
        if self.config["model_type"] in ("llama", "mistral"):
            values = self._rotated(target, values)
        if stored in ("F32", "F16"):
            return values.astype(numpy.float32 if stored == "F32" else numpy.float16)
        return quants.quantize(values, GGMLQuantizationType[stored])

    def _rotated(self, target: str, values: Any) -> Any:
        """Rows of queries and keys in llama.cpp's order: pairs side by side instead of in two halves."""
        heads = int(self.config["num_attention_heads"])
        if ".attn_k." in target:
            heads = int(self.config.get("num_key_value_heads") or heads)
        elif ".attn_q." not in target:
            return values
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def _llama3_factors(config: Mapping[str, Any]) -> list[float]:
    """What each rotation's frequency is divided by. Source: transformers modeling_rope_utils.py, `llama3`."""
    rope, size = rope_of(config), _head_size(config)
    low, high = float(rope.get("low_freq_factor", 1)), float(rope.get("high_freq_factor", 4))
    before = float(rope.get("original_max_position_embeddings", 8192))
    factors = []
    for place in range(0, size, 2):
        length = 2 * math.pi * float(rope["rope_theta"]) ** (place / size)
        if length < before / high:
            factors.append(1.0)
        elif length > before / low:
            factors.append(float(rope["factor"]))
        else:
            smooth = (before / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / float(rope["factor"]) + smooth))
    return factors


def _describe(writer: Any, config: Mapping[str, Any], kind: str, name: str, details: Mapping[str, str]) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType, RopeScalingType

    writer.add_type("model")
    writer.add_name(name)
    for key, value in details.items():
        writer.add_string(key, value)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_vocab_size(int(config["vocab_size"]))
    length = int(config.get("max_position_embeddings", 2048))
    # llama.cpp knows no sliding window for this kind: within the window both compute the same
    window = config.get("sliding_window") if config["model_type"] == "mistral" else None
    writer.add_context_length(min(length, int(window)) if window else length)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    heads = int(config["num_attention_heads"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    rope = rope_of(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, folder: Path) -> None:
    from gguf import SpecialVocab

    from persona_lab.datasets.rendering import ChatRenderer

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    special = SpecialVocab(folder, load_merges=False, n_vocab=len(vocabulary.tokens))
    special.add_special_token.setdefault("bos", False)
    special.add_special_token.setdefault("eos", False)
    ends = ChatRenderer(folder).eos_ids
    if ends and ends[0] != special.special_token_ids.get("eos"):
        special.special_token_ids["eot"] = ends[0]
    special.add_to_gguf(writer, quiet=True)
