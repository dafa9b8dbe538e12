"""Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691) as a strategy for Persona Lab.

A few made-up words stand before every conversation, and their embeddings are all that is trained. The file is tiny, and
the base is untouched. It holds a tone, not facts: for those, take a LoRA.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from persona_lab.api import (
    Artifact,
    BaseModelInfo,
    Dataset,
    Estimate,
    FitSettings,
    Machine,
    Strategy,
    TrainContext,
    TrainJob,
    hookimpl,
)


class SoftPrompt(Strategy):
    """peft's PROMPT_TUNING through the shared loop."""

    id = "soft_prompt"
    title = "Soft prompt"
    summary = "A handful of made-up words before every conversation: the smallest file, for a tone rather than facts."
    rank = 80

    class Config(FitSettings):
        """The loop's settings, with a rate that suits made-up words, and how many there are."""

        learning_rate: float = Field(0.05, gt=0, le=1, description="How big each correction is; these need much.")
        length: int = Field(16, ge=1, le=256, description="How many made-up words stand before each conversation.")

    def estimate(self, config: Any, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """One embedding a made-up word."""
        from persona_lab.api import estimate_training

        trainable = config.length * int(base.config.get("hidden_size") or base.config.get("n_embd") or 576)
        return estimate_training(config, base, dataset, machine, trainable=trainable, full_weights=False)

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Begin with real words drawn from the vocabulary, train, save."""
        import torch
        from peft import PromptTuningConfig, PromptTuningInit, get_peft_model

        settings = job.settings
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=settings.length,
            prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        )
        torch.manual_seed(ctx.seed)  # which words are drawn
        model = get_peft_model(ctx.load_base(), config)
        return ctx.save_adapter(model, ctx.fit(model, settings))


@hookimpl
def persona_lab_strategies() -> list[type[Strategy]]:
    """What Persona Lab asks for."""
    return [SoftPrompt]
