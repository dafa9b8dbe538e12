"""How many weights a strategy would train, from a model's config alone: no torch, for estimates.

Exact for models with the usual names in config.json; else a rule of thumb from the number of parameters.
"""

from __future__ import annotations

from typing import Any

from persona_lab.types import BaseModelInfo

# The yardstick where there is no config yet. Width and depth grow together, so LoRA grows with parameters to the power
# 2/3.
_STARTER = BaseModelInfo(
    id="starter",
    key="starter",
    name="SmolLM2-135M",
    path="",
    ready=False,
    parameters=134_515_008,
    config={
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
)


def layer_count(base: BaseModelInfo) -> int:
    """Decoder layers; 30 where it is not known yet (the starter's)."""
    return int(_value(base, "num_hidden_layers", "n_layer") or 30)


def lora_parameters(base: BaseModelInfo, rank: int, targets: str = "all", dora: bool = False) -> int:
    """Weights of a LoRA of this rank on linear layers of all decoder layers.

    Args:
        targets: `all`, `attention` or `mlp`.
        dora: also the length of each row of the weights.
    """
    shapes = [shape for part, *shape in _linear_layers(base) if targets in ("all", part)]
    if not shapes:
        parameters = _STARTER.parameters
        scale = ((base.parameters or parameters) / parameters) ** (2 / 3)
        return round(lora_parameters(_STARTER, rank, targets, dora) * scale)
    weights = sum(rank * (inputs + outputs) + (outputs if dora else 0) for inputs, outputs in shapes)
    return int(weights * layer_count(base))


def _linear_layers(base: BaseModelInfo) -> list[tuple[str, int, int]]:
    """(`attention` or `mlp`, inputs, outputs) of a decoder layer's linear layers; empty where the config is unknown."""
    hidden, inner = _value(base, "hidden_size", "n_embd"), _value(base, "intermediate_size", "n_inner")
    heads = _value(base, "num_attention_heads", "n_head")
    if not (hidden and heads):
        return []
    inner = inner or 4 * hidden
    attention = heads * (_value(base, "head_dim") or hidden // heads)
    keys = (_value(base, "num_key_value_heads") or heads) * (attention // heads)
    kind = base.config.get("model_type", "")
    if kind == "gpt2":
        into, mlp = [3 * hidden], [(hidden, inner), (inner, hidden)]
    elif kind == "phi3":
        into, mlp = [attention + 2 * keys], [(hidden, 2 * inner), (inner, hidden)]
    else:
        into, mlp = [attention, keys, keys], [(hidden, inner), (hidden, inner), (inner, hidden)]
    parts = [("attention", hidden, outputs) for outputs in into] + [("attention", attention, hidden)]
    return parts + [("mlp", inputs, outputs) for inputs, outputs in mlp]


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
