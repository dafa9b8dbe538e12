"""What a fit has to compute: the shapes of its batches, and from them operations and bytes. No torch, no rates.

The fit loop's batches are known in advance (`datasets.batching`), so time is a sum over batches and memory that of the
largest one. How many seconds an operation takes is measured elsewhere (`calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lab.datasets.batching import (
    KEPT_CONTEXT,
    SHORTEST_PREFIX,
    VALIDATION_BATCH,
    batches_of_epoch,
    sorted_batches,
)
from persona_lab.types import BaseModelInfo, Conversation, Dataset, FitSettings, Machine, Message, TokenCounts

CHARACTERS_A_TOKEN = 4.0
TURN_TOKENS = 5
"""What a chat template adds to a turn."""
SYSTEM_TOKENS = 200
"""An ordinary card, where the real one was not counted."""
UNKNOWN_TRAIN, UNKNOWN_VALIDATION, UNKNOWN_LENGTH = 240, 15, (110, 60)
"""Conversations, and tokens and supervised tokens of each: assumed where there is no dataset."""
MOST_VALIDATION = 60
"""Conversations the validation loss is measured on at most, as in `training.context`."""
CHECKED_EXAMPLES = 16
"""Short ones, run plain and fast before a training, to see that both give one loss (`training.paths`). With three (17
tokens of a play) bf16 rounding alone came near the 1% allowed; it averages out."""
PLAIN_BATCH = 4
"""Of them at a time on the plain path, which makes the logits of every token."""
HEAD_CHUNK = 256
PACK_BYTES = 1 << 30
"""Weights of the linear layers above which replies are written without packing them."""
ATTENTION_WEIGHT = 3.0
"""Scores and their softmax are bound by memory: an operation there costs as much as three in a matrix product."""
EPOCHS_SUMMED = 3
"""Batches differ a little between epochs; that many are laid out, and the others are taken to be like them."""


@dataclass(frozen=True)
class Shape:
    """The base model's size, with the starter's proportions where its config is not known yet."""

    parameters: int
    layers: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int
    tied: bool

    @property
    def body(self) -> int:
        """Weights that every token is multiplied with: all but embedding and output head."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return max(self.parameters - embeddings, self.parameters // 4)


@dataclass(frozen=True)
class BatchShape:
    """A batch: `rows` of at most `width` tokens behind a prefix that is computed once.

    `tails`: tokens of all rows together, which are computed without padding; 0: as many as a rectangle holds.
    `scores`: attention keeps its weights for the way back, as packed attention does on every device.
    """

    rows: int
    width: int
    prefix: int
    supervised: int
    tails: int = 0
    scores: bool = True

    @property
    def tokens(self) -> int:
        """How many are computed, the prefix counted."""
        return (self.tails or self.rows * self.width) + self.prefix


@dataclass(frozen=True)
class Load:
    """The batches of one stage. `steps`: of the whole schedule; `epochs`: laid out, a list of batches each."""

    examples: int
    tokens: float
    steps: int
    per_epoch: int
    evaluations: int
    epochs: list[list[BatchShape]]
    validation: list[BatchShape]
    checked: BatchShape | None
    """What is run on the fast path before the training ..."""
    plain: list[BatchShape]
    """... and the plain one."""
    exact: bool
    """Lengths were counted with the base's own tokenizer."""
    longest_prompt: float = 0.0

    def training(self) -> Iterable[tuple[BatchShape, float]]:
        """Each batch, and how often it is read in the whole schedule."""
        laid_out = sum(len(epoch) for epoch in self.epochs)
        for epoch in self.epochs:
            for batch in epoch:
                yield batch, self.steps / laid_out


@dataclass(frozen=True)
class Kind:
    """What a step trains. `depth`: share of the layers that a step goes through; those below are frozen, and what they
    give is kept."""

    trainable: int
    full_weights: bool
    quantized: bool = False
    depth: float = 1.0
    checkpointing: bool = False
    low_memory: bool = False
    eight_bit: bool = False
    """AdamW's moments in 8 bits."""


def shape_of(base: BaseModelInfo) -> Shape:
    """The sizes of a base that need not be loaded."""
    return shape_in(base.config, base.parameters or 500_000_000)


def shape_in(config: dict[str, Any], parameters: int) -> Shape:
    """The sizes in a config.json."""
    config = config.get("text_config") or config

    def number(fallback: int, *names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), fallback)

    hidden = number(max(64, int((parameters / 400) ** 0.5)), "hidden_size", "n_embd")
    # GPT-2's kind says nothing where it is four times the hidden size
    usual = 4 * hidden if "n_embd" in config else hidden * 8 // 3
    return Shape(
        parameters=parameters,
        layers=number(30, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        inner=number(usual, "intermediate_size", "n_inner"),
        heads=number(max(1, hidden // 64), "num_attention_heads", "n_head"),
        vocabulary=number(49152, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


# --- batches --------------------------------------------------------------------------------------


def load_of(config: FitSettings, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Load:
    """The batches that the fit loop will make of this dataset with these settings."""
    counts = _counts(base, dataset, machine)
    prefix = counts.prefix if counts else (SYSTEM_TOKENS if SYSTEM_TOKENS >= SHORTEST_PREFIX else 0)
    # what has lost its beginning shares none, and then nothing is computed once for all; guessed lengths do not tell
    cut = dataset and counts and any(_cuts_prefix(c, counts, prefix, config.max_tokens) for c in dataset.of("train"))
    shared = 0 if cut else prefix
    train = _lengths(dataset.of("train") if dataset else None, UNKNOWN_TRAIN, counts, prefix, config.max_tokens)
    held = dataset.of("validation")[:MOST_VALIDATION] if dataset else None
    validation = _lengths(held, UNKNOWN_VALIDATION, counts, prefix, config.max_tokens)
    per_epoch = max(1, math.ceil(len(train) / config.batch_size))
    steps = max(1, round(config.epochs * per_epoch))
    interval = max(1, round(per_epoch / config.evaluations_per_epoch))
    lengths = [tokens for tokens, _ in train]
    laid_out = range(max(1, min(EPOCHS_SUMMED, math.ceil(steps / per_epoch))))
    plans = [batches_of_epoch(lengths, config.batch_size, 0, epoch) for epoch in laid_out]
    shortest = sorted([*train, *validation])[:CHECKED_EXAMPLES]
    return Load(
        examples=len(train),
        tokens=float(sum(lengths)),
        steps=steps,
        per_epoch=per_epoch,
        evaluations=steps // interval + (1 if steps % interval else 0),
        epochs=[[_batch([train[i] for i in batch], shared) for batch in plan] for plan in plans],
        validation=[
            _batch([validation[i] for i in batch], shared)
            for batch in sorted_batches([tokens for tokens, _ in validation], VALIDATION_BATCH)
        ],
        checked=_batch(shortest, shared) if shortest else None,
        plain=[_batch(shortest[i : i + PLAIN_BATCH], 0) for i in range(0, len(shortest), PLAIN_BATCH)],
        exact=counts is not None and dataset is not None,
    )


def _counts(base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> TokenCounts | None:
    if machine.measured is None or dataset is None:
        return None
    known = (c for c in machine.measured.counts if c.dataset == dataset.id and c.base == base.key)
    return next(known, None)


def _lengths(
    conversations: Sequence[Conversation] | None,
    assumed: int,
    counts: TokenCounts | None,
    prefix: int,
    max_tokens: int,
) -> list[tuple[int, int]]:
    """(tokens with the prefix, supervised tokens) of each conversation, shortened to `max_tokens`."""
    if conversations is None:
        tokens, supervised = UNKNOWN_LENGTH
        return [_shortened(tokens + prefix, supervised, max_tokens)] * assumed
    known = counts.conversations if counts else {}
    found = [known.get(c.id) or _guessed(c, prefix) for c in conversations]
    return [_shortened(tokens, supervised, max_tokens) for tokens, supervised in found if supervised or not counts]


def _cuts_prefix(conversation: Conversation, counts: TokenCounts, prefix: int, max_tokens: int) -> bool:
    """Whether the last reply leaves no room for all of the prefix, as `datasets.rendering` shortens it."""
    tokens, _ = counts.conversations.get(conversation.id, (0, 0))
    if tokens <= max_tokens:
        return False
    sizes = [guessed_tokens(message) for message in conversation.messages]
    return prefix + (tokens - prefix) * sizes[-1] / max(sum(sizes), 1) + KEPT_CONTEXT > max_tokens


def guessed_tokens(message: Message) -> int:
    """About how many tokens a message takes, where there is no tokenizer to count them."""
    return round(len(message.content) / CHARACTERS_A_TOKEN) + TURN_TOKENS


def _guessed(conversation: Conversation, prefix: int) -> tuple[int, int]:
    turns = [(m.role, guessed_tokens(m)) for m in conversation.messages]
    return prefix + sum(n for _, n in turns), sum(n for role, n in turns if role == "assistant")


def _shortened(tokens: int, supervised: int, max_tokens: int) -> tuple[int, int]:
    if tokens <= max_tokens:
        return tokens, supervised
    return max_tokens, min(supervised, max_tokens)  # the oldest turns go, the last reply stays


def _batch(chosen: Sequence[tuple[int, int]], prefix: int) -> BatchShape:
    longest = max((tokens for tokens, _ in chosen), default=0)
    shared = min(prefix, longest)
    # the last target is never read, and neither is what follows it
    tails = [max(tokens - shared - 1, 1) for tokens, _ in chosen]
    return BatchShape(len(chosen), max(tails, default=1), shared, sum(s for _, s in chosen), sum(tails))


def plain_batches(batch: BatchShape) -> list[BatchShape]:
    """The same conversations as the plain path takes them, taken to be equally long."""
    sizes = [min(PLAIN_BATCH, batch.rows - start) for start in range(0, batch.rows, PLAIN_BATCH)]
    each = (batch.tails or batch.rows * batch.width) / max(batch.rows, 1) + batch.prefix
    supervised = batch.supervised / max(batch.rows, 1)
    width = batch.width + batch.prefix
    return [BatchShape(rows, width, 0, round(rows * supervised), round(rows * each)) for rows in sizes]


# --- operations and bytes -------------------------------------------------------------------------


def forward_operations(batch: BatchShape, shape: Shape) -> float:
    """Floating-point operations of a forward pass; 2 for each weight and token (https://arxiv.org/abs/2001.08361)."""
    return 2.0 * shape.body * batch.tokens + _attention(batch, shape) + _head(batch, shape)


def step_operations(batch: BatchShape, shape: Shape, kind: Kind) -> float:
    """Of a training step: forward, 2 for each weight and token for the gradients of activations, 2 for each trained
    weight and token for its own gradient; LoRA's matrices are multiplied with as well."""
    tokens, attention, head = batch.tokens, _attention(batch, shape), _head(batch, shape)
    forward = kind.depth * (2.0 * shape.body * tokens + attention) + head
    trained = min(kind.trainable, shape.body) if kind.full_weights else kind.trainable
    beside = 0 if kind.full_weights else kind.trainable
    backward = kind.depth * (2.0 * shape.body * tokens + 2.0 * attention) + head
    backward += 2.0 * trained * tokens + 4.0 * beside * tokens
    if kind.full_weights and kind.trainable > shape.body:
        backward += head  # the output head's own gradient
    again = kind.depth * (2.0 * shape.body * tokens + attention) if kind.checkpointing else 0.0
    return forward + backward + again


def _attention(batch: BatchShape, shape: Shape) -> float:
    pairs = batch.rows * batch.width * (batch.prefix + batch.width) + batch.prefix**2
    return ATTENTION_WEIGHT * 4.0 * shape.hidden * shape.layers * pairs


def _head(batch: BatchShape, shape: Shape) -> float:
    return 2.0 * batch.supervised * shape.vocabulary * shape.hidden


def activation_bytes(batch: BatchShape, shape: Shape, kind: Kind, width: int) -> float:
    """Kept from the forward pass for the backward pass, `width` bytes a number, and the head's chunk of logits."""
    kept = shape.layers * kind.depth
    per_token = 8 * shape.hidden + 4 * shape.inner
    pairs = batch.rows * batch.width * (batch.prefix + batch.width) + batch.prefix**2
    scores = shape.heads * pairs if batch.scores else 0
    layers = kept * width * (batch.tokens * per_token + scores)
    if kind.checkpointing:  # only each layer's input is kept, and one layer is computed at a time
        layers = kept * width * batch.tokens * shape.hidden + layers / max(kept, 1)
    logits = min(batch.supervised, HEAD_CHUNK) * shape.vocabulary * 12.0
    return layers + logits


def check_bytes(work: Load, shape: Shape, width: int) -> float:
    """Of the comparison of the fast path with the plain one: all logits, and those of what is predicted in fp32."""
    sizes = (batch.tokens * width + batch.supervised * (8.0 + width) for batch in work.plain)
    return max(sizes, default=0.0) * shape.vocabulary


def forward_bytes(batch: BatchShape, shape: Shape, width: int) -> float:
    """Of a forward pass without gradients: one layer at a time, with each head's scores and weights of all pairs, and
    after the last layer the head's chunk of logits."""
    pairs = batch.rows * batch.width * (batch.prefix + batch.width)
    layer = width * (batch.tokens * (8 * shape.hidden + 4 * shape.inner) + 2 * shape.heads * pairs)
    return max(layer, min(batch.supervised, HEAD_CHUNK) * shape.vocabulary * 12.0)


def state_bytes(kind: Kind, width: int, device: str) -> float:
    """Of trained weights: gradient, fp32 master, AdamW's two moments, and where it is main memory the best weights so
    far. `training.masters` converts gradients to fp32 piece by piece, but for 8-bit moments."""
    own = _trained_width(kind, width)
    best = best_bytes(kind, width, device)
    if kind.low_memory:
        return kind.trainable * 3 * own + best
    master = 4.0 if own < 4 else 0.0
    moments = 2.0 + 4.0 if kind.eight_bit else 8.0
    return kind.trainable * (own + master + moments) + best


def best_bytes(kind: Kind, width: int, device: str) -> float:
    """Of the best weights so far, which a training with validations keeps in main memory."""
    return kind.trainable * _trained_width(kind, width) if device != "cuda" else 0.0


def _trained_width(kind: Kind, width: int) -> float:
    return float(width if kind.full_weights else 4)  # an adapter is fp32 on every machine


def packed_bytes(shape: Shape, kind: Kind, machine: Machine) -> float:
    """Of the second copy of the linear layers that replies are written with, as `inference.fast_linear` decides it."""
    size = float(shape.body * number_bytes(machine))
    usual = machine.device == "cpu" and machine.bf16 and not kind.quantized
    return size if usual and size <= PACK_BYTES else 0.0


def weight_bytes(shape: Shape, kind: Kind, machine: Machine) -> float:
    """Of the base model as it is loaded."""
    width = number_bytes(machine)
    if not kind.quantized:
        return float(shape.parameters * width)
    embedding = shape.parameters - shape.body
    packed = embedding * width + shape.body * 0.6
    # on a CPU the 4-bit weights are unpacked for each product, and the unpacked ones are held for a while
    return packed + (shape.parameters * width if machine.device == "cpu" else 0.0)


def number_bytes(machine: Machine) -> int:
    """Bytes of a number in the type that the machine computes in."""
    return 2 if machine.bf16 else 4
