"""The one fit loop: trains whatever requires a gradient and leaves the model at its best validation loss.

It knows rendered examples and a model; which weights are trained, how the model was loaded and what is saved is the
strategy's business. Losses are mean nats a supervised token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

from persona_lab.errors import BadInput, WorkFailed
from persona_lab.training import randomness
from persona_lab.training.batches import batches_of_epoch, collate, shared_prefix, sorted_batches
from persona_lab.training.checkpoints import CheckpointStore
from persona_lab.training.paths import LossPath, batch_loss, choose_path, computing, prepared
from persona_lab.training.masters import Masters
from persona_lab.training.memory import peak_memory
from persona_lab.types import FitResult, FitSettings, Rendered

VALIDATION_BATCH = 16
CHEAP_CHECKPOINT = 2.0
"""Seconds: a checkpoint that takes no longer is written at every validation."""
CHECKPOINT_SHARE = 0.1
"""Of the training time may go into writing checkpoints that take longer (all weights of a large model)."""


@dataclass(frozen=True)
class Material:
    """What a fit works on and where it reports.

    `report`: step(step, total, **values), `say`: log(message, level), `validated`: (step, loss, best),
    `sampled`: (step, model), `saved`: (step, folder).
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


@dataclass
class Progress:
    """How far a fit has come; JSON, kept in checkpoints."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    before: float = math.nan
    best: float = math.inf
    best_step: int = 0
    without_best: int = 0
    seconds: float = 0.0


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
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.store = CheckpointStore(material.folder / stage, self._signature())
        self.path = LossPath("plain")
        self.prefix: tuple[int, ...] = ()
        self.saving = 0.0
        self.saved_at = time.perf_counter()

    def run(self) -> FitResult:
        """Train; goes on from the newest checkpoint, and repeats nothing if the stage was finished before."""
        finished = self.store.finished()
        if finished is not None:
            self.material.say(f"Stage {self.stage!r} was finished before the interruption and is taken up from there.")
            self.masters.load_working(finished.best)
            return FitResult(**finished.state)
        material = self.material
        examples = [*material.train, *material.validation]
        self.path = choose_path(self.model, examples, material.pad_id, material.device, material.say)
        self.prefix = shared_prefix(examples) if self.path.uses_prefix() else ()
        with prepared(self.model, self.path):
            self._begin()
            stopped_early = self._train()
        if self.best:
            self.masters.load_working(self.best)
        result = self._result(stopped_early)
        self.store.finish(result.model_dump(mode="json"), self.masters.copy_working())
        return result

    def _begin(self) -> None:
        saved = self.store.newest()
        if saved is not None:
            randomness.restore(saved.state.pop("random"), saved.tensors)
            self.progress = Progress(**saved.state)
            self.masters.load_state(saved.tensors)
            self.best = saved.best if self.material.validation else {}
            self.material.say(f"Resumed stage {self.stage!r} after step {self.progress.step} of {self.total}.")
            return
        randomness.seed_all(self.material.seed)
        if not self.material.validation:
            self.material.say(
                "There are no validation conversations: the last weights are kept, not the best.", "warning"
            )
            return
        self.progress.before = self.progress.best = self._validation_loss()
        self.best = self.masters.copy_working()
        self.material.validated(0, self.progress.before, True)
        self.material.sampled(0, self.model)

    def _train(self) -> bool:
        """Take the remaining steps; True if patience ran out first."""
        interval = max(1, round(self.per_epoch / self.settings.evaluations_per_epoch))
        progress = self.progress
        while progress.step < self.total:
            started = time.perf_counter()
            self._step()
            progress.seconds += time.perf_counter() - started
            if progress.step % interval == 0 or progress.step == self.total:
                self._evaluate()
            if progress.without_best >= self.settings.patience:
                self.material.say(f"Stopped after step {progress.step}: no better validation loss for a while.")
                return progress.step < self.total
        return False

    def _step(self) -> None:
        progress, material = self.progress, self.material
        epoch, position = divmod(progress.step, self.per_epoch)
        plan = batches_of_epoch(self.lengths, self.settings.batch_size, material.seed, epoch)
        chosen = [material.train[index] for index in plan[position]]
        batch = collate(chosen, len(self.prefix), material.pad_id, material.device)
        started = time.perf_counter()
        self.model.train()
        with computing(self.model, material.bf16):
            loss = batch_loss(self.model, batch, self.prefix, self.path) / batch.supervised
        loss.backward()
        mean = loss.item()
        rate = learning_rate(progress.step, self.total, self.settings)
        norm = self.masters.step(rate, self.settings.max_grad_norm)
        _refuse_nonsense(mean, norm, progress.step + 1, self.settings)
        progress.step += 1
        progress.losses.append(mean)
        progress.counts.append(batch.supervised)
        material.report(
            progress.step,
            self.total,
            stage=self.stage,
            loss=mean,
            learning_rate=rate,
            tokens_per_second=batch.tokens / (time.perf_counter() - started),
            memory_bytes=peak_memory(material.device),
        )

    def _evaluate(self) -> None:
        """Measure the validation loss, remember the best weights, write samples and a checkpoint."""
        started, progress, material = time.perf_counter(), self.progress, self.material
        if material.validation:
            loss = self._validation_loss()
            better = loss < progress.best
            progress.without_best = 0 if better else progress.without_best + 1
            if better:
                progress.best, progress.best_step = loss, progress.step
                self.best = self.masters.copy_working()
            material.validated(progress.step, loss, better)
            material.sampled(progress.step, self.model)
        progress.seconds += time.perf_counter() - started
        if progress.step < self.total:
            self._checkpoint()

    def _checkpoint(self) -> None:
        started = time.perf_counter()
        if self.saving > max(CHEAP_CHECKPOINT, CHECKPOINT_SHARE * (started - self.saved_at)):
            return
        description, states = randomness.capture()
        state = {**vars(self.progress), "random": description}
        best = self.best or self.masters.copy_working()
        folder = self.store.write(self.progress.step, state, {**self.masters.state(), **states}, best)
        self.material.saved(self.progress.step, folder)
        self.saved_at = time.perf_counter()
        self.saving = self.saved_at - started

    def _validation_loss(self) -> float:
        material = self.material
        return validation_loss(
            self.model, material.validation, self.prefix, self.path, material.pad_id, material.device
        )

    def _result(self, stopped_early: bool) -> FitResult:
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
            stopped_early=stopped_early,
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


def _masters(model: Any, settings: FitSettings, material: Material) -> Masters:
    if not material.train:
        raise BadInput(
            "There is no training conversation to learn from.", "Import a dataset with replies of the character."
        )
    masters = Masters(model, settings.weight_decay)
    if not masters.working:
        raise BadInput(
            "No weight of the model is trainable.", "The strategy must switch on the gradient of some weights."
        )
    return masters


@torch.no_grad()
def validation_loss(
    model: Any, examples: Sequence[Rendered], prefix: Sequence[int], path: LossPath, pad_id: int, device: str
) -> float:
    """Mean nats a supervised token over `examples`; the model is left in evaluation mode.

    The caller has switched on the attention that `path` wants.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for indices in sorted_batches([len(example.ids) for example in examples], VALIDATION_BATCH):
        batch = collate([examples[index] for index in indices], len(prefix), pad_id, device)
        with computing(model):
            total += batch_loss(model, batch, prefix, path).double().cpu()
        count += batch.supervised
    return float(total) / max(count, 1)


def learning_rate(step: int, total: int, settings: FitSettings) -> float:
    """The rate of step `step` (from 0): a linear rise over the warm-up, then linear decay towards zero at `total`."""
    warmup = round(settings.warmup * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * (total - step) / max(total - warmup, 1)


def _refuse_nonsense(loss: float, norm: float, step: int, settings: FitSettings) -> None:
    """Stop as soon as a loss or gradient is not a number: everything after it would be lost work."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise WorkFailed(
        f"Training went astray at step {step}: the loss became {loss} and its gradient {norm}.",
        f"Use a learning rate below {settings.learning_rate:g} (try {settings.learning_rate / 5:g}).",
    )
