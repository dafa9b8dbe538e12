"""Strategy `aspects`: a small LoRA for each facet of the character, which can be turned up and down in the chat."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from persona_lab.api import (
    Artifact,
    BadInput,
    BadSetting,
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

FEW_VALIDATION = 3
"""With fewer validation rows of its own an aspect is validated on all."""
USUAL_ASPECTS = 3


class AspectsConfig(FitSettings):
    """Settings of `aspects`; the fit loop's apply to each aspect."""

    rank: int = Field(8, ge=1, le=256, description="Size of the matrices of each aspect; together they are one sum.")
    alpha: float = Field(16.0, gt=0, le=2048, description="How strongly they count; usually twice the rank.")
    untagged: Literal["voice", "all", "none"] = Field(
        "voice",
        description="Where rows without a tag go, once others have one: to the voice, to every aspect, nowhere.",
    )
    weights: str = Field(
        "",
        max_length=400,
        description="How much of each aspect is in the variant, such as voice=1,mood=0.5; others count in full.",
    )

    @field_validator("weights")
    @classmethod
    def _readable(cls, value: str) -> str:
        from persona_lab.api import parse_weights

        try:
            parse_weights(value)
        except BadSetting as error:
            raise ValueError(error.message) from error
        return value


class AspectsStrategy(Strategy):
    """Task vectors of one character (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089) as LoRA adapters, each
    trained on top of those before it."""

    id = "aspects"
    title = "Aspects to blend"
    summary = "One small LoRA each for voice, knowledge and mood: turn them up and down while you chat, or merge them."
    rank = 70
    Config = AspectsConfig

    def check(
        self, config: AspectsConfig, persona: Persona, dataset: Dataset | None, machine: Machine
    ) -> list[Problem]:
        """Remarks on the dataset, and how to tag it where fewer than two facets can be told."""
        from persona_lab.api import data_problems, rows_by_aspect

        problems = data_problems(config, dataset)
        if dataset is None or not dataset.of("train"):
            return problems
        try:
            found = rows_by_aspect(dataset, persona, config.untagged)
        except BadInput as error:
            return [*problems, Problem(message=error.message, fix=error.fix)]
        if found.by_rule:
            message = "No row has a tag, so rules about single words decide which rows show knowledge and mood."
            fix = 'Better: tag rows in your file, {"messages": [...], "tags": ["mood"]}, or with a column `aspect`.'
            problems.append(Problem(message=message, fix=fix, severity="warning"))
        notes = [Problem(message=note, fix="Tag more rows.", severity="warning") for note in found.notes]
        return [*problems, *notes, *_unknown_weights(config, found.parts)]

    def estimate(
        self, config: AspectsConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> Estimate:
        """A LoRA on the rows of each aspect, one after the other, and the validation before and after them all."""
        from persona_lab.api import combine_estimates, estimate_training, lora_parameters

        each = lora_parameters(base, config.rank)
        parts, passes = _parts(config, dataset)
        stages = [
            estimate_training(
                config, base, part, machine, trainable=each, full_weights=False, passes=passes,
                validations=0.0 if number else 2.0,
            )
            for number, part in enumerate(parts)
        ]  # fmt: skip
        reason = f"A LoRA for each aspect, one after the other; {stages[0].reason}"
        found = combine_estimates(*stages, reason=reason, trainable=len(stages) * each)
        if passes == 1:
            return found
        return found.model_copy(update={"uncertainty": round(found.uncertainty * 1.2, 2)})

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Each aspect on its own rows, on top of those before; saved apart and as their sum."""
        from persona_lab.api import attach_aspect, parse_weights, rows_by_aspect, save_aspects

        config: AspectsConfig = job.settings
        found = rows_by_aspect(ctx.dataset, ctx.persona, config.untagged)
        how = "by rules about words, since no row has a tag" if found.by_rule else "by their tags"
        told = ", ".join(f"{name} {len(part.of('train'))}" for name, part in found.parts.items())
        ctx.log(f"Training rows of each aspect, {how}: {told}. A row may show several.")
        model = ctx.load_base()
        losses = {"validation_before": ctx.validation_loss(model)}
        fits: dict[str, FitResult] = {}
        for name, part in found.parts.items():
            model = attach_aspect(model, name, config.rank, config.alpha, ctx.seed)
            fits[name] = ctx.using(dataset=_validated(part, ctx.dataset)).fit(model, config, name)
        losses["validation_after"] = ctx.validation_loss(model)
        weights = dict.fromkeys(found.parts, 1.0) | parse_weights(config.weights)
        if any(weight != 1.0 for weight in weights.values()):
            ctx.log("The losses are those of all aspects in full; the variant is saved with the weights you chose.")
        about = {
            name: {"rows": len(part.of("train")), "fit": fits[name].model_dump(mode="json"), "weight": weights[name]}
            for name, part in found.parts.items()
        }
        return save_aspects(ctx, model, _together(fits), weights, aspects=about, by_rule=found.by_rule, **losses)


def _parts(config: AspectsConfig, dataset: Dataset | None) -> tuple[list[Dataset | None], float]:
    """What each stage reads, and how much of it. Rules need the persona, which is not known here: with them three
    aspects are guessed, that read every row twice together."""
    from persona_lab.api import rows_by_tag

    try:
        tagged = rows_by_tag(dataset, config.untagged) if dataset is not None else None
    except BadInput:
        tagged = None  # `check` says what is wrong with the tags
    if dataset is None or tagged is None:
        return [dataset] * USUAL_ASPECTS, 2.0 / USUAL_ASPECTS
    return [_validated(part, dataset) for part in tagged.parts.values()], 1.0


def _unknown_weights(config: AspectsConfig, parts: dict[str, Dataset]) -> list[Problem]:
    from persona_lab.api import parse_weights

    unknown = sorted(set(parse_weights(config.weights)) - set(parts))
    if not unknown:
        return []
    message = f"There is no aspect {', '.join(map(repr, unknown))} in this dataset."
    return [Problem(message=message, fix=f"It has {', '.join(parts)}.", field="weights")]


def _validated(part: Dataset, whole: Dataset) -> Dataset:
    """The aspect's rows; with too few to validate on, the validation rows of all."""
    if len(part.of("validation")) >= FEW_VALIDATION:
        return part
    return part.model_copy(update={"conversations": (*part.of("train"), *whole.of("validation"))})


def _together(fits: dict[str, FitResult]) -> FitResult:
    """One account of all stages; the losses are the last stage's, on its own validation rows."""
    found: list[Any] = list(fits.values())
    return found[-1].model_copy(
        update={
            "steps": sum(fit.steps for fit in found),
            "examples": sum(fit.examples for fit in found),
            "supervised_tokens": sum(fit.supervised_tokens for fit in found),
            "seconds": sum(fit.seconds for fit in found),
            "best_step": sum(fit.steps for fit in found[:-1]) + found[-1].best_step,
        }
    )
