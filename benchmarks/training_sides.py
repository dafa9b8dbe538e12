"""One measurement of the training benchmark, in a process of its own: our training, or TRL's, of the same job."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel
from training_figures import epoch_flops, sizes_of

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.models.machine import worker_machine
from persona_lab.personas.prompt import system_prompt
from persona_lab.training import randomness
from persona_lab.training.batches import shared_prefix
from persona_lab.training.memory import peak_memory
from persona_lab.types import BaseModelInfo, Conversation, Dataset, Machine, Message, Persona, Rendered

MAX_TOKENS = 1024
"""Of a conversation: our default and TRL's."""

KINDS = {
    "matrix products": {"aten::mm", "aten::addmm", "aten::addmm_"},
    "attention's products and softmax": {
        *("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
    },
    "the optimizer and the size of gradients": {"aten::_fused_adamw_", "aten::linalg_vector_norm"},
    "conversions and copies": {"aten::copy_", "aten::cat", "aten::index_select", "aten::fill_"},
    "norms, activations, sums": {
        *("aten::mul", "aten::mul_", "aten::add", "aten::add_", "aten::sum", "aten::silu", "aten::silu_backward"),
        *("aten::addcmul", "aten::rsqrt", "aten::pow", "aten::mean", "aten::_log_softmax", "aten::sub", "aten::div"),
    },
}
REST = "views, the engine of gradients, the rest"


class TrainingJob(BaseModel):
    """What is trained, by whom. `validation`: conversations of the split to score afterwards; 0: none."""

    side: str
    method: str
    seed: int
    epochs: int
    batch_size: int
    rank: int
    learning_rate: float
    warmup: float
    base: BaseModelInfo
    persona: Persona
    dataset: Dataset
    validation: int
    peak: bool
    """Whether to measure what the machine can do at most."""
    profile: bool = False
    """Whether to look where the time of the last epoch goes, which takes time itself."""


@dataclass
class Stamps:
    """When training began and when each step ended, in seconds; also our reporter.

    What a GPU has yet to do is waited for at the ends of epochs only, so that neither side is slowed down.
    """

    per_epoch: int
    began: float = math.nan
    ends: list[float] = field(default_factory=list)
    checkpoints: list[float] = field(default_factory=list)
    profiler: Any = None
    """Of torch: for the second epoch."""

    def begin(self) -> None:
        """Training begins now."""
        self.began = _now()

    def end_step(self) -> None:
        """A step has ended."""
        whole = (len(self.ends) + 1) % self.per_epoch == 0
        self.ends.append(_now() if whole else time.perf_counter())
        if self.profiler is not None and whole:
            if len(self.ends) == self.per_epoch:
                self.profiler.start()
            elif len(self.ends) == 2 * self.per_epoch:
                self.profiler.stop()

    def steady(self, epochs: int) -> float:
        """Seconds of the last epoch, or of all of training if there is only one."""
        return self.ends[-1] - (self.began if epochs == 1 else self.ends[-1 - self.per_epoch])

    def phase(self, title: str, total: int | None = None) -> None:
        """Of our worker: the one that has steps is the training."""
        if total:
            self.begin()

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        """Of our fit loop."""
        self.end_step()

    def log(self, message: str, level: str = "info") -> None:
        """Pass it on."""
        print(f"{level}: {message}", flush=True)

    def emit(self, event: Any) -> None:
        """A checkpoint without a validation before it took all the time since the last step."""
        if type(event).__name__ == "Checkpoint":
            self.checkpoints.append(time.perf_counter() - self.ends[-1])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(job: TrainingJob) -> dict[str, Any]:
    """Train, and describe how it went: seconds, bytes, nats a token, floating-point operations (a second)."""
    with tempfile.TemporaryDirectory() as folder:
        machine = worker_machine(Path(folder))
        examples = rendered(job, "train")
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True)
        stamps = Stamps(math.ceil(len(examples) / job.batch_size), profiler=profiler if job.profile else None)
        train = _train_ours if job.side == "ours" else _train_trl
        model, supervised = train(job, machine, stamps, Path(folder))
        wall = time.time() - psutil.Process().create_time()
        memory = peak_memory(machine.device)
    expected = sum(sum(example.mask[1:]) for example in examples)
    if supervised != expected:
        raise SystemExit(f"{job.side} trains on {supervised} tokens an epoch, not on {expected}")
    return (
        _timing(job, stamps, len(examples), wall)
        | _work(job, examples, stamps.per_epoch)
        | {
            "peak_memory_bytes": memory,
            "peak_flops": matmul_peak(machine) if job.peak else None,
            "validation_loss": held_out_loss(model, job, machine.device) if job.validation else None,
        }
        | ({"operations": _operations(profiler)} if job.profile else {})
    )


def _operations(profiler: Any) -> dict[str, dict[str, float]]:
    """Seconds, calls and (of products) floating-point operations by kind of operation."""
    found = {kind: {"seconds": 0.0, "calls": 0.0, "flops": 0.0} for kind in [*KINDS, REST]}
    for entry in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if entry.key in names), REST)
        row = found[kind]
        row["seconds"] += entry.self_cpu_time_total / 1e6
        row["calls"] += entry.count
        row["flops"] += entry.flops
    return found


def _timing(job: TrainingJob, stamps: Stamps, examples: int, wall: float) -> dict[str, Any]:
    seconds = stamps.steady(job.epochs)
    return {
        "steps": len(stamps.ends),
        "steady_seconds": seconds,
        "examples_per_second": examples / seconds,
        "startup_seconds": wall - (stamps.ends[-1] - stamps.began),
        "wall_seconds": wall,
        "checkpoint_seconds": sum(stamps.checkpoints),
    }


def _work(job: TrainingJob, examples: Sequence[Rendered], steps: int) -> dict[str, Any]:
    lengths = [len(example.ids) for example in examples]
    supervised = sum(sum(example.mask[1:]) for example in examples)
    prefix = len(shared_prefix(examples))
    sizes = sizes_of(job.base.config, job.rank if job.method == "lora" else 0)
    plain, least = epoch_flops(sizes, lengths, supervised, prefix, steps)
    return {
        "conversations": len(examples),
        "tokens": sum(lengths),
        "supervised": supervised,
        "prefix": prefix,
        "plain_flops": plain,
        "least_flops": least,
    }


def rendered(job: TrainingJob, split: str) -> list[Rendered]:
    """The conversations of a split as both sides see them."""
    renderer = ChatRenderer(Path(job.base.path))
    system = Message(role="system", content=system_prompt(job.persona))
    chosen: tuple[Conversation, ...] = job.dataset.of(split)  # type: ignore[arg-type]
    return [renderer.render([system, *conversation.messages], MAX_TOKENS) for conversation in chosen]


# --- the two sides -----------------------------------------------------------------------------------


def _train_ours(job: TrainingJob, machine: Machine, stamps: Stamps, folder: Path) -> tuple[Any, int]:
    """The strategy as the worker runs it, at its defaults; the trained model and supervised tokens an epoch."""
    from persona_lab.plugins import Plugins
    from persona_lab.training.context import Context

    train_only = tuple(c for c in job.dataset.conversations if c.split == "train")
    context = Context(
        reporter=stamps,
        plugins=Plugins.load(),
        persona=job.persona,
        dataset=job.dataset.model_copy(update={"conversations": train_only}),
        base=job.base,
        machine=machine,
        seed=job.seed,
        run_dir=folder,
        system=system_prompt(job.persona),
        renderer=ChatRenderer(Path(job.base.path)),
    )
    config: dict[str, Any] = {
        "epochs": job.epochs,
        "batch_size": job.batch_size,
        "learning_rate": job.learning_rate,
        "warmup": job.warmup,
        "evaluations_per_epoch": 1,
        "samples": 0,
    }
    if job.method == "lora":
        config |= {"rank": job.rank, "alpha": 2 * job.rank}
    randomness.seed_all(job.seed)
    model, result = context.run_strategy(job.method, config, "train")
    return model, result.supervised_tokens


def _train_trl(job: TrainingJob, machine: Machine, stamps: Stamps, folder: Path) -> tuple[Any, int]:
    """SFTTrainer at its defaults; the trained model and supervised tokens an epoch, as its own collator gives them."""
    from datasets import Dataset as Rows
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            stamps.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.end_step()

    examples = rendered(job, "train")
    rows = Rows.from_list([{"input_ids": list(e.ids), "assistant_masks": [int(m) for m in e.mask]} for e in examples])
    total = job.epochs * stamps.per_epoch
    trainer = SFTTrainer(
        model=job.base.path,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=job.batch_size,
            num_train_epochs=job.epochs,
            learning_rate=job.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(job.warmup * total),
            seed=job.seed,
            save_strategy="no",
            use_cpu=machine.device == "cpu",  # refuses bf16 without it
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        peft_config=LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        if job.method == "lora"
        else None,
        callbacks=[Watch()],
    )
    supervised = sum(int((b["labels"][:, 1:] != -100).sum()) for b in trainer.get_train_dataloader())
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False), supervised


# --- what came of it ---------------------------------------------------------------------------------


@torch.no_grad()
def held_out_loss(trained: Any, job: TrainingJob, device: str) -> float:
    """Nats a supervised token of the validation split, by a plain fp32 model with the trained weights."""
    model = _plain_model(trained, job.base.path).to(device).eval()
    total, count = 0.0, 0
    for example in rendered(job, "validation")[: job.validation]:
        ids = torch.tensor([example.ids], device=device)
        wanted = torch.tensor(example.mask[1:], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1][wanted]
        total += float(torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:][wanted], reduction="sum"))
        count += int(wanted.sum())
    return total / count


def _plain_model(trained: Any, base: str) -> Any:
    """A fresh model in fp32 with the weights of the trained one, whatever was done to that to make it fast."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if not hasattr(trained, "peft_config"):
        model.load_state_dict({name: weight.float() for name, weight in trained.state_dict().items()})
        return model
    weights = {name: weight.float() for name, weight in get_peft_model_state_dict(trained).items()}
    model = get_peft_model(model, trained.peft_config["default"])
    expected = get_peft_model_state_dict(model).keys()
    if expected != weights.keys():
        raise SystemExit(f"adapters differ in {sorted(expected ^ weights.keys())[:4]}")
    set_peft_model_state_dict(model, weights)
    return model


def matmul_peak(machine: Machine) -> float:
    """Floating-point operations a second of the fastest of some large matrix products; bf16 where that is fast."""
    dtype = torch.bfloat16 if machine.bf16 else torch.float32
    best = 0.0
    for size in (2048, 4096) if machine.device == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=machine.device).to(dtype) for _ in range(2))
        for _ in range(6):
            begun = _now()
            a @ b
            best = max(best, 2 * size**3 / (_now() - begun))
    return best
