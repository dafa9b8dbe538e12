"""Strategy `full`: every weight of the model is trained."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from persona_lab.api import (
    Artifact,
    BaseModelInfo,
    Dataset,
    Estimate,
    FitResult,
    FitSettings,
    Machine,
    Persona,
    Problem,
    Strategy,
    TrainContext,
    TrainJob,
)


class FullConfig(FitSettings):
    """Settings of `full`; the fit loop's are in `FitSettings`."""

    learning_rate: float = Field(
        1e-4, gt=0, le=1, description="How big each correction is. Too high overfits, too low learns nothing."
    )
    low_memory: bool = Field(
        False,
        description="Keep weights and optimizer in 16 bits, rounded at random: half the memory, slower, less exact.",
    )


class FullStrategy(Strategy):
    """Full fine-tuning with fp32 master weights."""

    id = "full"
    title = "Full fine-tuning"
    summary = "Changes every weight of the model, for several times LoRA's memory and disk."
    rank = 30
    Config = FullConfig

    def check(self, config: FullConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Remarks on the dataset, and on rates that suit LoRA but wreck a whole model."""
        from persona_lab.api import data_problems

        problems = data_problems(config, dataset)
        if config.low_memory and config.optimizer != "adamw":
            message = (
                f"low_memory and optimizer={config.optimizer} cannot be used together: each has moments of its own."
            )
            problems.append(Problem(message=message, fix="Choose one of the two.", field="optimizer"))
        if config.learning_rate > 5e-4:
            message = f"A learning rate of {config.learning_rate:g} is likely to damage the whole model."
            problems.append(Problem(message=message, fix="Use 1e-4.", field="learning_rate", severity="warning"))
        return problems

    def estimate(self, config: FullConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """See `estimate_training` in the toolkit."""
        from persona_lab.api import estimate_training

        return estimate_training(config, base, dataset, machine, trainable=base.parameters, full_weights=True)

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train all weights and save the model."""
        model, fit = self.train_model(job, ctx)
        return ctx.save_weights(model, fit)

    def train_model(self, job: TrainJob, ctx: TrainContext) -> tuple[Any, FitResult]:
        """The trained model, for strategies that go on from it."""
        model = ctx.load_base()
        model.requires_grad_(True)
        return model, ctx.fit(model, job.settings, job.stage)
