"""The one fit loop: trains whatever requires a gradient and leaves the model at its best weights.

It knows rendered examples and a model; which weights are trained, how the model was loaded and what is saved is the
strategy's business. Losses are mean nats a supervised token.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

from persona_lab.errors import BadInput, DiskFull, Diverged
from persona_lab.models.work import CHECKED_EXAMPLES
from persona_lab.training import randomness
from persona_lab.training.batches import batches_of_epoch, collate, shared_prefix
from persona_lab.training.checkpoints import CheckpointStore
from persona_lab.training.guards import advice, ran_away, refuse_nonsense
from persona_lab.training.lower import Lower, lower_for
from persona_lab.training.masters import Masters
from persona_lab.training.memory import Recompute, peak_memory
from persona_lab.training.paths import LossPath, batch_loss, choose_path, computing, prepared
from persona_lab.training.schedule import learning_rate, search_rate
from persona_lab.training.validation import Foils, Measured, Validator, summed_loss
from persona_lab.types import FitResult, FitSettings, Rendered

CHEAP_CHECKPOINT = 2.0
"""Seconds: a checkpoint that takes no longer is written at every validation."""
WRITTEN_BYTES_A_SECOND = 4e8
"""Of a checkpoint, hashed and flushed to disk: expected before one was written and timed."""
CHECKPOINT_SHARE = 0.1
"""Of the training time may go into writing checkpoints that take longer (all weights of a large model)."""


@dataclass(frozen=True)
class Material:
    """What a fit works on and where it reports.

    `report`: step(step, total, **values), `say`: log(message, level), `validated`: (step, loss, best),
    `sampled`: (step, model), `saved`: (step, folder); `free_bytes`: memory that activations may take; `enough`: asked
    after every step whether to end here and keep the best weights so far.
    """

    train: Sequence[Rendered]
    validation: Sequence[Rendered]
    pad_id: int
    device: str
    bf16: bool
    seed: int
    folder: Path
    report: Callable[..., None]
    say: Callable[..., None]
    validated: Callable[[int, float, bool], None]
    sampled: Callable[[int, Any], None]
    saved: Callable[[int, Path], None]
    foils: Foils = field(default_factory=Foils)
    free_bytes: int = 1 << 62
    enough: Callable[[], bool] = lambda: False


@dataclass
class Progress:
    """How far a fit has come; JSON, kept in checkpoints. `score`: what weights are chosen by; lower is better. `best`:
    validation loss of the weights chosen; `lowest`: of any."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    before: float = math.nan
    best: float = math.inf
    score: float = math.inf
    best_step: int = 0
    lowest: float = math.inf
    without_best: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    first: list[float | None] = field(default_factory=list)
    specificity: float | None = None


class Fit:
    """One stage of training of one model.

    Args:
        model: a causal language model (or a peft model around one); whatever requires a gradient is trained.
        settings: see `FitSettings`.
        stage: its name; checkpoints are kept by it.

    Raises:
        BadInput: nothing to train on, or nothing to train.
    """

    def __init__(self, model: Any, settings: FitSettings, stage: str, material: Material) -> None:
        self.model, self.settings, self.stage, self.material = model, settings, stage, material
        self.masters = _masters(model, settings, material)
        self.lengths = [len(example.ids) for example in material.train]
        self.per_epoch = math.ceil(len(self.lengths) / settings.batch_size)
        self.total = max(1, round(settings.epochs * self.per_epoch))
        self.progress = Progress(rate=settings.learning_rate)
        self.best: dict[str, torch.Tensor] = {}
        self.store = CheckpointStore(material.folder / stage, self._signature())
        self.path = LossPath("plain")
        self.path_chosen = False
        self.prefix: tuple[int, ...] = ()
        self.lower: Lower | None = None
        self.recompute = Recompute(model, settings.checkpointing)
        self.saving = self.masters.checkpoint_bytes() / WRITTEN_BYTES_A_SECOND
        self.saved_at = time.perf_counter()

    # --- the run -------------------------------------------------------------------------------------

    def run(self) -> FitResult:
        """Train; goes on from the newest checkpoint, and repeats nothing if the stage was finished before.

        Raises:
            Diverged: before there were better weights than those it began with.
        """
        finished = self.store.finished()
        if finished is not None:
            self.material.say(f"Stage {self.stage!r} was finished before the interruption and is taken up from there.")
            self.masters.load_working(finished.best)
            return FitResult(**finished.state)
        with self._ready():
            self._begin()
            stopped = self._train()
        if self.best:
            self.masters.load_working(self.best)
        result = self._result(stopped)
        self.store.finish(result.model_dump(mode="json"), self.masters.copy_working())
        return result

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """The fastest way to compute losses is chosen and in place."""
        material = self.material
        examples = [*material.train, *material.validation]
        self.path = choose_path(
            self.model, examples, material.pad_id, material.device, material.say, material.bf16, material.free_bytes
        )
        self.path_chosen = True
        self.prefix = shared_prefix(examples) if self.path.uses_prefix() else ()
        with prepared(self.model, self.path), self.recompute:
            if self.path.name == "packed":
                self.lower, why = lower_for(
                    self.model, examples, self.prefix, material.pad_id, material.device, self._with_and_without,
                    material.free_bytes,
                )  # fmt: skip
                if why:
                    material.say(f"The frozen lower layers are run in every step: {why}.")
            yield

    def _with_and_without(self, lower: Lower) -> tuple[float, float]:
        """Loss of a few examples from the kept states, and by the whole model."""
        few = sorted([*self.material.train, *self.material.validation], key=lambda e: len(e.ids))[:CHECKED_EXAMPLES]
        common = (self.model, few, self.prefix, self.path, self.material.pad_id, self.material.device)
        return summed_loss(*common, lower)[0], summed_loss(*common)[0]

    def _begin(self) -> None:
        saved = self.store.newest()
        for what in self.store.passed_over:
            self.material.say(f"The checkpoint {what}, and was passed over.", "warning")
        if saved is not None:
            randomness.restore(saved.state.pop("random"), saved.tensors)
            self.progress = Progress(**saved.state)
            self.masters.load_state(saved.tensors)
            self.best = saved.best if self.material.validation else {}
            self.material.say(f"Resumed stage {self.stage!r} after step {self.progress.step} of {self.total}.")
            return
        randomness.seed_all(self.material.seed)
        if self.settings.find_learning_rate:
            self._search_rate()
        if not self.material.validation:
            self.material.say(
                "There are no validation conversations: the last weights are kept, not the best.", "warning"
            )
            return
        measured = self._validator().measure()
        self.progress.before = self.progress.best = self.progress.lowest = measured.loss
        self.progress.first = [measured.loss, measured.own, measured.other]
        self.progress.score, self.progress.specificity = self._score(measured), self._specificity(measured)
        self.best = self.masters.copy_working()
        self.material.validated(0, measured.loss, True)
        self.material.sampled(0, self.model)

    def _train(self) -> str:
        """Take the remaining steps; says why if it stopped before the last one."""
        interval = max(1, round(self.per_epoch / self.settings.evaluations_per_epoch))
        progress = self.progress
        while progress.step < self.total:
            if progress.without_best >= self.settings.patience and self.settings.keep != "last":
                self.material.say(f"Stopped after step {progress.step}: no better weights for a while.")
                return "patience"
            started = time.perf_counter()
            try:
                self._step()
            except Diverged as error:
                return self._went_astray(str(error))
            progress.seconds += time.perf_counter() - started
            if ran_away(progress.losses):
                return self._went_astray(f"The training loss ran away by step {progress.step}.")
            measured = progress.step % interval == 0 or progress.step == self.total
            if measured:
                self._evaluate()
            if progress.step < self.total and self.material.enough():
                return self._ended_on_request(measured)
        return ""

    def _ended_on_request(self, measured: bool) -> str:
        """The weights of this step may be the best; nothing will be resumed, so no checkpoint is written."""
        if not measured:
            self._measure()
        best = self.progress.best_step if self.material.validation else self.progress.step
        self.material.say(f"Ended on request after step {self.progress.step}; the weights of step {best} are kept.")
        return "asked"

    def _went_astray(self, what: str) -> str:
        """Keep what was good before it, if anything was.

        Raises:
            Diverged
        """
        progress = self.progress
        # the last weights, if those are to be kept, are of the time when it ran away
        if progress.best_step == 0 or (self.settings.keep == "last" and not progress.best < progress.before):
            raise Diverged(what, "" if "learning rate" in what else advice(self.progress.rate))
        self.material.say(f"{what} The weights of step {self.progress.best_step} are kept.", "warning")
        return "diverged"

    # --- a step --------------------------------------------------------------------------------------

    def _step(self) -> None:
        progress, material = self.progress, self.material
        epoch, position = divmod(progress.step, self.per_epoch)
        plan = batches_of_epoch(self.lengths, self.settings.batch_size, material.seed, epoch)
        rate = learning_rate(progress.step, self.total, self.settings, progress.rate)
        started = time.perf_counter()
        mean, supervised, tokens = self._move([material.train[index] for index in plan[position]], rate)
        progress.step += 1
        progress.losses.append(mean)
        progress.counts.append(supervised)
        material.report(
            progress.step,
            self.total,
            stage=self.stage,
            loss=mean,
            learning_rate=rate,
            tokens_per_second=tokens / (time.perf_counter() - started),
            memory_bytes=peak_memory(material.device),
        )

    def _move(self, chosen: Sequence[Rendered], rate: float) -> tuple[float, int, int]:
        """One step of the optimizer: (mean loss before it, supervised tokens, all tokens).

        Raises:
            Diverged: the loss or its gradient is not a number; nothing was moved.
        """
        material = self.material
        self.model.train()
        path, prefix = self.path, self.prefix
        batch = collate(chosen, len(prefix), material.pad_id, material.device)
        depth = self.lower.trained_share if self.lower else 1.0
        free = material.free_bytes - self.masters.step_bytes()
        self.recompute.decide(path.shape(batch, len(prefix)), depth, free, material.say)
        if self.recompute.active and path.name == "prefix":
            # transformers keeps no keys and values where layers are run again: every example reads the prefix itself
            path, prefix = LossPath("head", path.attention), ()
            batch = collate(chosen, 0, material.pad_id, material.device)
        with computing(self.model, material.bf16):
            if self.lower is None:
                loss = batch_loss(self.model, batch, prefix, path)
            else:
                loss = self.lower.loss(chosen, batch, self.path)
        loss = loss / batch.supervised
        loss.backward()
        mean = loss.item()
        norm = self.masters.step(rate, self.settings.max_grad_norm)
        refuse_nonsense(mean, norm, self.progress.step + 1, self.progress.rate)
        return mean, batch.supervised, batch.tokens

    def _search_rate(self) -> None:
        """Set the rate by a range test; weights and random states are put back."""
        before = self.masters.copy_working()
        order = batches_of_epoch(self.lengths, self.settings.batch_size, self.material.seed, 0)

        def step(number: int, rate: float) -> float:
            chosen = [self.material.train[index] for index in order[number % len(order)]]
            try:
                return self._move(chosen, rate)[0]
            except Diverged:
                return math.inf

        self.progress.rate, curve = search_rate(self.settings.learning_rate, step)
        self.masters = _masters(self.model, self.settings, self.material, before)
        randomness.seed_all(self.material.seed)
        tried = f"{curve[0][0]:.1e} to {curve[-1][0]:.1e}" if curve else "none that worked"
        self.material.say(f"Learning rate {self.progress.rate:.1e}, found by {len(curve)} trial steps at {tried}.")

    # --- validation and checkpoints ------------------------------------------------------------------

    def _validator(self) -> Validator:
        material = self.material
        wanted = material.foils if self.settings.keep == "specificity" else Foils()
        return Validator(
            self.model,
            material.validation,
            wanted,
            self.prefix,
            self.path,
            material.pad_id,
            material.device,
            self.lower,
        )

    def _score(self, measured: Measured) -> float:
        """What the kept weights are chosen by; lower is better."""
        if self.settings.keep == "last":
            return -float(self.progress.step)
        found = self._specificity(measured) if self.settings.keep == "specificity" else None
        return measured.loss if found is None else -found

    def _specificity(self, measured: Measured) -> float | None:
        loss, own, other = self.progress.first
        return self._validator().specificity(measured, Measured(loss or 0.0, own, other))

    def _evaluate(self) -> None:
        """Measure on validation, remember the best weights, write samples and a checkpoint."""
        self._measure()
        if self.progress.step < self.total:
            self._checkpoint()

    def _measure(self) -> None:
        started, progress, material = time.perf_counter(), self.progress, self.material
        if material.validation:
            measured = self._validator().measure()
            score = self._score(measured)
            better = score < progress.score
            # specificity, of a few lines, falls before it rises: while the loss still falls there is something to come
            progress.without_best = 0 if better or measured.loss < progress.lowest else progress.without_best + 1
            progress.lowest = min(progress.lowest, measured.loss)
            if better:
                progress.best, progress.best_step, progress.score = measured.loss, progress.step, score
                progress.specificity = self._specificity(measured)
                self.best = self.masters.copy_working()
            material.validated(progress.step, measured.loss, better)
            material.sampled(progress.step, self.model)
        progress.seconds += time.perf_counter() - started

    def _checkpoint(self) -> None:
        started = time.perf_counter()
        if self.saving > max(CHEAP_CHECKPOINT, CHECKPOINT_SHARE * (started - self.saved_at)):
            return
        description, states = randomness.capture()
        state = {**vars(self.progress), "random": description}
        best = self.best or self.masters.copy_working()
        try:
            folder = self.store.write(self.progress.step, state, {**self.masters.state(), **states}, best)
        except DiskFull as error:
            # hours of training are worth more than a checkpoint; the earlier ones are still there
            self.material.say(f"No checkpoint after step {self.progress.step}: {error.message} {error.fix}", "warning")
            self.saved_at = time.perf_counter()
            return
        self.material.saved(self.progress.step, folder)
        self.saved_at = time.perf_counter()
        self.saving = self.saved_at - started

    def _result(self, stopped: Any) -> FitResult:
        progress, validated = self.progress, bool(self.material.validation)
        losses, counts = progress.losses[-self.per_epoch :], progress.counts[-self.per_epoch :]
        return FitResult(
            steps=progress.step,
            examples=len(self.material.train),
            supervised_tokens=sum(sum(example.mask) for example in self.material.train),
            train_loss=float(numpy.average(losses, weights=counts)),
            validation_before=progress.before if validated else 0.0,
            validation_after=progress.best if validated else 0.0,
            best_step=progress.best_step if validated else progress.step,
            seconds=progress.seconds,
            stopped_early=bool(stopped),
            stopped=stopped,
            learning_rate=progress.rate,
            specificity=progress.specificity,
        )

    def _signature(self) -> dict[str, Any]:
        shapes = {name: [*p.shape, str(p.dtype)] for name, p in self.masters.working.items()}
        data = [len(self.lengths), sum(self.lengths), len(self.material.validation)]
        return {
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.material.seed,
            "weights": shapes,
            "data": data,
        }


def _masters(
    model: Any, settings: FitSettings, material: Material, weights: dict[str, torch.Tensor] | None = None
) -> Masters:
    """Fresh masters of what requires a gradient; `weights`: put these back first.

    Raises:
        BadInput
    """
    if not material.train:
        raise BadInput(
            "There is no training conversation to learn from.", "Import a dataset with replies of the character."
        )
    low_memory = bool(getattr(settings, "low_memory", False))
    with torch.no_grad():
        for name, parameter in model.named_parameters() if weights else ():
            if name in weights:  # type: ignore[operator]
                parameter.copy_(weights[name])  # type: ignore[index]
    masters = Masters(model, settings.weight_decay, settings.optimizer, low_memory)
    if not masters.working:
        raise BadInput(
            "No weight of the model is trainable.", "The strategy must switch on the gradient of some weights."
        )
    return masters
