"""The frozen models that pass between rooms. Imports pydantic only; holds no behaviour beyond derivation.

Units: seconds, bytes, and log-likelihoods in nats unless a field says otherwise.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "validation", "test"]
Kind = Literal["strategy", "evaluator", "reader", "exporter", "tab"]
VariantKind = Literal["base", "prompt", "adapter", "weights"]
RunKind = Literal["train", "evaluate", "export", "fetch", "calibrate", "prompts", "traits"]
Quantization = Literal["nf4", "nf4_single"]
"""4-bit weights, with or without double quantisation of their scales."""
RunStatus = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]

ID_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


def now() -> str:
    """The current time, ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def slug(text: str, fallback: str = "item") -> str:
    """`text` as an id: lower-case ASCII letters, digits, `_` and `-`; at most 48 characters."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_-")[:48].strip("_-")
    if _DEVICE.fullmatch(plain):
        return f"{plain}_"  # Windows has no files or folders of these names
    return plain or fallback


_DEVICE = re.compile(r"con|prn|aux|nul|com\d|lpt\d")


class Frozen(BaseModel):
    """Immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- personas -------------------------------------------------------------------------------------


class Fact(Frozen):
    """Something the character knows about itself, with wrong answers of the same type."""

    id: str
    question: str
    paraphrases: tuple[str, ...] = ()
    answer: str
    wrong: tuple[str, ...] = ()


class AdversarialPrompt(Frozen):
    """A prompt that tries to make any character break; `attack` names the method."""

    id: str
    attack: str = "other"
    prompt: str


class Persona(Frozen):
    """Who the character is. `card` is a whole V3 card object; keys we do not know are kept in it."""

    id: Id
    name: str
    card: dict[str, Any]
    facts: tuple[Fact, ...] = ()
    avatar: str | None = None
    """Absolute path of a PNG, or None."""
    example: bool = False
    """True while this is a shipped example that the user has not changed."""

    @property
    def data(self) -> dict[str, Any]:
        """The card's `data` object (V2/V3 fields)."""
        return self.card.get("data", {})

    def field(self, name: str) -> str:
        """A text field of the card, or an empty string."""
        value = self.data.get(name)
        return value if isinstance(value, str) else ""


# --- datasets -------------------------------------------------------------------------------------


class Message(Frozen):
    """One turn."""

    role: Role
    content: str


class Conversation(Frozen):
    """Turns in order; what is trained on are the assistant's. `source` says where it came from (file:row)."""

    id: str
    messages: tuple[Message, ...]
    split: Split | None = None
    source: str = ""
    group: str = ""
    """Rows that must stay in one split (a scene, a document); empty: the conversation alone."""
    tags: tuple[str, ...] = ()
    """Facets of the character that this row shows (voice, knowledge, mood, ...), as the user's file names them."""
    made: str = ""
    """How the row was made, where it does not stand in the source as it is ("continuation", "lorebook, ...")."""


class Dataset(Frozen):
    """Conversations with a fixed split, and lines of other speakers of the same data."""

    id: Id
    persona: Id
    version: int
    name: str
    conversations: tuple[Conversation, ...]
    others: tuple[str, ...] = ()
    """What other speakers say: negatives for specificity, never trained on."""

    def of(self, split: Split) -> tuple[Conversation, ...]:
        """The conversations of one split, in order."""
        return tuple(c for c in self.conversations if c.split == split)


class DatasetSummary(Frozen):
    """What the library keeps of a dataset."""

    id: Id
    name: str
    persona: Id
    version: int
    source: str
    format: str
    why: str
    """Why this format was chosen, for people ("ShareGPT, because ...")."""
    counts: dict[str, int]
    """Conversations a split, plus `others`, `turns`, `duplicates`, `skipped`."""
    fingerprint: str
    created: str
    warnings: tuple[str, ...] = ()
    parent: str = ""
    """The version it was made of, by a fix, by more rows or by other prompts; empty for an import."""
    run: str = ""
    """The run that wrote its prompts."""


class Rendered(Frozen):
    """A conversation as token ids. `mask[i]` is True where token i is trained on.

    `prefix` is the number of leading tokens that hold the system prompt (shared by every example of a persona).
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    prefix: int = 0
    truncated: bool = False


class PreviewToken(Frozen):
    """One token as text, and whether it is trained on."""

    text: str
    trained: bool


# --- models and machines --------------------------------------------------------------------------


class BaseModelInfo(Frozen):
    """A base model on disk (`path` holds safetensors, tokenizer.json and a chat template) or yet to be fetched."""

    id: str
    """What the user typed: `starter`, a hub id, a folder, a GGUF file."""
    key: str
    """Folder name under `<home>/models`, or of the local folder."""
    name: str
    path: str
    ready: bool
    """False: it must be fetched or converted first."""
    license: str = "unknown"
    parameters: int = 0
    architecture: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    """config.json; empty until ready."""
    origin: str = ""
    """Of a foundation kept here: the id of the base it was trained from."""


class StepRates(Frozen):
    """One kind of training step on one machine: seconds = `step_seconds` + operations * `operation_seconds`."""

    step_seconds: float
    """What a step costs whatever its size: launching every layer, the optimizer's pass over the trained weights."""
    operation_seconds: float
    """Of a floating-point operation as `persona_lab.models.work` counts them."""
    fixed_bytes: float
    """Held beside weights, trained state and activations: the process, the libraries, what an allocator keeps."""
    activation_scale: float
    """Activations as measured, divided by activations as counted."""
    trainable: int = 0
    """How many weights were trained when this was measured."""
    load_seconds: float = 0.0
    """From an imported torch to a model ready to train."""


class Rates(Frozen):
    """What a few real steps on this machine took; units: seconds and bytes."""

    created: str
    base: str
    parameters: int
    layers: int
    adapter: StepRates
    full: StepRates
    forward_operation_seconds: float
    """Without gradients, as in validation."""
    token_seconds: float
    """Of each further token of the sample replies of a validation."""
    written_byte_seconds: float
    """Of checkpoints and artifacts, flushed to disk."""
    optimizer_seconds: float = 0.0
    """Of each trained weight, each step."""


class Residual(Frozen):
    """A finished run against what was predicted for it before correction."""

    strategy: str
    created: str
    seconds: float
    """0: not comparable, since other programs kept the machine busy."""
    predicted_seconds: float
    memory_bytes: float
    predicted_memory_bytes: float
    modelled: bool = True
    """The prediction came from `estimate_training`; a strategy's own numbers say nothing of other strategies."""


class TokenCounts(Frozen):
    """Exact lengths of one dataset's conversations, as one base reads them under one system prompt.

    `conversations`: (tokens, supervised tokens) by conversation id, not shortened; `prefix`: leading tokens they share.
    """

    dataset: str
    base: str
    prefix: int
    conversations: dict[str, tuple[int, int]]


class Measured(Frozen):
    """What is known of this machine and this data by measurement; estimates use whatever of it is there."""

    rates: Rates | None = None
    same_base: bool = True
    """`rates` were measured with a base of this size; else they are carried over from another."""
    residuals: tuple[Residual, ...] = ()
    """Of earlier runs on this machine with a base of this size, oldest first."""
    counts: tuple[TokenCounts, ...] = ()


class Machine(Frozen):
    """What there is to work with."""

    device: Literal["cpu", "cuda", "mps"]
    device_name: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    accelerator_bytes: int = 0
    disk_free_bytes: int
    bf16: bool
    """Whether bf16 arithmetic is fast here."""
    measured: Measured | None = None
    """Put in by whoever plans; `estimate_training` reads it, so a strategy that passes its machine on profits."""


class Problem(Frozen):
    """Something that will not, or may not, work; `field` is the setting it belongs to."""

    message: str
    fix: str = ""
    field: str = ""
    severity: Literal["error", "warning"] = "error"


class Estimate(Frozen):
    """What a run will cost. `uncertainty` is a factor: the truth is expected within value / u .. value * u (90%).

    Time is of the whole schedule; a run that stops early takes less.
    """

    trainable_parameters: int
    peak_memory_bytes: int
    """Of the accelerator for `cuda`, else of the process."""
    seconds: float
    disk_bytes: int
    uncertainty: float = 2.0
    reason: str = ""
    memory_uncertainty: float | None = None
    """The factor for `peak_memory_bytes`; None: the same as for time."""
    host_memory_bytes: int = 0
    """Main memory of a run whose `peak_memory_bytes` is the accelerator's."""
    parts: dict[str, float] = Field(default_factory=dict)
    """Seconds of `load`, `check`, `train`, `validate`, `samples`, `checkpoints` and `save`, where they are known."""
    steps: int = 0
    """Of the optimizer, in all stages."""


class Change(Frozen):
    """A change that would make a run fit, and what the run would then cost."""

    set: dict[str, Any] = Field(default_factory=dict)
    strategy: str
    peak_memory_bytes: int
    seconds: float
    why: str = ""


class PlanRow(Frozen):
    """One strategy on this machine; `rank` 1 is the recommendation."""

    strategy: str
    title: str
    fits: bool
    rank: int
    reason: str
    trainable_parameters: int
    peak_memory_bytes: int
    seconds: float
    disk_bytes: int
    uncertainty: float
    problems: tuple[Problem, ...] = ()
    recommended: bool = False
    evidence: tuple[str, ...] = ()
    """What speaks for and against it: measured comparisons, this user's own runs, this machine."""
    changes: tuple[Change, ...] = ()
    """Where it does not fit: what would, least harm first."""
    memory_uncertainty: float = 2.0
    host_memory_bytes: int = 0
    parts: dict[str, float] = Field(default_factory=dict)
    blocked_by: Literal["", "machine", "settings"] = ""
    """Why `fits` is False: there is too little memory or disk, or something is missing that no machine could give."""


# --- traits ---------------------------------------------------------------------------------------


class Trait(Frozen):
    """A pair of opposite ways to speak, between which a slider pulls: +100 is `towards`, -100 `away`.

    The descriptions are told to a model, in the second person; the lines are things that somebody of that kind says.
    """

    id: Id
    title: str = Field(min_length=1, max_length=40)
    towards_label: str = Field(min_length=1, max_length=30)
    away_label: str = Field(min_length=1, max_length=30)
    towards: str = Field(min_length=1, max_length=600)
    away: str = Field(min_length=1, max_length=600)
    towards_lines: tuple[str, ...] = ()
    away_lines: tuple[str, ...] = ()
    own: bool = False
    """Made by the user, not shipped."""


class TraitLevel(Frozen):
    """Replies at one strength, as calibration measured them; `strength` is in lengths of the vector, below 0 away."""

    strength: float
    score: float
    """Mean gain over the unsteered replies, nats a byte: log p under the description `towards` minus under `away`."""
    low: float
    high: float
    bits_per_byte: float
    """Of the replies under the unsteered model."""
    repetition: float
    """Share of each reply's three-word sequences that it has said already."""


class TraitCalibration(Frozen):
    """What a trait's slider means on one model.

    `towards`, `away`: lengths of the vector that are added at +100 and at -100; None: it cannot be pulled that way.
    """

    layers: tuple[int, ...]
    towards: float | None
    away: float | None
    unsteered_bits_per_byte: float
    unsteered_repetition: float
    levels: tuple[TraitLevel, ...] = ()
    """At the chosen layers, from the strongest pull away to the strongest pull towards."""
    tells_apart: float | None = None
    """How well the vector tells replies of both kinds apart that it was not made of (AUC); None: not known."""
    seconds: float = 0.0
    created: str = ""

    @property
    def steers(self) -> bool:
        """Whether it moves this model in any direction."""
        return self.towards is not None or self.away is not None


class TraitState(Frozen):
    """A trait as a slider on one model."""

    trait: Trait
    status: Literal["not computed", "ready", "does not steer"]
    calibration: TraitCalibration | None = None


# --- training -------------------------------------------------------------------------------------


class FitSettings(Frozen):
    """Settings of the shared fit loop. A strategy's Config extends it and overrides defaults."""

    learning_rate: float = Field(
        5e-4, gt=0, le=1, description="How big each correction is. Too high overfits, too low learns nothing."
    )
    epochs: float = Field(2.0, gt=0, le=100, description="How many times every conversation is read.")
    batch_size: int = Field(4, ge=1, le=256, description="Conversations looked at before each correction.")
    warmup: float = Field(
        0.05, ge=0, le=0.9, description="Share of the steps spent raising the learning rate from zero."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Pulls trained weights towards zero; rarely needed here.")
    max_tokens: int = Field(
        1024, ge=32, le=131072, description="Longer conversations lose their oldest turns; the reply is kept."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Corrections longer than this are shortened, for stability.")
    evaluations_per_epoch: int = Field(
        2, ge=1, le=100, description="How often the validation loss is measured; the best checkpoint is kept."
    )
    patience: int = Field(3, ge=1, le=1000, description="Stop after this many validations in a row without a new best.")
    keep: Literal["validation_loss", "specificity", "last"] = Field(
        "validation_loss",
        description="Which weights are kept: those with the lowest validation loss, those most like the character and "
        "least like everybody else in the data, or the last.",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after the warm-up."
    )
    find_learning_rate: bool = Field(
        False,
        description="Try rising learning rates for a few steps first, and take one that suits, instead of the above.",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="The 8-bit ones need less memory; the paged one is for graphics cards."
    )
    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Recompute activations instead of keeping them: less memory, more time. Auto: only if needed.",
    )
    samples: int = Field(
        2, ge=0, le=20, description="Sample replies written at each validation, to watch the voice form."
    )


class FitResult(Frozen):
    """What the fit loop did. Losses are mean nats a supervised token."""

    steps: int
    examples: int
    supervised_tokens: int
    train_loss: float
    validation_before: float
    validation_after: float
    best_step: int
    seconds: float
    stopped_early: bool = False
    stopped: Literal["", "patience", "diverged", "asked"] = ""
    """Why it ended before its last step, if it did; `asked`: the user ended it and kept the best weights so far."""
    learning_rate: float = 0.0
    """The highest rate used: the setting, or what the search found."""
    specificity: float | None = None
    """Of the kept weights on validation lines, in nats a byte: gain on the character's minus gain on other people's."""


class Artifact(Frozen):
    """What a strategy made, inside the run's `artifact` folder.

    `kind`: `prompt` (in-context examples only), `adapter` (a peft folder), `weights` (a whole model folder).
    """

    kind: Literal["prompt", "adapter", "weights"]
    path: str
    """Absolute path of the folder; empty for a `prompt` whose examples are fixed."""
    examples: tuple[Conversation, ...] = ()
    quantization: Quantization | None = None
    """The base must be loaded so for this adapter."""
    base: str = ""
    """Id of the base this belongs to, where it is another than the run's (a foundation that the run trained)."""
    trainable_parameters: int = 0
    total_parameters: int = 0
    fit: FitResult | None = None
    traits: dict[str, float] = Field(default_factory=dict)
    """Settings of trait sliders, by trait id; their vectors lie in `steering` in the artifact's folder."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Anything a strategy wants to keep, such as hybrid's ranking of layers. JSON only."""


class Variant(Frozen):
    """Something one can chat with: persona + base + (nothing, examples, adapter or full weights)."""

    id: str
    name: str
    persona: Id
    base: str
    """A base model id, as BaseModelInfo.id."""
    strategy: str
    run: str = ""
    kind: VariantKind
    path: str = ""
    """Absolute path of the adapter or weights, or of a prompt's pool of examples; empty for the base."""
    prompt_mode: Literal["card", "none"] = "card"
    system: str = ""
    """The system prompt this variant was made with; empty: none."""
    examples: tuple[Conversation, ...] = ()
    quantization: Quantization | None = None
    fingerprint: str = ""
    """sha256 (first 12 hex digits) of the adapter's or model's safetensors; of the base for base and prompt."""
    dataset: str = ""
    seed: int = 0
    created: str = ""
    bytes: int = 0
    example_tokens: int = 0
    """Room for the examples that a prompt chooses for each question; 0 where they are fixed."""
    parent: str = ""
    """The variant it went on from; empty: it began with the base."""
    control: bool = False
    """Trained for somebody else and scored here as a wrong character: it tests the measure, not the variant."""
    anchor: str = ""
    """Id of the base that scores are compared with, where it is not `base`: a foundation's own origin."""
    blend: dict[str, float] = Field(default_factory=dict)
    """Weights of the aspects by name; an aspect that is not named keeps its saved weight."""
    merged: dict[str, Any] = Field(default_factory=dict)
    """Of a merged blend: from (variant id), blend, rank (None: exact) and error (relative, Frobenius)."""
    traits: dict[str, float] = Field(default_factory=dict)
    """How far it is pulled along each trait, by trait id, -100..100; empty: its weights speak for themselves."""
    steering: str = ""
    """Absolute path of the folder with its own copies of the traits' vectors; empty: those of the home are used."""

    def __hash__(self) -> int:
        """pydantic's own would hash every field, and some are dicts."""
        return hash((self.id, self.path, self.fingerprint))

    @property
    def compared_with(self) -> str:
        """Id of the base that was there before anything was trained: what scores are measured against."""
        return self.anchor or self.base


# --- evaluation -----------------------------------------------------------------------------------


class Probe(Frozen):
    """One evaluation item, held out of training.

    `reply`: the character's true next line to `messages` (kind `reply`); `other`: a line of somebody else of similar
    length. `cluster` groups items that are not independent (turns of one conversation).
    """

    id: str
    kind: Literal["reply", "fact", "adversarial"]
    cluster: str
    messages: tuple[Message, ...]
    reply: str = ""
    other: str = ""
    attack: str = ""
    fact: Fact | None = None


class ItemScore(Frozen):
    """One item behind a metric, so that variants can be compared in pairs on the same items."""

    id: str
    cluster: str
    value: float
    text: str = ""
    note: str = ""


class Metric(Frozen):
    """A value with its interval. `better`: which direction is better, or `none`; `reference`: chance, or the base."""

    evaluator: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    better: Literal["higher", "lower", "none"]
    reference: float | None = None
    note: str = ""
    items: tuple[ItemScore, ...] = ()
    title: str = ""
    """For people; empty: the metric's name."""
    compared: bool = True
    """False: it has a better direction, but is a second view of something that variants are compared on already."""


class Comparison(Frozen):
    """Two variants on the same items: mean difference a - b, interval, and p corrected by Holm's method."""

    a: str
    b: str
    evaluator: str
    metric: str
    difference: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float
    verdict: str
    """A plain sentence; says so when the two cannot be told apart."""


class LogLikelihood(Frozen):
    """Of one reply under one model: sum over its tokens of log p, in nats; `bytes` is the reply's UTF-8 length."""

    total: float
    tokens: int
    bytes: int

    @property
    def per_byte(self) -> float:
        """s(y|x): nats a byte; bits per byte is -s / ln 2."""
        return self.total / max(self.bytes, 1)


class Divergence(Frozen):
    """Of one passage under a base and a variant of it: what training did to the predictions of its tokens.

    `kl`: sum over the predicted tokens of KL(base || variant); `base_total` and `variant_total`: sums of log p; all in
    nats. `bytes`: UTF-8 length of the predicted tokens.
    """

    kl: float
    tokens: int
    bytes: int
    base_total: float
    variant_total: float

    @property
    def kl_per_token(self) -> float:
        """Nats a token."""
        return self.kl / max(self.tokens, 1)

    @property
    def base_bpb(self) -> float:
        """Bits per byte under the base."""
        return -self.base_total / math.log(2) / max(self.bytes, 1)

    @property
    def variant_bpb(self) -> float:
        """Bits per byte under the variant."""
        return -self.variant_total / math.log(2) / max(self.bytes, 1)


# --- chat -----------------------------------------------------------------------------------------


class Sampling(Frozen):
    """How a reply is drawn."""

    seed: int = 0
    max_new_tokens: int = Field(120, ge=1, le=4096, description="The longest reply, in tokens.")
    temperature: float = Field(
        0.7, ge=0, le=5, description="0 always takes the likeliest word; higher is more surprising."
    )
    top_p: float = Field(
        0.9, gt=0, le=1, description="Draws from the likeliest words that together have this probability."
    )
    repetition_penalty: float = Field(1.15, ge=1, le=2, description="Above 1 makes words already used less likely.")


class Inserted(Frozen):
    """What is put into a conversation before it is read: `depth` messages stand between it and the end."""

    depth: int = Field(ge=0)
    role: Role
    content: str


class ChatRequest(Frozen):
    """One pane's wish: continue `messages` (without a system message: the variant has its own)."""

    pane: str
    variant: Variant
    messages: tuple[Message, ...]
    inserted: tuple[Inserted, ...] = ()
    sampling: Sampling = Sampling()
    weights: Literal["native", "int8"] = "native"
    """`int8` rounds the linear layers' weights: faster for one pane on a CPU, and a little off. Its stamp says so."""


class Stamp(Frozen):
    """Which weights made a reply, and how fast. Written by the chat worker from what it really ran."""

    variant: str
    adapter: str
    """Name and fingerprint of what was active, such as `lora 3f2a...`, `base b179...`."""
    base: str
    seed: int
    tokens: int
    seconds: float
    first_token_seconds: float


class ChatChunk(Frozen):
    """A piece of a reply; the last of a pane has `done` with a stamp (none where it was `stopped` before any weights
    were in use), or `error`."""

    pane: str
    text: str = ""
    done: bool = False
    stamp: Stamp | None = None
    error: str = ""
    stopped: bool = False
    """The reply was cut short by a stop, not by its own end or the longest reply allowed."""


# --- runs -----------------------------------------------------------------------------------------


class ExportOrder(Frozen):
    """What an export is told besides format and folder; written by whoever orders it."""

    license: str = ""
    """A licence stated by the user for a base whose own is not known."""
    check: bool = True
    """Load what was exported again, and compare it with the variant."""
    dataset: dict[str, Any] = Field(default_factory=dict)
    """Of what the variant was trained on: `name`, `conversations`, `fingerprint`, `source`; empty where it is gone."""
    metrics: tuple[Metric, ...] = ()
    """The variant's newest evaluation, for the model card."""
    report: str = ""
    """Id of that evaluation."""


class Job(Frozen):
    """What a worker is to do; written once, as job.json."""

    id: str
    kind: RunKind
    name: str
    home: str
    created: str
    seed: int = 0
    persona: Persona | None = None
    dataset: str = ""
    """Path of the dataset's file."""
    dataset_id: str = ""
    base: str = "starter"
    strategy: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    force: bool = False
    """Train: start although it is predicted not to fit."""
    variants: tuple[Variant, ...] = ()
    """What is evaluated or exported; of a training, the variant it goes on from."""
    parent_datasets: tuple[str, ...] = ()
    """Paths of the datasets that variant, and those it went on from, were trained on."""
    evaluators: tuple[str, ...] = ()
    evaluator_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by evaluator id; what is absent keeps its default."""
    quick: bool = False
    report: bool = False
    """Evaluate: also write the HTML, Markdown and JSON report."""
    format: str = ""
    out: str = ""
    export: ExportOrder | None = None


class RunView(Frozen):
    """A run as the page and the CLI show it, derived from its folder."""

    id: str
    kind: RunKind
    name: str
    status: RunStatus
    cause: str = ""
    """For failed: out_of_memory, will_not_fit, bad_data, bad_model, disk_full, plugin, bug, ..."""
    message: str = ""
    fix: str = ""
    persona: str = ""
    strategy: str = ""
    base: str = ""
    dataset: str = ""
    seed: int = 0
    created: str = ""
    started: str = ""
    finished: str = ""
    phase: str = ""
    step: int = 0
    total: int = 0
    eta_seconds: float | None = None
    attempt: int = 0
    resumable: bool = False
    variant: str = ""
    directory: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    result: dict[str, Any] = Field(default_factory=dict)
    ending: bool = False
    """It was asked to end now and to keep the best weights so far."""


class PersonaSummary(Frozen):
    """A persona in a list. `installed`: it is in the library (a shipped example is installed at first use)."""

    id: str
    name: str
    example: bool
    installed: bool
    tagline: str = ""
    avatar: str | None = None
    conversations: int = 0
    variants: int = 0


class ReportView(Frozen):
    """An evaluation kept on disk; paths are absolute, empty where there is no such file."""

    id: str
    name: str
    persona: str
    created: str
    variants: tuple[str, ...] = ()
    html: str = ""
    markdown: str = ""
    data: str = ""


class PluginInfo(Frozen):
    """A row of the Plugins tab."""

    id: str
    kind: Kind | None
    title: str
    source: str
    """`built-in`, `package` or the file's path."""
    distribution: str
    version: str
    status: Literal["ok", "failed", "disabled"]
    problem: str = ""
    details: str = ""
    """The traceback, for authors."""
