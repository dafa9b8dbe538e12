"""What a training run will cost: memory, time, disk. Light; a model of the work, calibrated on measurements.

Calibrated on SmolLM2-135M with LoRA and full fine-tuning on two CPU cores with bf16 (about 230 tokens a second, the
shared system prompt counted once a step). Cores differ by a factor of two; for other machines and models it is an
extrapolation; `uncertainty` says how far to trust it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from persona_lab.types import BaseModelInfo, Conversation, Dataset, Estimate, FitSettings, Machine

CHARACTERS_A_TOKEN = 4.0
TURN_TOKENS = 5
"""What a chat template adds to a turn."""
SYSTEM_TOKENS = 200
"""An ordinary card; run once a step, whatever the batch."""
UNKNOWN_DATASET = (240, 110.0, 60.0, 15)
"""Conversations, tokens and supervised tokens of each, validation conversations: assumed where there is no dataset."""

PROCESS_BYTES = 700_000_000
START_SECONDS = 8.0
FETCH_SECONDS = 30.0
CPU_CORE_FLOPS = {True: 75e9, False: 37e9}
"""Sustained in training, by whether bf16 is fast; from default runs on two sets of data."""
CUDA_FLOPS, MPS_FLOPS = 20e12, 1.5e12
CUDA_STEP_SECONDS = 0.1
"""Small models on a GPU wait for the launch of their kernels, not for arithmetic."""
SAMPLE_TOKENS = 40


@dataclass(frozen=True)
class _Work:
    """The tokens of one epoch."""

    examples: int
    tokens: float
    supervised: float
    longest: float
    validation: int


@dataclass(frozen=True)
class _Shape:
    """The base model's size, with the starter's proportions where its config is not known yet."""

    parameters: int
    layers: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int


def estimate_training(
    config: FitSettings,
    base: BaseModelInfo,
    dataset: Dataset | None,
    machine: Machine,
    *,
    trainable: int,
    full_weights: bool,
    quantized: bool = False,
    passes: float = 1.0,
) -> Estimate:
    """Memory, time and disk of a run of the shared fit loop.

    Args:
        dataset: None: an ordinary dataset of 240 conversations is assumed.
        trainable: parameters that are trained.
        full_weights: weights of the base itself are trained (fp32 master weights), rather than an adapter.
        quantized: the base is held in 4 bits.
        passes: multiplies the training work, for strategies that read the data more often than `config.epochs`.
    """
    work, shape = _work(config, dataset), _shape(base)
    seconds = _seconds(config, work, shape, machine, trainable, full_weights, quantized, passes)
    seconds += START_SECONDS + shape.parameters * 2 / 1e9 + (0.0 if base.ready else FETCH_SECONDS)
    artifact = shape.parameters * 2 if full_weights else trainable * 4
    guessed = dataset is None or not base.ready or not base.parameters
    uncertainty = (2.5 if guessed else 1.8) * (1.0 if machine.device == "cpu" else 1.4)
    average = work.tokens / max(work.examples, 1)
    data = f"{work.examples} conversations of about {average:.0f} tokens"
    return Estimate(
        trainable_parameters=trainable,
        peak_memory_bytes=int(_memory(config, work, shape, machine, trainable, full_weights, quantized)),
        seconds=round(seconds, 1),
        # two checkpoints (weights and both moments of AdamW in fp32) and the artifact
        disk_bytes=int(artifact + 2 * trainable * 12),
        uncertainty=round(uncertainty, 2),
        reason=f"{data}, {config.epochs:g} times, on {_where(machine)}.",
    )


def _where(machine: Machine) -> str:
    return f"{machine.cores} CPU cores" if machine.device == "cpu" else machine.device_name


def _work(config: FitSettings, dataset: Dataset | None) -> _Work:
    if dataset is None:
        examples, tokens, supervised, validation = UNKNOWN_DATASET
        return _Work(examples, examples * tokens, examples * supervised, 3 * tokens, validation)
    train = dataset.of("train")
    lengths = [min(_tokens(c), float(config.max_tokens)) for c in train]
    supervised = sum(min(_tokens(c, "assistant"), float(config.max_tokens)) for c in train)
    return _Work(len(train), sum(lengths), supervised, max(lengths, default=0.0), len(dataset.of("validation")))


def _tokens(conversation: Conversation, role: str = "") -> float:
    turns = [m for m in conversation.messages if not role or m.role == role]
    return sum(len(m.content) / CHARACTERS_A_TOKEN + TURN_TOKENS for m in turns)


def _shape(base: BaseModelInfo) -> _Shape:
    config: dict[str, Any] = base.config.get("text_config") or base.config

    def number(fallback: int, *names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), fallback)

    parameters = base.parameters or 500_000_000
    hidden = number(max(256, int((parameters / 400) ** 0.5)), "hidden_size", "n_embd")
    return _Shape(
        parameters=parameters,
        layers=number(30, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        inner=number(hidden * 8 // 3, "intermediate_size", "n_inner"),
        heads=number(max(1, hidden // 64), "num_attention_heads", "n_head"),
        vocabulary=number(49152, "vocab_size"),
    )


def _flops_a_second(machine: Machine) -> float:
    if machine.device == "cpu":
        # more cores share one memory bus: they help less than in proportion
        return float(
            CPU_CORE_FLOPS[machine.bf16] * (2 * (machine.cores / 2) ** 0.8 if machine.cores > 2 else machine.cores)
        )
    return CUDA_FLOPS if machine.device == "cuda" else MPS_FLOPS


def _seconds(
    config: FitSettings,
    work: _Work,
    shape: _Shape,
    machine: Machine,
    trainable: int,
    full_weights: bool,
    quantized: bool,
    passes: float,
) -> float:
    """Of training, validations and sample replies.

    2 operations a weight and token forward, 2 for the gradients of activations, 2 for those of trained weights (Kaplan
    et al., https://arxiv.org/abs/2001.08361).
    """
    rate = _flops_a_second(machine) / (1.2 if quantized else 1.0)
    steps = max(1.0, work.examples / config.batch_size) * config.epochs * passes
    tokens = work.tokens * config.epochs * passes + SYSTEM_TOKENS * steps
    training = tokens * (4.0 * shape.parameters + 2.0 * trainable) / rate
    training = max(training, steps * CUDA_STEP_SECONDS) if machine.device == "cuda" else training
    if full_weights and machine.device == "cpu":
        training += steps * trainable * 1e-9 / machine.cores  # AdamW touches every trained weight each step
    checks = config.evaluations_per_epoch * config.epochs * passes + 2
    average = work.tokens / max(work.examples, 1)
    validation = checks * work.validation * average * 2.0 * shape.parameters / rate
    # a token at a time is bound by reading the weights: about a tenth of the arithmetic rate
    samples = checks * config.samples * SAMPLE_TOKENS * 2.0 * shape.parameters / (rate * 0.05)
    return training + validation + samples


def _memory(
    config: FitSettings,
    work: _Work,
    shape: _Shape,
    machine: Machine,
    trainable: int,
    full_weights: bool,
    quantized: bool,
) -> float:
    """Bytes at the peak: process, weights, trained weights with gradient and AdamW's moments, activations, logits."""
    width = 2 if machine.bf16 else 4
    weights = float(shape.parameters * width)
    if quantized:
        embedding = shape.vocabulary * shape.hidden
        weights = embedding * width + max(shape.parameters - embedding, 0) * 0.6
        if machine.device == "cpu":
            # on a CPU the 4-bit weights are unpacked for each product, and the unpacked ones are held for a while
            weights += shape.parameters * width
    states = trainable * 16.0
    average = work.tokens / max(work.examples, 1)
    # batches are sorted by length: the widest one is all of the longest
    rows = min(config.batch_size, max(work.examples, 1))
    tokens = rows * min(max(average * 1.3, work.longest * 0.7), config.max_tokens) + SYSTEM_TOKENS
    # an adapter keeps its own fp32 copies of what goes into each layer
    factor = 1.0 if full_weights else 1.4
    activations = tokens * shape.layers * width * (8 * shape.hidden + 4 * shape.inner) * factor
    span = tokens / rows + SYSTEM_TOKENS
    attention = rows * shape.heads * span * span * width * shape.layers
    logits = min(tokens, 512) * shape.vocabulary * 6.0
    process = PROCESS_BYTES if machine.device == "cpu" else PROCESS_BYTES / 2
    return process + weights + states + activations + attention + logits
