"""Strategy `steer`: nothing is trained; trait sliders pull the base towards a manner while it speaks."""

from __future__ import annotations

from pydantic import Field

from persona_lab.api import (
    Artifact,
    BadInput,
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

VECTOR_BYTES = 1_000_000
"""More than a trait's file ever takes."""


class SteerConfig(Frozen):
    """Settings of `steer`."""

    traits: str = Field(
        "warm=60",
        max_length=1000,
        description="Traits and how far to pull, from -100 to 100, such as grumpy=60, archaic=-30.",
    )
    max_tokens: int = Field(
        1024, ge=32, le=131072, description="Longer conversations lose their oldest turns when the effect is measured."
    )


class SteerStrategy(Strategy):
    """Activation steering by persona vectors (Chen et al. 2025, https://arxiv.org/abs/2507.21509), calibrated so that
    100 is the strongest pull that stays fluent. Steered variants of trained ones are made from the chat's sliders, or
    by `persona-lab variants steer`."""

    id = "steer"
    title = "Trait sliders"
    summary = "Trains nothing: pulls the model towards a mood, a period or a manner while it speaks."
    rank = 45
    Config = SteerConfig

    def check(self, config: SteerConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """The settings must be readable, and something must be set."""
        from persona_lab.api import parse_traits

        try:
            pulled = {name: value for name, value in parse_traits(config.traits).items() if value}
        except BadInput as error:
            return [Problem(message=error.message, fix=error.fix, field="traits")]
        if not pulled:
            fix = "Set traits=grumpy=60, for example; persona-lab traits list shows all."
            return [Problem(message="No trait is pulled.", fix=fix, field="traits")]
        return []

    def estimate(self, config: SteerConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """Nothing is trained: validation replies are read twice, and traits that are new to the base are computed."""
        from persona_lab.api import FitSettings, combine_estimates, estimate_forward

        once = estimate_forward(FitSettings(max_tokens=config.max_tokens), base, dataset, machine, passes=1)
        reason = "Nothing is trained; a trait that is new to this base is computed first, in about a minute."
        both = combine_estimates(once, once, reason=reason)
        # without parts: what its runs take beside that, which is most of it, says nothing of other strategies' plans
        return both.model_copy(update={"disk_bytes": both.disk_bytes + VECTOR_BYTES, "uncertainty": 4.0, "parts": {}})

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Compute what is missing, and measure the validation loss without and with the pull."""
        from persona_lab.api import parse_traits

        traits = parse_traits(job.settings.traits)
        model = ctx.load_base()
        ctx.compute_traits(model, [name for name, value in traits.items() if value])
        if not ctx.dataset.of("validation"):
            ctx.log("There are no validation conversations: what the pull changes is not measured.", "warning")
            return ctx.save_steered(traits)
        ctx.phase("Measuring", 2)
        before = ctx.validation_loss(model)
        ctx.step(1, 2)
        with ctx.pulled(model, traits):
            after = ctx.validation_loss(model)
        ctx.step(2, 2)
        return ctx.save_steered(traits, validation_before=before, validation_after=after)
