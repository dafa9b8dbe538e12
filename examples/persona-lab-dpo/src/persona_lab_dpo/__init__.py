"""DPO (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290) from preference votes, through TRL, for Persona Lab.

It goes on from a trained variant with an adapter: of two replies, the one people preferred becomes likelier than the
other, measured against the variant as it was. Pairs are JSON lines {"prompt": [messages] or text, "chosen": [messages]
or text, "rejected": ...}, as the page's votes are exported. A part of them is held out and tells whether it worked.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from persona_lab.api import (
    Artifact,
    BadInput,
    BaseModelInfo,
    Conversation,
    Dataset,
    Estimate,
    FitResult,
    Frozen,
    Machine,
    Message,
    Persona,
    Problem,
    Strategy,
    TrainContext,
    TrainJob,
    Variant,
    hookimpl,
)

MOST_PAIRS, MOST_BYTES = 100_000, 100 * 2**20
Pair = tuple[list[Message], str, str]


class DPO(Strategy):
    """TRL's DPOTrainer on the variant's own adapter; its reference is a copy of that adapter."""

    id = "dpo"
    title = "DPO (from votes)"
    summary = "Goes on from a variant: what people preferred becomes likelier. Needs `pip install persona-lab-dpo`."
    rank = 90
    goes_on = True

    class Config(Frozen):
        """What is asked of a user."""

        variant: str = Field(
            "",
            max_length=200,
            description="The trained variant to go on from, by its id.",
            json_schema_extra={"pick": "variant"},
        )
        preferences: str = Field(
            "", max_length=4000, description="File of preference pairs: JSON lines with prompt, chosen and rejected."
        )
        beta: float = Field(0.1, gt=0, le=10, description="How closely it stays to the variant; lower moves further.")
        learning_rate: float = Field(5e-5, gt=0, le=1, description="How big each correction is.")
        epochs: float = Field(2.0, gt=0, le=100, description="How many times every pair is read.")
        batch_size: int = Field(4, ge=1, le=256, description="Pairs looked at before each correction.")
        max_tokens: int = Field(1024, ge=32, le=131072, description="Longer conversations are cut.")
        held_out: float = Field(0.2, ge=0.05, le=0.5, description="Share of the pairs that only measures.")

    def check(self, config: Any, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Whether TRL, the variant and the pairs are there."""
        import importlib.util

        found = []
        if importlib.util.find_spec("trl") is None:
            found.append(Problem(message="TRL is not installed.", fix="pip install persona-lab-dpo"))
        if not config.variant:
            found.append(Problem(message="It needs a variant to go on from.", fix="Set variant=ID.", field="variant"))
        if not config.preferences or not Path(config.preferences).expanduser().is_file():
            message = f"There is no file of preferences at {config.preferences or '(nothing)'}."
            fix = "Export the votes, and set preferences=FILE."
            found.append(Problem(message=message, fix=fix, field="preferences"))
        return found

    def check_parent(
        self, config: Any, parent: Variant, learned: Sequence[Conversation], dataset: Dataset
    ) -> list[Problem]:
        """Only an adapter on unquantised weights: its copy is the reference."""
        if parent.kind == "adapter" and not parent.quantization:
            return []
        return [Problem(message=f"{parent.name!r} has no plain adapter to go on with.", fix="Choose a LoRA variant.")]

    def estimate(self, config: Any, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """As a LoRA on both replies of each pair, which are read twice: by the variant and by its reference."""
        from persona_lab.api import FitSettings, estimate_training, lora_parameters

        settings = FitSettings(
            epochs=config.epochs, batch_size=min(2 * config.batch_size, 256), max_tokens=config.max_tokens
        )
        trainable = lora_parameters(base, 16)
        return estimate_training(
            settings, base, dataset, machine, trainable=trainable, full_weights=False, passes=2.7
        ).model_copy(update={"uncertainty": 4.0, "reason": "Guessed: how many votes there are is known when it runs."})

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train, and say what it did to the held-out pairs."""
        settings = job.settings
        pairs = read_pairs(Path(settings.preferences).expanduser())
        held_out, learnt = split(pairs, settings.held_out)
        if not held_out or not learnt:
            raise BadInput(f"{len(pairs)} preference pairs are too few.", "Collect at least 5, better 100.")
        model = ctx.load_parent()
        before = margins(model, ctx, held_out)
        loss_before = ctx.validation_loss(model)
        ctx.phase("Learning what people preferred", None)
        steps, loss, seconds = optimise(model, ctx, learnt, settings)
        after = margins(model, ctx, held_out)
        gain = gained(before, after, held_out)
        ctx.log(f"On {len(held_out)} held-out pairs the preferred reply gained {gain['value']:.3f} nats on the other.")
        fit = FitResult(
            steps=steps,
            examples=len(learnt),
            supervised_tokens=sum(len(ctx.renderer.text_ids(text)) for pair in learnt for text in pair[1:]),
            train_loss=loss,
            validation_before=loss_before,
            validation_after=ctx.validation_loss(model),
            best_step=steps,
            seconds=seconds,
        )
        return ctx.save_adapter(
            model,
            fit,
            preference_pairs=len(learnt),
            held_out_pairs=len(held_out),
            margin_before=math.fsum(before) / len(before),
            margin_after=math.fsum(after) / len(after),
            margin_gain=gain,
            preferred_before=sum(value > 0 for value in before) / len(before),
            preferred_after=sum(value > 0 for value in after) / len(after),
        )


def read_pairs(path: Path) -> list[Pair]:
    """Preference pairs of a JSON-lines file: (messages, chosen, rejected).

    Raises:
        BadInput: it cannot be read, or a row is no pair; names the row.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"{path} is larger than {MOST_BYTES >> 20} MiB.", "Split it.")
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a reply may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}.", "Export the votes again.") from error
    if len(lines) > MOST_PAIRS:
        raise BadInput(f"{path} has more than {MOST_PAIRS:,} lines.", "Split it.")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt = row["prompt"]
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            messages = [Message(role=turn["role"], content=turn["content"]) for turn in turns]
            found.append((messages, _reply(row["chosen"]), _reply(row["rejected"])))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInput(
                f"{path}, line {number} is no preference pair: {error!r}.",
                'A pair is {"prompt": [messages], "chosen": [message], "rejected": [message]}.',
            ) from error
    return found


def _reply(value: Any) -> str:
    text = value if isinstance(value, str) else value[-1]["content"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a reply is empty")
    return text


def split(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(held out, learnt): by prompt, so that no question stands on both sides; the same for the same file."""
    prompts = sorted({_key(pair) for pair in pairs})
    count = min(max(1, round(len(prompts) * share)), len(prompts))
    chosen = set(random.Random(0).sample(prompts, count))
    return [p for p in pairs if _key(p) in chosen], [p for p in pairs if _key(p) not in chosen]


def _key(pair: Pair) -> str:
    return json.dumps([[turn.role, turn.content] for turn in pair[0]], ensure_ascii=False)


def _asked(pair: Pair, ctx: TrainContext) -> list[Message]:
    turns = [turn for turn in pair[0] if turn.role != "system"]
    return [Message(role="system", content=ctx.system), *turns] if ctx.system else turns


def margins(model: Any, ctx: TrainContext, pairs: Sequence[Pair]) -> list[float]:
    """Of each pair: log-likelihood of the chosen reply minus that of the rejected one, in nats."""
    items = [(_asked(pair, ctx), reply) for pair in pairs for reply in pair[1:]]
    scores = [score.total for score in ctx.loglikelihood(model, items)]
    return [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]


def gained(before: Sequence[float], after: Sequence[float], pairs: Sequence[Pair]) -> dict[str, float | None]:
    """What the margin gained on average, in nats, with its 95% interval (bootstrap over prompts)."""
    from persona_lab.api import cluster_bootstrap

    found = cluster_bootstrap([b - a for a, b in zip(before, after, strict=True)], [_key(pair) for pair in pairs])
    return {"value": found.value, "low": found.low, "high": found.high}


def optimise(model: Any, ctx: TrainContext, pairs: Sequence[Pair], settings: Any) -> tuple[int, float, float]:
    """Run TRL; (steps, mean loss, seconds). A stopped run starts again: TRL's checkpoints hold pickles."""
    from datasets import Dataset as Rows
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logged = [entry["loss"] for entry in state.log_history if "loss" in entry]
            ctx.step(state.global_step, state.max_steps, loss=logged[-1] if logged else None, stage="dpo")

    rows = [
        {
            "prompt": [turn.model_dump() for turn in _asked(pair, ctx)],
            "chosen": [{"role": "assistant", "content": pair[1]}],
            "rejected": [{"role": "assistant", "content": pair[2]}],
        }
        for pair in pairs
    ]
    arguments = DPOConfig(
        output_dir=str(ctx.run_dir / "trl"),
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        max_length=settings.max_tokens,
        seed=ctx.seed,
        use_cpu=ctx.machine.device == "cpu",
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        warmup_steps=0.1,
    )
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Rows.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(ctx.base.path),
        callbacks=[Progress()],
    )
    done = trainer.train()
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # TRL's copy of the variant
    model.eval()
    return done.global_step, float(done.training_loss), float(done.metrics["train_runtime"])


@hookimpl
def persona_lab_strategies() -> list[type[Strategy]]:
    """What Persona Lab asks for."""
    return [DPO]
