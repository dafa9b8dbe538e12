"""How many weights a strategy would train, from a model's config alone: no torch, for estimates.

Exact for models with the usual names in config.json; else a rule of thumb from the number of parameters.
"""

from __future__ import annotations

from typing import Any

from persona_lab.types import BaseModelInfo

# SmolLM2-135M: LoRA weights for each unit of rank on all linear layers, and its parameters; the yardstick where there
# is no config yet. Width and depth grow together, so LoRA grows with parameters to the power 2/3.
_YARDSTICK = (305_280, 134_515_008)


def layer_count(base: BaseModelInfo) -> int:
    """Decoder layers; 30 where it is not known yet (the starter's)."""
    return int(_value(base, "num_hidden_layers", "n_layer") or 30)


def lora_parameters(base: BaseModelInfo, rank: int) -> int:
    """Weights of a LoRA of this rank on all linear layers of all decoder layers."""
    hidden, inner = _value(base, "hidden_size", "n_embd"), _value(base, "intermediate_size", "n_inner")
    heads = _value(base, "num_attention_heads", "n_head")
    if not (hidden and heads):
        weights, parameters = _YARDSTICK
        return round(rank * weights * ((base.parameters or parameters) / parameters) ** (2 / 3))
    attention = heads * (_value(base, "head_dim") or hidden // heads)
    keys = (_value(base, "num_key_value_heads") or heads) * (attention // heads)
    widths = [
        hidden + attention,
        hidden + keys,
        hidden + keys,
        attention + hidden,
        *[hidden + (inner or 4 * hidden)] * 3,
    ]
    return rank * sum(widths) * layer_count(base)


def layer_parameters(base: BaseModelInfo, layers: int) -> int:
    """Weights of this many decoder layers, embeddings not among them."""
    hidden, vocabulary = _value(base, "hidden_size", "n_embd"), _value(base, "vocab_size")
    embeddings = (hidden or 0) * (vocabulary or 0)
    body = max(base.parameters - embeddings, base.parameters // 2)
    return round(body * min(layers / layer_count(base), 1.0))


def _value(base: BaseModelInfo, *names: str) -> int | None:
    """The first of these keys in the config, or in its text part; None if there is none."""
    nested: Any = base.config.get("text_config")
    for config in (base.config, nested if isinstance(nested, dict) else {}):
        for name in names:
            if isinstance(config.get(name), int):
                return int(config[name])
    return None
