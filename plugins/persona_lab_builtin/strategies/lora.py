"""Strategy `lora`: small matrices beside every linear layer learn the character; the base stays as it is."""

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


class LoRAConfig(FitSettings):
    """Settings of `lora`; the fit loop's are in `FitSettings`."""

    rank: int = Field(16, ge=1, le=512, description="Size of the added matrices: more can hold more, and costs more.")
    alpha: float = Field(
        32.0, gt=0, le=2048, description="How strongly the added matrices count; usually twice the rank."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the added matrices' input that is left out at random, against overfitting.",
    )


class LoRAStrategy(Strategy):
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685) of all linear layers."""

    id = "lora"
    title = "LoRA"
    summary = "The best start: fast, small on disk, and as good as full fine-tuning on a few hundred conversations."
    rank = 10
    Config = LoRAConfig

    def check(self, config: LoRAConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Remarks on the dataset."""
        from persona_lab.api import data_problems

        return data_problems(config, dataset)

    def estimate(self, config: LoRAConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """See `estimate_training` and `lora_parameters` in the toolkit."""
        from persona_lab.api import estimate_training, lora_parameters

        trainable = lora_parameters(base, config.rank)
        return estimate_training(config, base, dataset, machine, trainable=trainable, full_weights=False)

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train the adapter and save it."""
        model, fit = self.train_model(job, ctx)
        return ctx.save_adapter(model, fit)

    def train_model(self, job: TrainJob, ctx: TrainContext) -> tuple[Any, FitResult]:
        """The trained peft model, for strategies that go on from it."""
        from persona_lab.api import attach_lora

        config: LoRAConfig = job.settings
        model = attach_lora(ctx.load_base(), rank=config.rank, alpha=config.alpha, dropout=config.dropout)
        return model, ctx.fit(model, config, job.stage)
