"""Strategy `prompt`: no training; the card and the best examples are put before every conversation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from persona_lab.api import (
    Artifact,
    BaseModelInfo,
    Dataset,
    Estimate,
    Frozen,
    Machine,
    Persona,
    Problem,
    Strategy,
    TrainContext,
    TrainJob,
)


class PromptConfig(Frozen):
    """Settings of `prompt`."""

    count: int = Field(4, ge=0, le=32, description="How many of your conversations are shown to the model as examples.")
    token_budget: int = Field(
        512, ge=16, le=16384, description="The most room, in tokens, that all examples together may take."
    )
    choose: Literal["for each question", "fixed"] = Field(
        "for each question",
        description="Show the examples nearest to what is asked, or the same typical ones every time, which answers"
        " sooner.",
    )
    max_tokens: int = Field(
        1024, ge=32, le=131072, description="Longer conversations lose their oldest turns when the effect is measured."
    )


class PromptStrategy(Strategy):
    """In-context learning (Brown et al. 2020, https://arxiv.org/abs/2005.14165) with examples chosen for the question
    (Liu et al. 2022, https://arxiv.org/abs/2101.06804): the yardstick for all that train."""

    id = "prompt"
    title = "Prompt only"
    summary = "Ready at once, trains nothing: the model reads the card and your best examples before every answer."
    rank = 40
    Config = PromptConfig

    def check(self, config: PromptConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Warn where there is nothing to show."""
        if dataset is not None and config.count and not dataset.of("train"):
            return [
                Problem(message="There are no conversations to use as examples.", field="count", severity="warning")
            ]
        return []

    def estimate(
        self, config: PromptConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> Estimate:
        """No training: the model is loaded to measure what the examples change."""
        from persona_lab.api import FitSettings, combine_estimates, estimate_forward

        settings = FitSettings(max_tokens=config.max_tokens)
        without = estimate_forward(settings, base, dataset, machine, passes=1)
        shown = estimate_forward(
            settings, base, dataset, machine, passes=1, more=_room(config, dataset),
            shared=config.choose == "fixed",
        )  # fmt: skip
        reason = "Nothing is trained; each answer has to read the examples first."
        return combine_estimates(without, shown, reason=reason)

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Choose the examples and measure the validation loss with and without them."""
        from persona_lab.api import best_examples, example_candidates

        config: PromptConfig = job.settings
        if config.choose == "for each question" and config.count:
            pool = ctx.make_pool(example_candidates(ctx.dataset), config.count, config.token_budget)
            ctx.log(f"For each question, up to {config.count} of {len(pool.conversations)} exchanges are shown.")
            return ctx.save_pool(pool, **self._measured(ctx, pool))
        examples = best_examples(ctx.dataset, config.count, ctx.renderer, config.token_budget)
        ctx.log(f"{len(examples)} of {len(ctx.dataset.of('train'))} conversations are shown as examples.")
        return ctx.save_prompt(examples, **self._measured(ctx, examples))

    def _measured(self, ctx: TrainContext, examples: Any) -> dict[str, float]:
        """Validation loss without and with the examples; empty where there is nothing to measure on."""
        if not ctx.dataset.of("validation"):
            ctx.log("There are no validation conversations: what the examples change is not measured.", "warning")
            return {}
        model = ctx.load_base()
        ctx.phase("Measuring", 2)
        before = ctx.validation_loss(model)
        ctx.step(1, 2)
        after = ctx.validation_loss(model, examples=examples) if examples else before
        ctx.step(2, 2)
        if after > before:
            ctx.log("The examples make held-out replies less likely: try fewer, or none.", "warning")
        return {"validation_before": before, "validation_after": after}


def _room(config: PromptConfig, dataset: Dataset | None) -> int:
    """Tokens that the examples take: seldom all that they may."""
    from persona_lab.api import guessed_tokens

    if dataset is None:
        return config.token_budget
    exchanges = [conversation.messages[:2] for conversation in dataset.of("train")]
    sizes = [sum(guessed_tokens(message) for message in pair) for pair in exchanges]
    return min(config.token_budget, round(config.count * sum(sizes) / max(len(sizes), 1)))
