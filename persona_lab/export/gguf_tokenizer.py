"""A model folder's tokenizer in GGUF's words: tokens, kinds, merges, the name of the pre-tokenizer, special tokens.

Only byte-level BPE (Llama 3, Qwen, SmolLM, GPT-2 and their kin). llama.cpp knows pre-tokenizers by name and guesses
wrong where a name is missing, so a tokenizer whose rules match no known name is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lab.errors import BadInput
from persona_lab.models.gguf import GGUF_TRAITS

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    # llama.cpp src/llama-vocab.cpp: the expressions of LLAMA_VOCAB_PRE_TYPE_QWEN2 and _LLAMA3
    _WORDS.replace("DIGITS", ""): "qwen2",
    _WORDS.replace("DIGITS", "{1,3}"): "llama-bpe",
}
_UNSUPPORTED = "Export it as `merged`; llama.cpp's own converter may know more tokenizers."


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer; lists are by token id."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a model folder.

    Args:
        rows: of the embedding; ids without a token are padded as unused ones.

    Raises:
        BadInput: no byte-level BPE, rules without a known name, or more tokens than rows.
    """
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = raw.get("model") or {}
    if (
        model.get("type") != "BPE"
        or model.get("byte_fallback")
        or (raw.get("decoder") or {}).get("type") != "ByteLevel"
    ):
        kind = "SentencePiece-like" if model.get("byte_fallback") else str(model.get("type"))
        raise BadInput(f"Its tokenizer is no byte-level BPE ({kind}), and only that can be written here.", _UNSUPPORTED)
    tokens: dict[int, tuple[str, int]] = {number: (text, NORMAL) for text, number in model["vocab"].items()}
    for added in raw.get("added_tokens") or ():
        tokens[added["id"]] = (added["content"], CONTROL if added.get("special") else USER_DEFINED)
    if max(tokens) >= rows:
        raise BadInput(
            f"The tokenizer has {max(tokens) + 1} tokens and the model only {rows} embeddings.", "Choose another base."
        )
    whole = [tokens.get(number, (f"[PAD{number}]", UNUSED)) for number in range(rows)]
    return Vocabulary(
        tokens=[text for text, _ in whole],
        kinds=[kind for _, kind in whole],
        merges=[_merge(pair) for pair in model["merges"]],
        pre=_own_name(folder) or pre_tokenizer_name(raw),
    )


def _merge(pair: str | list[str]) -> str:
    """As `left right`; a space inside a part is written as the byte alphabet's own letter for it."""
    return pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair)


def _own_name(folder: Path) -> str:
    """What the GGUF file said that this folder was converted from, if it was."""
    path = folder / GGUF_TRAITS
    traits = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(traits.get("tokenizer.ggml.pre") or "")


def pre_tokenizer_name(raw: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    Raises:
        BadInput: its rules are none of those known here.
    """
    if raw.get("normalizer") not in (None, {"type": "NFC"}):
        raise BadInput("Its tokenizer rewrites text before splitting it, which is not supported here.", _UNSUPPORTED)
    top = raw.get("pre_tokenizer") or {}
    steps = top.get("pretokenizers", [top])
    kinds = [step.get("type") for step in steps]
    last = steps[-1] if steps else {}
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        found = _SPLITS.get(str((steps[0].get("pattern") or {}).get("Regex")))
        if found and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            return found
    raise BadInput(f"llama.cpp's name for its pre-tokenizer ({kinds}) is not known here.", _UNSUPPORTED)
