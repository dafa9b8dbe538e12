"""The one module plugin authors import: base classes, types, errors, `hookimpl` and the toolkit.

Importing it costs no torch. Toolkit functions listed in `_TOOLKIT` are loaded on first use
(`from persona_lab.api import cluster_bootstrap` inside a method, not at the top of a plugin).
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from persona_lab.errors import (
    BadInput,
    BadModel,
    BadSetting,
    Cancelled,
    DiskFull,
    OutOfMemory,
    PersonaLabError,
    UnknownName,
    WorkFailed,
)
from persona_lab.hookspecs import hookimpl
from persona_lab.types import (
    AdversarialPrompt,
    Artifact,
    BaseModelInfo,
    Conversation,
    Dataset,
    Divergence,
    Estimate,
    Fact,
    FitResult,
    FitSettings,
    Frozen,
    ItemScore,
    LogLikelihood,
    Machine,
    Measured,
    Message,
    Metric,
    Persona,
    Probe,
    Problem,
    Quantization,
    Rendered,
    Sampling,
    TokenCounts,
    TraitState,
    Variant,
)

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.types import Rendered

API_VERSION = 1

_TOOLKIT = {
    # name -> module; light ones first, then those that need numpy, then those that need torch
    "ChatRenderer": "persona_lab.datasets.rendering",
    "read_text": "persona_lab.datasets.toolkit",
    "read_json": "persona_lab.datasets.toolkit",
    "read_rows": "persona_lab.datasets.rows",
    "peek_rows": "persona_lab.datasets.rows",
    "json_type": "persona_lab.datasets.toolkit",
    "peek_text": "persona_lab.datasets.toolkit",
    "head_bytes": "persona_lab.datasets.toolkit",
    "split_of": "persona_lab.datasets.toolkit",
    "collect": "persona_lab.datasets.turns",
    "dialogue": "persona_lab.datasets.turns",
    "script_result": "persona_lab.datasets.chatlog",
    "make_conversation": "persona_lab.datasets.turns",
    "match_speaker": "persona_lab.datasets.turns",
    "UnusableRow": "persona_lab.datasets.turns",
    "Said": "persona_lab.datasets.talks",
    "EVERYBODY": "persona_lab.datasets.talks",
    "speakers": "persona_lab.datasets.chatlog",
    "chat_result": "persona_lab.datasets.chatlog",
    "chats_result": "persona_lab.datasets.chatlog",
    "Block": "persona_lab.datasets.documents",
    "document_result": "persona_lab.datasets.documents",
    "text_blocks": "persona_lab.datasets.documents",
    "without_licence": "persona_lab.datasets.documents",
    "Zip": "persona_lab.datasets.containers",
    "zip_member": "persona_lab.datasets.containers",
    "html_blocks": "persona_lab.datasets.containers",
    "xml_root": "persona_lab.datasets.containers",
    "pdf_blocks": "persona_lab.datasets.containers",
    "tick": "persona_lab.datasets.progress",
    "estimate_training": "persona_lab.models.estimate",
    "estimate_forward": "persona_lab.models.estimate",
    "guessed_tokens": "persona_lab.models.work",
    "combine_estimates": "persona_lab.models.estimate",
    "data_problems": "persona_lab.training.advice",
    "lora_parameters": "persona_lab.training.sizes",
    "layer_parameters": "persona_lab.training.sizes",
    "layer_count": "persona_lab.training.sizes",
    "write_atomic": "persona_lab.home",
    "content_key": "persona_lab.datasets.splits",
    "best_examples": "persona_lab.datasets.examples",
    "example_candidates": "persona_lab.datasets.examples",
    "cluster_bootstrap": "persona_lab.evaluation.statistics",
    "wilson": "persona_lab.evaluation.statistics",
    "paired_permutation": "persona_lab.evaluation.statistics",
    "mean_metric": "persona_lab.evaluation.statistics",
    "share_metric": "persona_lab.evaluation.statistics",
    "missing_metric": "persona_lab.evaluation.statistics",
    "difference_bootstrap": "persona_lab.evaluation.statistics",
    "other_lines": "persona_lab.evaluation.probes",
    "match_lengths": "persona_lab.evaluation.probes",
    "spread": "persona_lab.evaluation.probes",
    "measure_update": "persona_lab.evaluation.geometry",
    "StyleModel": "persona_lab.evaluation.style",
    "Line": "persona_lab.evaluation.distractors",
    "distractors": "persona_lab.evaluation.distractors",
    "own_lines": "persona_lab.evaluation.distractors",
    "voice_of": "persona_lab.evaluation.style",
    "held_out_lines": "persona_lab.evaluation.style",
    "written_replies": "persona_lab.evaluation.replies",
    "replies_to": "persona_lab.evaluation.replies",
    "slug": "persona_lab.types",
    "corpus_files": "persona_lab.datasets.corpus",
    "own_corpus": "persona_lab.datasets.corpus",
    "corpus_passages": "persona_lab.training.foundation",
    "kept_base": "persona_lab.training.foundation",
    "keep_base": "persona_lab.training.foundation",
    "parse_traits": "persona_lab.inference.trait_files",
    "rows_by_aspect": "persona_lab.datasets.aspects",
    "rows_by_tag": "persona_lab.datasets.aspects",
    "parse_weights": "persona_lab.datasets.aspects",
    "attach_aspect": "persona_lab.training.aspects",
    "save_aspects": "persona_lab.training.aspects",
    "ablation": "persona_lab.training.locate",
    "benefit_per_cost": "persona_lab.training.locate",
    "attach_lora": "persona_lab.training.lora",
    "adapted_layers": "persona_lab.training.lora",
    "without_layer": "persona_lab.training.lora",
    "train_layers": "persona_lab.training.lora",
    "relative_update": "persona_lab.training.lora",
    "merged_model": "persona_lab.training.lora",
    "load_variant": "persona_lab.inference.loading",
    "worker_machine": "persona_lab.models.machine",
    "write_checksums": "persona_lab.export.toolkit",
    "write_model_card": "persona_lab.export.toolkit",
    "write_persona_files": "persona_lab.export.toolkit",
    "write_generation_config": "persona_lab.export.toolkit",
    "copy_tokenizer": "persona_lab.export.toolkit",
    "hub_name": "persona_lab.export.toolkit",
    "license_of": "persona_lab.export.toolkit",
    "merged_warning": "persona_lab.export.toolkit",
    "pull_problems": "persona_lab.export.pulls",
    "control_vector_problems": "persona_lab.export.control_vector",
    "write_control_vector": "persona_lab.export.control_vector",
    "write_whole_model": "persona_lab.export.merging",
    "whole_model_bytes": "persona_lab.export.merging",
    "write_gguf": "persona_lab.export.gguf_file",
    "refuse_architecture": "persona_lab.export.gguf_file",
    "estimate_gguf_bytes": "persona_lab.export.gguf_file",
    "go_template": "persona_lab.export.modelfile",
    "write_modelfile": "persona_lab.export.modelfile",
    "Modelfile": "persona_lab.export.modelfile",
    "GoTemplate": "persona_lab.export.modelfile",
    "card_png": "persona_lab.export.toolkit",
    "greeting": "persona_lab.personas.prompt",
    "example_dialogues": "persona_lab.personas.dialogues",
}


def __getattr__(name: str) -> Any:
    if name in _TOOLKIT:
        return getattr(importlib.import_module(_TOOLKIT[name]), name)
    raise AttributeError(f"persona_lab.api has no {name!r}")


class NoSettings(Frozen):
    """A Config without fields, for plugins that need none."""


class Reporter(Protocol):
    """How work reports itself; every call may raise `Cancelled`, which must be let through."""

    def phase(self, title: str, total: int | None = None) -> None:
        """Begin a part of the work, of `total` steps when known."""

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        """Report progress: `loss`, `learning_rate`, `tokens_per_second`, `stage`; time left is worked out here.

        Raises:
            Cancelled: the user asked to stop.
        """

    def log(self, message: str, level: str = "info") -> None:
        """Say something to people."""


class TrainContext(Reporter, Protocol):
    """What a strategy gets, in the worker. Models are torch modules, typed Any so that importing costs nothing."""

    persona: Persona
    dataset: Dataset
    base: BaseModelInfo
    machine: Machine
    seed: int
    run_dir: Path
    system: str
    """The persona's system prompt, used in training, validation and samples."""
    renderer: ChatRenderer
    parent: Variant | None
    """What a strategy that `goes_on` goes on from; else None."""
    learned: tuple[Conversation, ...]
    """What the parent was trained on, less what is held out by now; empty without a parent."""

    def load_base(self, quantization: Quantization | None = None, full_precision: bool = False) -> Any:
        """The base model on the device, frozen (no parameter requires a gradient).

        Args:
            quantization: `nf4` for 4-bit through bitsandbytes, `nf4_single` without double quantisation.
            full_precision: fp32 weights (master weights of full fine-tuning) instead of the device's fast type.

        Raises:
            BadModel, OutOfMemory
        """

    def using(self, base: BaseModelInfo | None = None, dataset: Dataset | None = None) -> TrainContext:
        """The same context for a stage on another base (a foundation) or on a part of the rows."""

    def load_parent(self) -> Any:
        """The parent's model, trainable: its adapter on the frozen base, or all of its weights.

        Raises:
            BadInput: there is no parent with weights. BadModel, OutOfMemory
        """

    def fit(
        self,
        model: Any,
        settings: FitSettings,
        stage: str = "train",
        rendered: tuple[Sequence[Rendered], Sequence[Rendered]] | None = None,
        conversations: Sequence[Conversation] | None = None,
    ) -> FitResult:
        """Train whatever requires a gradient on the train split; leaves `model` at its best validation loss.

        Args:
            rendered: (training, validation) to use instead of the dataset's splits, as tokens.
            conversations: train on these rows instead; never on rows that are held out.

        Reports steps, validations and samples; writes checkpoints; resumes from the newest valid checkpoint of the
        same `stage` after an interruption.

        Raises:
            BadInput: nothing to train on. Cancelled, OutOfMemory, DiskFull
        """

    def enough(self) -> bool:
        """Whether the user asked to end now and to keep the best weights so far. `fit` heeds it after each step; so
        should a loop of your own."""

    def rendered(self, conversation: Conversation, max_tokens: int) -> Rendered:
        """A conversation behind the system prompt as tokens, as the fit loop reads it; `mask`: what is trained on."""

    def validation_loss(self, model: Any, examples: Any = (), limit: int = 60) -> float:
        """Mean nats a supervised token over the first `limit` conversations of the validation split; nan without any.

        Args:
            examples: in-context examples put before each conversation, or what gives them for its messages (a pool);
                they are not counted.
        """

    def layer_sensitivity(self, model: Any, limit: int = 24) -> list[tuple[int, float]]:
        """(layer, mean squared gradient a weight) of a plain model, on the first validation conversations."""

    def loglikelihood(self, model: Any, items: Sequence[tuple[Sequence[Message], str]]) -> list[LogLikelihood]:
        """Of each (messages, reply); messages include the system message if one is wanted."""

    def generate(self, model: Any, prompts: Sequence[Sequence[Message]], sampling: Sampling) -> list[str]:
        """One reply a prompt, in one batch; messages include the system message if one is wanted."""

    def save_adapter(self, model: Any, fit: FitResult, **details: Any) -> Artifact:
        """Write a peft adapter (safetensors) and describe it."""

    def save_weights(self, model: Any, fit: FitResult, **details: Any) -> Artifact:
        """Write a whole model folder (safetensors, tokenizer, chat template) and describe it."""

    def save_prompt(self, examples: Sequence[Conversation], **details: Any) -> Artifact:
        """No weights: in-context examples only."""

    def make_pool(self, candidates: Sequence[Conversation], count: int, token_budget: int) -> Any:
        """A pool of single exchanges from which at most `count`, in `token_budget` tokens, are shown for each question.

        By the embedding model where it can be had, else by TF-IDF, with the reason logged. Called with messages, it
        gives the examples for them: it can be passed to `validation_loss` as `examples`.
        """

    def save_pool(self, pool: Any, **details: Any) -> Artifact:
        """No weights: examples are chosen for each question from this pool."""

    def compute_traits(self, model: Any, traits: Sequence[str]) -> None:
        """See to it that these traits' vectors are there for this base: what is missing is computed and kept.

        Raises:
            UnknownName: there is no such trait. WorkFailed, BadModel, OutOfMemory
        """

    def pulled(self, model: Any, traits: Mapping[str, float]) -> AbstractContextManager[Any]:
        """The model pulled along traits (id -> -100..100) for as long as the context lasts.

        Raises:
            BadInput: one was not computed, or does not steer this base that way.
        """

    def save_steered(self, traits: Mapping[str, float], **details: Any) -> Artifact:
        """No weights: the settings of trait sliders, with copies of the traits' vectors."""

    def run_strategy(self, strategy: str, config: Mapping[str, Any], stage: str) -> tuple[Any, FitResult]:
        """Run another strategy's training inside this one; gives its trained model (a peft model for `lora`).

        Strategies that can be used so implement `train_model(job, ctx) -> (model, FitResult)`.
        """


class TrainJob(Frozen):
    """What is asked of a strategy: its validated `config` is passed as `settings` (an instance of its Config)."""

    settings: Any
    stage: str = "train"


class Strategy(ABC):
    """A way to make a variant.

    Class attributes: `id` (short, lower case), `title`, `summary` (one sentence with the reason to choose it), `rank`
    (order in lists, lower first) and `Config`, a pydantic model whose fields all have bounds, a default and a plain
    description: it is the form in the page and `--set` on the command line.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    rank: ClassVar[int] = 100
    Config: ClassVar[type[Frozen]] = NoSettings
    goes_on: ClassVar[bool] = False
    """True: it goes on from the variant that its setting `variant` names, which is `ctx.parent`."""

    def check_parent(
        self, config: Any, parent: Variant, learned: Sequence[Conversation], dataset: Dataset
    ) -> list[Problem]:
        """For strategies that go on: what speaks against this parent. Cheap; no torch."""
        return []

    def going_on(self, parent: Variant, learned: Sequence[Conversation]) -> Strategy:
        """For strategies that go on: this one, with an `estimate` of just this parent. Cheap; no torch."""
        return self

    def check(self, config: Any, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """What will not, or may not, work. Cheap; no torch."""
        return []

    @abstractmethod
    def estimate(self, config: Any, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """Memory, time, disk and trainable parameters. Cheap; no torch. See `estimate_training` in the toolkit."""

    @abstractmethod
    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Make the variant; runs in the worker."""


class EvalContext(Reporter, Protocol):
    """What an evaluator gets, in the worker. The base is scored with the same system prompt as the variant."""

    persona: Persona
    dataset: Dataset | None
    machine: Machine
    seed: int
    quick: bool
    settings: Any
    """The evaluator's validated Config."""

    def loglikelihood(
        self, variant: Variant | None, items: Sequence[tuple[Sequence[Message], str]]
    ) -> list[LogLikelihood]:
        """Of each (messages, reply) under the variant, or under the base with the persona's card if None.

        The variant's own system prompt and examples are put before the messages. Results are kept on disk by what went
        in (weights, prompt, reply), so evaluators may ask for the same items again, in this run or a later one.
        """

    def generate(self, variant: Variant | None, prompts: Sequence[Sequence[Message]], sampling: Sampling) -> list[str]:
        """One reply a prompt; kept on disk by what went in, like likelihoods."""

    def divergence(self, variant: Variant, passages: Sequence[str | tuple[Sequence[Message], str]]) -> list[Divergence]:
        """Of each plain text, or (messages, reply): KL(base || variant) over the whole vocabulary, teacher-forced.

        Compares weights: no system prompt and no examples are used. Kept on disk by what went in.
        """

    def updates(self, variant: Variant) -> Iterable[tuple[str, str, int | None, Any, Any]]:
        """(module name, kind, layer or None, base weight, delta) of every 2-D matrix that training changed.

        `kind` is `embedding`, or the module's own name, such as `q_proj`. Both matrices are fp32 torch tensors
        [outputs, inputs] on the CPU, one pair at a time; nothing is given for the base and for prompts.
        """

    def computed_traits(self) -> list[TraitState]:
        """The traits (`state.trait`) whose vectors are there for the variant's base; none is computed."""

    def along_traits(
        self, traits: Sequence[str], items: Sequence[tuple[Sequence[Message], str]]
    ) -> list[dict[str, float | None]]:
        """Of each (messages, reply) its place along each of these traits, by id, in lengths of the trait's vector.

        The unsteered base reads all texts, whoever wrote them, without a system prompt; kept on disk by what went in.
        Only differences mean something. None for a blank reply.

        Raises:
            BadInput: a trait was not computed for this base. BadModel
        """


class Evaluator(ABC):
    """Turns a variant and probes into metrics with confidence intervals.

    `Config` makes its form in the page and `--set id.key=value`; the validated instance is `ctx.settings`.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    rank: ClassVar[int] = 100
    Config: ClassVar[type[Frozen]] = NoSettings

    @abstractmethod
    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Score the variant; runs in the worker. `Metric.items` lets variants be compared in pairs."""


class ReadResult(Frozen):
    """What a reader made of a file. `others`: lines of other speakers; `skipped`: (row, reason) of unusable rows."""

    conversations: tuple[Conversation, ...]
    others: tuple[str, ...] = ()
    skipped: tuple[tuple[int, str], ...] = ()
    warnings: tuple[str, ...] = ()


class Detection(Frozen):
    """How sure a reader is that a file is its own: 0 (no) .. 1 (certain), and why, for people."""

    score: float
    why: str = ""


class DatasetReader(ABC):
    """A file format that can become a dataset. Readers run in the page's process: no torch, everything bounded."""

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    rank: ClassVar[int] = 100
    binary: ClassVar[bool] = False
    """True: it reads files that are not text (zip, PDF, tables)."""

    @abstractmethod
    def detect(self, path: Path) -> Detection:
        """Whether this file is of the format. Must not raise for a file of another format."""

    def roles(self, path: Path) -> Mapping[str, Sequence[str]]:
        """What `mapping` may name in this file, by role: `{"assistant": [speakers or columns], "user": [...]}`.

        The page makes a list to choose from of each. Empty: nothing can be chosen.

        Raises:
            BadInput: the file cannot be read.
        """
        return {}

    @abstractmethod
    def read(self, path: Path, persona: Persona, mapping: Mapping[str, str]) -> ReadResult:
        """Read the file. `mapping` is `--map role=column,...`.

        Raises:
            BadInput: the file cannot be read, with the row and what to do.
        """


class ExportContext(Reporter, Protocol):
    """What an exporter gets, in the worker."""

    settings: Any
    """The exporter's validated Config."""
    dataset: Mapping[str, Any]
    """What the variant was trained on: `name`, `conversations`, `fingerprint`, `source`; may be empty."""
    metrics: Sequence[Metric]
    """The variant's newest evaluation; empty where there is none."""
    report: str
    """Id of that evaluation."""

    def use(self, commands: str) -> None:
        """How the result is used: commands that are shown with it, on the command line and in the page."""


class Exporter(ABC):
    """Takes a variant elsewhere; runs in the worker.

    `keeps_traits`: it can express that a variant is pulled along traits (`Variant.traits`); others are not asked to.

    After an export, a folder with an adapter, a model or a GGUF file in it is loaded again and compared with the
    variant by whoever runs the exporter.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    rank: ClassVar[int] = 100
    Config: ClassVar[type[Frozen]] = NoSettings
    keeps_traits: ClassVar[bool] = False

    def check(self, variant: Variant) -> list[Problem]:
        """Why this variant cannot be expressed in this format, if so. Cheap; no torch."""
        return []

    def check_base(self, variant: Variant, base: BaseModelInfo, settings: Any) -> list[Problem]:
        """The same, knowing the base and the settings. Cheap; no torch. `base.config` is empty until it is fetched."""
        return []

    def estimate_bytes(self, variant: Variant, base: BaseModelInfo, settings: Any) -> int:
        """How large the result will be, with what is needed on the way; 0: not known. Cheap; no torch."""
        return 0

    @abstractmethod
    def export(
        self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: ExportContext
    ) -> list[Path]:
        """Write into the empty folder `out`; returns the files written."""


class Tab(ABC):
    """A tab of the page."""

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str] = ""
    rank: ClassVar[int] = 100

    @abstractmethod
    def build(self, engine: Any) -> None:
        """Create gradio components inside an open `gr.Tab`."""


__all__ = [
    "API_VERSION",
    "AdversarialPrompt",
    "Artifact",
    "BadInput",
    "BadModel",
    "BadSetting",
    "BaseModelInfo",
    "Cancelled",
    "Conversation",
    "Dataset",
    "DatasetReader",
    "Detection",
    "DiskFull",
    "Divergence",
    "Estimate",
    "EvalContext",
    "Evaluator",
    "ExportContext",
    "Exporter",
    "Fact",
    "FitResult",
    "FitSettings",
    "Frozen",
    "ItemScore",
    "LogLikelihood",
    "Machine",
    "Measured",
    "Message",
    "Metric",
    "NoSettings",
    "OutOfMemory",
    "Persona",
    "PersonaLabError",
    "Probe",
    "Problem",
    "Quantization",
    "ReadResult",
    "Rendered",
    "Reporter",
    "Sampling",
    "Strategy",
    "Tab",
    "TokenCounts",
    "TrainContext",
    "TrainJob",
    "TraitState",
    "UnknownName",
    "Variant",
    "WorkFailed",
    "hookimpl",
]
