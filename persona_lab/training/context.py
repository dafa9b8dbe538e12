"""What a strategy gets to work with (`api.TrainContext`): loading, fitting, scoring, generating and saving.

It reports through the run's reporter and keeps count of seconds for the result; it decides nothing about training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from persona_lab.api import TrainJob
from persona_lab.datasets.examples import exchange_sizes
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput, BadModel, BadSetting, ModelUnavailable
from persona_lab.events import Checkpoint, Event, Sample, Validation
from persona_lab.home import Home
from persona_lab.inference.decoding import forget_packed, generate
from persona_lab.inference.example_choice import ExamplePool, write_pool
from persona_lab.inference.loading import load_model, load_variant
from persona_lab.inference.prompting import messages_for
from persona_lab.inference.scoring import loglikelihood
from persona_lab.inference.steering import Shift, steered
from persona_lab.inference.trait_files import STEERING, copy_kept, settings_of, total_shift
from persona_lab.models import embedding
from persona_lab.models.weights import fingerprint, keep_fingerprint
from persona_lab.settings import validate_settings
from persona_lab.training import randomness, saving
from persona_lab.training.batches import shared_prefix
from persona_lab.training.fit import Fit, Material
from persona_lab.training.foils import foil_pairs
from persona_lab.training.locate import sensitivity
from persona_lab.training.lora import relative_update, resume_adapter
from persona_lab.training.memory import free_memory, memory_errors
from persona_lab.training.paths import LossPath, choose_path, prepared
from persona_lab.training.sample_budget import SampleBudget
from persona_lab.training.validation import Foils, validation_loss
from persona_lab.traits.run import compute_all, missing
from persona_lab.types import (
    Artifact,
    BaseModelInfo,
    Conversation,
    Dataset,
    FitResult,
    FitSettings,
    LogLikelihood,
    Machine,
    Message,
    Persona,
    Quantization,
    Rendered,
    Sampling,
    Variant,
)

MOST_VALIDATION = 60
"""Conversations the validation loss is measured on at most: the first of the split."""
SAMPLE_TOKENS = 24
Examples = Sequence[Conversation] | Callable[[Sequence[Message]], Sequence[Conversation]]
"""In-context examples, or what gives them for the messages they stand before."""
LESS_MEMORY = "Try a smaller batch_size, then a smaller max_tokens, then the strategy `lora`, which needs the least."


@dataclass
class Context:
    """One run's `TrainContext`; see there for what each method promises.

    `reporter` also has `emit(event)`; `max_tokens` cuts conversations wherever no settings are at hand.
    """

    reporter: Any
    plugins: Any
    persona: Persona
    dataset: Dataset
    base: BaseModelInfo
    machine: Machine
    seed: int
    run_dir: Path
    system: str
    renderer: ChatRenderer
    parent: Variant | None = None
    learned: tuple[Conversation, ...] = ()
    max_tokens: int = 1024
    home: Home | None = None
    """Where kept bases and other personas' held-out lines are."""
    seconds: dict[str, float] = field(default_factory=lambda: {"load": 0.0, "train": 0.0, "save": 0.0})
    quantization: Quantization | None = None
    fetched_seconds: float = 0.0
    """Taken by fetching models other than the base, which no plan knows of."""
    _paths: WeakKeyDictionary[Any, LossPath] = field(default_factory=WeakKeyDictionary)

    # --- reporting -----------------------------------------------------------------------------------

    def phase(self, title: str, total: int | None = None) -> None:
        self.reporter.phase(title, total)

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        self.reporter.step(step, total, **values)

    def log(self, message: str, level: str = "info") -> None:
        self.reporter.log(message, level)

    def enough(self) -> bool:
        asked = getattr(self.reporter, "enough", None)
        return bool(asked()) if asked is not None else False

    def _emit(self, event: Event) -> None:
        emit = getattr(self.reporter, "emit", None)
        if emit is not None:
            emit(event)

    # --- models --------------------------------------------------------------------------------------

    def load_base(self, quantization: Quantization | None = None, full_precision: bool = False) -> Any:
        self.phase("Loading the base model")
        started = time.perf_counter()
        with memory_errors("Use a smaller base model, or close other programs."):
            model = load_model(self.base, self.machine, quantization=quantization, full_precision=full_precision)
        _keep_differentiable(model)
        self.quantization = quantization
        self.seconds["load"] += time.perf_counter() - started
        return model

    def using(self, base: BaseModelInfo | None = None, dataset: Dataset | None = None) -> Context:
        renderer = self.renderer if base is None else ChatRenderer(Path(base.path))
        return replace(self, base=base or self.base, renderer=renderer, dataset=dataset or self.dataset)

    def load_parent(self) -> Any:
        parent = self.parent
        if parent is None or parent.kind not in ("adapter", "weights"):
            raise BadInput("There is no trained variant to go on from.", "Choose one with an adapter or weights.")
        self.phase(f"Loading {parent.name}")
        started = time.perf_counter()
        with memory_errors("Use a smaller base model, or close other programs."):
            model = load_variant(parent, self.base, self.machine)
        if parent.kind == "adapter":
            resume_adapter(model)
        else:
            model.requires_grad_(True)
        _keep_differentiable(model)
        self.quantization = parent.quantization
        self.seconds["load"] += time.perf_counter() - started
        return model

    def fit(
        self,
        model: Any,
        settings: FitSettings,
        stage: str = "train",
        rendered: tuple[Sequence[Rendered], Sequence[Rendered]] | None = None,
        conversations: Sequence[Conversation] | None = None,
    ) -> FitResult:
        started = time.perf_counter()
        rows = self.dataset.of("train") if conversations is None else conversations
        budget = SampleBudget()
        material = self._material(settings, stage, rendered or self._both(rows, settings), budget)
        with memory_errors(LESS_MEMORY):
            fit = Fit(model, settings, stage, material)
            self.phase("Training" if stage == "train" else f"Training: {stage}", fit.total)
            result = fit.run()
            kept = result.best_step if material.validation else result.steps
            if budget.trained and kept:
                self._write_samples(model, kept, stage, settings.samples, kept=True)
        if fit.path_chosen:
            self._paths[model] = fit.path
        else:  # finished before an interruption: nothing was tried, and the next scoring does
            self._paths.pop(model, None)
        self.seconds["train"] += time.perf_counter() - started
        return result

    def _both(self, rows: Sequence[Conversation], settings: FitSettings) -> tuple[list[Rendered], list[Rendered]]:
        """Training rows and the validation split, as tokens."""
        validation = self.dataset.of("validation")[:MOST_VALIDATION]
        return self._rendered(rows, settings.max_tokens), self._rendered(validation, settings.max_tokens)

    def _material(
        self,
        settings: FitSettings,
        stage: str,
        rendered: tuple[Sequence[Rendered], Sequence[Rendered]],
        budget: SampleBudget,
    ) -> Material:
        def report(step: int, total: int, **values: Any) -> None:
            budget.total, budget.trained = total, True
            self.step(step, total, **values)

        def validated(step: int, loss: float, best: bool) -> None:
            self._emit(Validation(step=step, loss=loss, stage=stage, best=best))

        def saved(step: int, folder: Path) -> None:
            self._emit(Checkpoint(step=step, path=str(folder), stage=stage))

        def sampled(step: int, model: Any) -> None:
            if settings.samples and budget.due(step):
                budget.record(lambda: self._write_samples(model, step, stage, settings.samples))

        return Material(
            train=rendered[0],
            validation=rendered[1],
            pad_id=self.renderer.pad_id,
            device=self.machine.device,
            bf16=self.machine.bf16,
            seed=self.seed,
            folder=self.run_dir / "checkpoints",
            report=report,
            say=self.log,
            validated=validated,
            sampled=sampled,
            saved=saved,
            foils=self._foils(settings, rendered) if settings.keep == "specificity" else Foils(),
            free_bytes=free_memory(self.machine),
            enough=self.enough,
        )

    def _foils(self, settings: FitSettings, rendered: tuple[Sequence[Rendered], Sequence[Rendered]]) -> Foils:
        """Each validation conversation with its last reply, and with a line of another speaker of that length.

        Left out are pairs of which either reply is cut, or does not stand behind what all that is `rendered` shares.
        """
        pairs = foil_pairs(self.dataset, self.dataset.of("validation")[:MOST_VALIDATION])
        prefix = shared_prefix([*rendered[0], *rendered[1]])
        own, other, sizes = [], [], [0, 0]
        for pair in pairs:
            mine, foil = (self._last_reply(conversation, settings.max_tokens, prefix) for conversation in pair)
            if mine is not None and foil is not None:
                own.append(mine)
                other.append(foil)
                sizes = [n + len(c.messages[-1].content.encode()) for n, c in zip(sizes, pair, strict=True)]
        by_loss = "" if own else " Weights are kept by validation loss."
        if not pairs:
            self.log(f"There are no lines of other speakers to be unlike.{by_loss}", "warning")
        elif len(own) < len(pairs):
            lost = f"{len(pairs) - len(own)} of {len(pairs)} validation lines are not compared with another speaker's"
            self.log(f"{lost}: one of the two is too long for max_tokens.{by_loss}", "warning")
        return Foils(own, other, *sizes) if own else Foils()

    def _last_reply(self, conversation: Conversation, max_tokens: int, prefix: Sequence[int]) -> Rendered | None:
        """Rendered so that only the last reply counts; None where it is cut, or does not stand behind `prefix`."""
        for rendered in self._rendered([conversation], max_tokens):
            start, end = _last_run(rendered.mask)
            whole = self.renderer.render(self._messages(conversation.messages)) if rendered.truncated else rendered
            first, last = _last_run(whole.mask)
            if last - first == end - start and rendered.ids[: len(prefix)] == tuple(prefix) and start > len(prefix):
                mask = tuple(start <= i < end for i in range(len(rendered.mask)))
                return rendered.model_copy(update={"mask": mask})
        return None

    def run_strategy(self, strategy: str, config: Mapping[str, Any], stage: str) -> tuple[Any, FitResult]:
        part = self.plugins.get("strategy", strategy)
        settings = validate_settings(part.Config, config, f"strategy {strategy!r}")
        if not hasattr(part, "train_model"):
            raise BadSetting(
                f"The strategy {strategy!r} cannot be used inside another.", "Choose one with `train_model`."
            )
        model, result = part.train_model(TrainJob(settings=settings, stage=stage), self)
        return model, result

    # --- asking a model ------------------------------------------------------------------------------

    def validation_loss(self, model: Any, examples: Examples = (), limit: int = MOST_VALIDATION) -> float:
        """Mean nats a supervised token over at most `limit` conversations of the validation split.

        Args:
            examples: in-context examples put before each conversation, or what gives them for its messages; they
                are not counted.

        Returns:
            nan where the split is empty.
        """
        rendered = self._rendered(self.dataset.of("validation")[:limit], self.max_tokens, examples)
        if not rendered:
            return float("nan")
        device, pad_id = self.machine.device, self.renderer.pad_id
        if model not in self._paths:
            free = free_memory(self.machine)
            self._paths[model] = choose_path(model, rendered, pad_id, device, self.log, free_bytes=free)
        path = self._paths[model]
        prefix = shared_prefix(rendered) if path.uses_prefix() else ()
        with prepared(model, path), memory_errors(LESS_MEMORY):
            return validation_loss(model, rendered, prefix, path, pad_id, device)

    def layer_sensitivity(self, model: Any, limit: int = 24) -> list[tuple[int, float]]:
        """(layer, mean squared gradient a weight) of a plain model, on the first validation conversations."""
        rendered = self._rendered(self.dataset.of("validation")[:limit], self.max_tokens)
        device, pad_id = self.machine.device, self.renderer.pad_id
        path = choose_path(model, rendered, pad_id, device, self.log, free_bytes=free_memory(self.machine))
        prefix = shared_prefix(rendered) if path.uses_prefix() else ()
        with memory_errors(LESS_MEMORY):
            return sensitivity(model, rendered, prefix, path, pad_id, device)

    def loglikelihood(self, model: Any, items: Sequence[tuple[Sequence[Message], str]]) -> list[LogLikelihood]:
        model.eval()
        return loglikelihood(model, self.renderer, items)

    def generate(self, model: Any, prompts: Sequence[Sequence[Message]], sampling: Sampling) -> list[str]:
        model.eval()
        return [reply.text for reply in generate(model, self.renderer, prompts, sampling)]

    def _write_samples(self, model: Any, step: int, stage: str, count: int, kept: bool = False) -> None:
        openings = [c.messages[0].content for c in self.dataset.of("validation") if c.messages[0].role == "user"]
        if not openings[:count]:
            return
        prompts = [self._messages([Message(role="user", content=text)]) for text in openings[:count]]
        try:
            with randomness.untouched():
                replies = self.generate(model, prompts, Sampling(seed=self.seed, max_new_tokens=SAMPLE_TOKENS))
            # a second copy of the weights, which would lie beside every step's activations until the next sample
            forget_packed(model)
        except BadInput as error:  # the prompt is too long for this base: no reason to end a training
            self.log(f"Sample replies are left out: {error.message}", "warning")
            return
        for prompt, reply in zip(openings, replies, strict=False):
            self._emit(Sample(step=step, prompt=prompt, reply=reply, stage=stage, kept=kept))

    # --- data ----------------------------------------------------------------------------------------

    def _messages(self, messages: Sequence[Message], examples: Sequence[Conversation] = ()) -> list[Message]:
        """As chat and evaluation put them, so that training sees what use will see."""
        variant = Variant(
            id="training",
            name="training",
            persona=self.persona.id,
            base=self.base.id,
            strategy="",
            kind="prompt" if examples else "base",
            system=self.system,
            examples=tuple(examples),
        )
        return messages_for(variant, messages)

    def rendered(self, conversation: Conversation, max_tokens: int) -> Rendered:
        """A conversation behind the system prompt as tokens, as the fit loop reads it."""
        return self.renderer.render(self._messages(conversation.messages), max_tokens)

    def _rendered(
        self, conversations: Sequence[Conversation], max_tokens: int, examples: Examples = ()
    ) -> list[Rendered]:
        """The conversations as tokens; those in which nothing is left to predict are dropped."""
        found = []
        for conversation in conversations:
            shown = examples(conversation.messages) if callable(examples) else examples
            before = len(self.renderer.render(self._messages([], shown)).ids) if shown else 0
            rendered = self.renderer.render(self._messages(conversation.messages, shown), max_tokens + before)
            mask = (False,) * before + rendered.mask[before:]
            if any(mask[1:]):
                found.append(rendered.model_copy(update={"mask": mask}))
        return found

    # --- saving --------------------------------------------------------------------------------------

    def save_adapter(self, model: Any, fit: FitResult, **details: Any) -> Artifact:
        details.setdefault("relative_update", relative_update(model))
        trained, total = _counts(model)
        self._save(saving.write_adapter, model)
        return Artifact(
            kind="adapter",
            path=str(self.run_dir / "artifact"),
            quantization=self.quantization,
            trainable_parameters=trained,
            total_parameters=self.base.parameters + trained if self.base.parameters else total,
            fit=fit,
            details=details,
        )

    def save_weights(self, model: Any, fit: FitResult, **details: Any) -> Artifact:
        moved = saving.relative_change(model, self.base)
        if moved is not None:
            details.setdefault("relative_update", moved)
        trained, total = _counts(model)
        self._save(saving.write_weights, model)
        return Artifact(
            kind="weights",
            path=str(self.run_dir / "artifact"),
            trainable_parameters=trained,
            total_parameters=total,
            fit=fit,
            details=details,
        )

    def save_prompt(self, examples: Sequence[Conversation], **details: Any) -> Artifact:
        total = self.base.parameters
        return Artifact(kind="prompt", path="", examples=tuple(examples), total_parameters=total, details=details)

    def make_pool(self, candidates: Sequence[Conversation], count: int, token_budget: int) -> ExamplePool:
        self.phase("Reading the examples")
        sizes = exchange_sizes(candidates, self.renderer)
        home = Home(self.run_dir.parents[1])
        model: Path | None = None
        started = time.perf_counter()
        try:
            model = embedding.ensure(home, self.reporter)
            self.fetched_seconds += time.perf_counter() - started
        except (ModelUnavailable, BadModel) as error:
            self.log(f"Examples are chosen by the words they share with the question: {error} {error.fix}", "warning")
        with saving.new_folder(self.run_dir / "artifact") as folder:
            write_pool(folder, candidates, sizes, count, token_budget, model)
        return ExamplePool(self.run_dir / "artifact")

    def save_pool(self, pool: ExamplePool, **details: Any) -> Artifact:
        own = {"pool": len(pool.conversations), "example_tokens": pool.token_budget, "chosen_by": pool.method}
        return self.save_prompt((), **own, **details).model_copy(update={"path": str(pool.folder)})

    # --- traits --------------------------------------------------------------------------------------

    def compute_traits(self, model: Any, traits: Sequence[str]) -> None:
        home = self._trait_home()
        weights = keep_fingerprint(Path(self.base.path), home)
        chosen = missing(home, traits, [weights])
        compute_all(model, self.renderer, home, chosen, weights, self.seed, self)

    @contextmanager
    def pulled(self, model: Any, traits: Mapping[str, float]) -> Iterator[Any]:
        vectors = total_shift(self._steered(traits), self._trait_home(), [fingerprint(Path(self.base.path))])
        with steered(model, [Shift({layer: torch.from_numpy(vector) for layer, vector in vectors.items()})]):
            yield model

    def save_steered(self, traits: Mapping[str, float], **details: Any) -> Artifact:
        self.phase("Saving")
        chosen, home = self._steered(traits), self._trait_home()
        with saving.new_folder(self.run_dir / "artifact") as folder:
            copy_kept(chosen, home, [fingerprint(Path(self.base.path))], folder / STEERING)
        return self.save_prompt((), **details).model_copy(
            update={"path": str(self.run_dir / "artifact"), "traits": chosen.traits}
        )

    def _trait_home(self) -> Home:
        return self.home or Home(self.run_dir.parents[1])

    def _steered(self, traits: Mapping[str, float]) -> Variant:
        return Variant(
            id="steered",
            name="steered",
            persona=self.persona.id,
            base=self.base.id,
            strategy="",
            kind="prompt",
            traits=settings_of(traits),
        )

    def _save(self, write: Any, model: Any) -> None:
        self.phase("Saving")
        started = time.perf_counter()
        write(model, self.base, self.run_dir / "artifact")
        self.seconds["save"] += time.perf_counter() - started


def _last_run(mask: Sequence[bool]) -> tuple[int, int]:
    """[start, end) of the last tokens in a row that are trained on."""
    end = max((i for i, trained in enumerate(mask) if trained), default=-1) + 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return start, end


def _keep_differentiable(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on a CPU.

    A forward pass in evaluation mode (a validation) would repack them for good, for a kernel without a gradient: all
    later training steps would then be silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _counts(model: Any) -> tuple[int, int]:
    """Trainable and all weights; `untrained` is the part of a trained tensor that is kept as it is."""
    sizes = [(p.numel(), p.numel() - getattr(p, "untrained", 0), p.requires_grad) for p in model.parameters()]
    return sum(moving for _, moving, trained in sizes if trained), sum(n for n, _, _ in sizes)
