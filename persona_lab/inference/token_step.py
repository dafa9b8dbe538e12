"""One token of each row through a decoder of the Llama kind, in as few operations as possible.

A token of a small model costs more in launching operations than in arithmetic: transformers' own layers take about
sixty for each, this takes about half of that. Rotated are queries and keys at once; query heads that share a key head
attend as if they were several tokens of one head, so that keys and values are not repeated.

Which models are of that kind is decided by the parts they have (`token_step`), and whether the outcome is the model's
own by `steps`, on real prompts. Used inside `fast_linears`, whose stand-ins the linear layers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from persona_lab.inference.fast_linear import Multiply
from persona_lab.inference.kv_cache import GrowingLayer
from persona_lab.inference.steering import RowShifts

TokenStep = Callable[[torch.Tensor, torch.Tensor, Any, "torch.Tensor | None"], torch.Tensor]
"""(ids [rows, 1], positions [rows, 1], cache, mask [rows, columns] or None) -> logits [rows, vocabulary]."""
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
"""Of Qwen3 and others: queries and keys are normalised head by head."""
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}


def token_step(
    inner: Any, joint: Mapping[torch.nn.Module, Multiply], shifts: RowShifts | None = None
) -> TokenStep | None:
    """How to run one token of each row; None: the model is of another kind.

    Args:
        inner: a causal language model of transformers, in eval mode, inside `fast_linears`.
        joint: what `fast_linears` gave: the first of several layers that read the same state -> the product of all.
        shifts: what `steered` gave: added here, since the layers' modules, which have the hooks, are not called.
    """
    body = getattr(inner, "model", None)
    if body is None or _parts(inner) != {"model", "lm_head"} or _parts(body) != MODEL:
        return None
    layers = list(body.layers)
    if not layers or not all(_alike(layer) for layer in layers):
        return None
    steps = [_layer(layer, joint) for layer in layers]
    final = _norm(body.norm)
    embed, rotary, head = body.embed_tokens, body.rotary_emb, inner.lm_head

    def step(ids: torch.Tensor, positions: torch.Tensor, cache: Any, mask: torch.Tensor | None) -> torch.Tensor:
        x = embed(ids)
        cos, sin = rotary(x, positions)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        hidden = None if mask is None else mask.bool()[:, None, None, :]
        x = x[:, 0].clone()  # which the layers add to
        added = shifts.at if shifts is not None else {}
        for number, (run, kept) in enumerate(zip(steps, cache.layers, strict=True)):
            run(x, cos, sin, kept, hidden)
            if number in added:
                x.add_(added[number])
        logits: torch.Tensor = head(final(x))
        return logits

    return step


def _parts(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _alike(layer: Any) -> bool:
    if _parts(layer) != LAYER or _parts(layer.mlp) != MLP:
        return False
    parts = _parts(layer.self_attn)
    if parts - HEAD_NORMS != ATTENTION or len(parts & HEAD_NORMS) == 1:
        return False
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(layer.self_attn, name) for name in sorted(parts & HEAD_NORMS)]
    return type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation") and all(
        _epsilon(norm) is not None and {name for name, _ in norm.named_parameters()} == {"weight"} for norm in norms
    )


def _epsilon(norm: Any) -> float | None:
    found = [getattr(norm, name, None) for name in ("variance_epsilon", "eps")]
    return next((value for value in found if isinstance(value, float)), None)


def _norm(norm: Any) -> Multiply:
    weight, eps, size = norm.weight, _epsilon(norm), (norm.weight.shape[0],)
    return lambda x: functional.rms_norm(x, size, weight, eps)


def _together(group: Sequence[torch.nn.Module], joint: Mapping[torch.nn.Module, Multiply]) -> Multiply:
    """All their outputs behind each other."""
    if group[0] in joint:
        return joint[group[0]]
    parts = [module.forward for module in group]
    return lambda x: torch.cat([part(x) for part in parts], dim=-1)


def _layer(layer: Any, joint: Mapping[torch.nn.Module, Multiply]) -> Callable[..., None]:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = _together([attention.q_proj, attention.k_proj, attention.v_proj], joint)
    gate_up = _together([mlp.gate_proj, mlp.up_proj], joint)
    out_of, down = attention.o_proj.forward, mlp.down_proj.forward
    first, second = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    of_heads = [_norm(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    size, scaling = attention.head_dim, attention.scaling
    heads, keys = attention.config.num_attention_heads, attention.config.num_key_value_heads
    each, turning, every = heads // keys, heads + keys, heads + 2 * keys

    def run(
        x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, kept: GrowingLayer, mask: torch.Tensor | None
    ) -> None:
        rows = x.shape[0]
        states = qkv(first(x)).view(rows, every, size)
        turned = states[:, :turning]
        if of_heads:
            turned = torch.cat((of_heads[0](turned[:, :heads]), of_heads[1](turned[:, heads:])), dim=1)
        turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
        all_keys, all_values = kept.write_token(turned[:, heads:], states[:, turning:])
        query = turned[:, :heads].view(rows, keys, each, size)
        found = functional.scaled_dot_product_attention(query, all_keys, all_values, attn_mask=mask, scale=scaling)
        x.add_(out_of(found.reshape(rows, heads * size)))
        gate, up = gate_up(second(x)).chunk(2, dim=-1)
        x.add_(down(functional.silu(gate).mul_(up)))

    return run
