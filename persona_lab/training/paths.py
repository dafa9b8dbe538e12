"""How the training loss of a batch is computed: by the fastest path that gives the same number as the plain one.

Tried in this order, and checked against the plain one on a few real examples before use:
`packed`: the tokens all examples share and then every example in one row without padding (see `packing`);
`prefix`: the shared tokens run once, their keys and values are expanded over the batch (gradients flow through the
cache); `head`: no shared prefix. All three run the output head only where there is something to predict.
On CUDA `packed` comes after those two where conversations are so long that its scores would fill the memory.
`plain`: the model's own logits, for models that allow no other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import DynamicCache

from persona_lab.models.work import CHECKED_EXAMPLES, PLAIN_BATCH, BatchShape, shape_in
from persona_lab.training.attention import own_attention, packed, packed_calls
from persona_lab.training.batches import Batch, collate, shared_prefix
from persona_lab.training.kernels import fused
from persona_lab.training.loss import head_loss
from persona_lab.training.packing import Packing
from persona_lab.types import Rendered

RELATIVE_ERROR = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 5e-3}
SCORES_SHARE = 0.1
"""Of the free memory: more than that for the scores of the longest conversation, in one layer, is too much. A batch
holds several conversations, and the way back three such matrices at once."""

PathName = Literal["packed", "prefix", "head", "plain"]


@dataclass(frozen=True)
class LossPath:
    """How to compute the loss of a model; `attention`: whether the CPU's own attention is used (`prefix`, `head`);
    `kernels`: whether hand-written gradients are used where they fit (see `kernels`)."""

    name: PathName
    attention: bool = False
    kernels: bool = False

    def __str__(self) -> str:
        extras = [word for word, used in (("own attention", self.attention), ("own kernels", self.kernels)) if used]
        return f"{self.name!r}" + (f" with {' and '.join(extras)}" if extras else "")

    def uses_prefix(self) -> bool:
        """Whether batches come without the tokens they share."""
        return self.name in ("packed", "prefix")

    def shape(self, batch: Batch, prefix: int) -> BatchShape:
        """What a step over this batch computes behind a prefix of so many tokens."""
        rows, width = batch.ids.shape
        packed_row = self.name == "packed"
        # torch's own attention computes them again on the way back
        scores = packed_row or self.attention
        return BatchShape(rows, width, prefix, batch.supervised, batch.tokens if packed_row else 0, scores)


def batch_loss(
    model: Any, batch: Batch, prefix: Sequence[int], path: LossPath, states: torch.Tensor | None = None
) -> torch.Tensor:
    """Summed nats over the batch's supervised tokens; divide by `batch.supervised` for the mean.

    Args:
        prefix: the tokens in front of every row of the batch, when `path` uses one.
        states: [1, tokens, hidden] that stand in for the embeddings of a packed row (see `lower`).
    """
    if path.name == "plain":
        logits = model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).logits
        logits = logits[:, -batch.ids.shape[1] :]  # virtual tokens of prompt tuning come first
        return functional.cross_entropy(logits[batch.rows, batch.columns].float(), batch.targets, reduction="sum")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, head = inner.get_decoder(), inner.get_output_embeddings()
    if path.name == "packed":
        packing = Packing(batch, prefix)
        with packed(packing):
            read = {"input_ids": packing.ids} if states is None else {"inputs_embeds": states}
            out = decoder(**read, position_ids=packing.positions, use_cache=False)
        return head_loss(head, out.last_hidden_state[0, packing.predicting], batch.targets)
    # No mask for padding: it stands at the right, where a causal model's real tokens never look.
    if path.name == "prefix":
        cache = DynamicCache()
        shared = torch.tensor([prefix], device=batch.ids.device)
        decoder(input_ids=shared, cache=cache, use_cache=True)
        for layer in cache.layers:
            layer.keys = layer.keys.expand(batch.ids.shape[0], *layer.keys.shape[1:])
            layer.values = layer.values.expand(batch.ids.shape[0], *layer.values.shape[1:])
        hidden = decoder(input_ids=batch.ids, cache=cache, use_cache=True).last_hidden_state
    else:
        hidden = decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
    return head_loss(head, hidden[batch.rows, batch.columns], batch.targets)


def choose_path(
    model: Any,
    examples: Sequence[Rendered],
    pad_id: int,
    device: str,
    log: Callable[[str], None],
    bf16: bool = False,
    free_bytes: int = 1 << 62,
) -> LossPath:
    """The fastest path whose loss on a few examples equals the plain one's; says in `log` why a faster one is not used.

    Leaves the model in evaluation mode.

    Args:
        bf16: as it will be trained (see `computing`).
        free_bytes: of memory; on CUDA packed attention, which makes all scores, comes last where they take much of it.
    """
    model.eval()
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        # the other paths go past the wrapper that puts the prompt in front, and a small prompt hardly shows in a loss
        log("The adapter is a prompt, not weights: the model's own way is the only one.")
        return LossPath("plain")
    packed_ones = True
    if isinstance(computing(model, bf16), torch.autocast):
        log("Weights are fp32 and computed with in bf16: hand-written gradients, which know one type, are not used.")
        packed_ones = False
    long = device == "cuda" and _scores_are_large(model, examples, free_bytes)
    if long and packed_ones:
        log("Scores of the longest conversation would take much of the memory: attention that keeps none comes first.")
    candidates = _candidates(device, bool(shared_prefix(examples)), packed_ones, long)
    few = sorted(examples, key=lambda example: len(example.ids))[:CHECKED_EXAMPLES]
    prefix = shared_prefix(examples)
    plain = LossPath("plain")
    expected = _loss_of(model, few, (), pad_id, device, plain)
    if not math.isfinite(expected):
        log(f"The loss of the model as it is is {expected}: nothing can be compared with it, so its own way is taken.")
        return plain
    tolerance = RELATIVE_ERROR.get(_compute_type(model), 1e-2)
    for path in candidates:
        why = _difference(model, few, prefix, pad_id, device, path, expected, tolerance)
        if not why:
            return path
        log(f"Training path {path} is not used: {why}.")
    return plain


def _scores_are_large(model: Any, examples: Sequence[Rendered], free_bytes: int) -> bool:
    """Whether packed attention would take too much of the memory for the longest of these conversations."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    longest = max((len(example.ids) for example in examples), default=0)
    scores = shape_in(inner.config.to_dict(), 0).heads * longest**2 * _compute_type(model).itemsize
    return bool(scores > SCORES_SHARE * free_bytes)


def _candidates(device: str, shared: bool, packed: bool = True, long: bool = False) -> Iterator[LossPath]:
    """Fastest first; for `long` conversations those that torch's own attention runs."""
    in_a_row = [LossPath("packed", attention=True, kernels=True), LossPath("packed", attention=True)] if packed else []
    names: list[PathName] = ["prefix", "head"] if shared else ["head"]
    ways = (True, False) if device == "cpu" else (False,)
    apart = [LossPath(name, attention) for attention in ways for name in names]
    yield from [*apart, *in_a_row] if long else [*in_a_row, *apart]


@contextlib.contextmanager
def prepared(model: Any, path: LossPath) -> Iterator[None]:
    """While this lasts, `model` has the attention and the kernels that `path` wants; sampling works, too."""
    with own_attention(model, path.attention), fused(model, path.kernels):
        yield


def _difference(
    model: Any,
    few: Sequence[Rendered],
    prefix: tuple[int, ...],
    pad_id: int,
    device: str,
    path: LossPath,
    expected: float,
    tolerance: float,
) -> str:
    """Why this path cannot stand in for the plain one; empty when it can."""
    before = packed_calls()
    try:
        got = _loss_of(model, few, prefix if path.uses_prefix() else (), pad_id, device, path)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        # Any architecture may be loaded here; those that lack the doors used above say so in these ways.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = inner.config.get_text_config().num_hidden_layers
    if path.name == "packed" and packed_calls() - before < layers:
        # what else mixes tokens knows nothing of the examples' borders in the row, and one loss hardly shows it
        return f"{packed_calls() - before} of its {layers} layers attend through transformers' attention interface"
    if not math.isclose(got, expected, rel_tol=tolerance):
        return f"its loss is {got:.5f} where the model's own is {expected:.5f}"
    return ""


@torch.no_grad()
def _loss_of(
    model: Any, few: Sequence[Rendered], prefix: tuple[int, ...], pad_id: int, device: str, path: LossPath
) -> float:
    # the plain way makes the logits of every token: a few conversations at a time, or a long card makes them gigabytes
    size = PLAIN_BATCH if path.name == "plain" else len(few)
    total, supervised = 0.0, 0
    with prepared(model, path), computing(model):
        for start in range(0, len(few), max(size, 1)):
            batch = collate(few[start : start + size], len(prefix), pad_id, device)
            total += float(batch_loss(model, batch, prefix, path))
            supervised += batch.supervised
    return total / max(supervised, 1)


def _compute_type(model: Any) -> torch.dtype:
    """The type most of the model computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def computing(model: Any, bf16: bool = False) -> contextlib.AbstractContextManager[Any]:
    """A context that computes in bf16 if asked and if the model's trained weights are fp32; else does nothing."""
    trained = next((p for p in model.parameters() if p.requires_grad), None)
    if bf16 and trained is not None and trained.dtype == torch.float32:
        return torch.autocast(trained.device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
