"""Strategy `freeze`: full fine-tuning of some layers, all others stay as they are."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from persona_lab.api import (
    Artifact,
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

SHARE = 8 / 30
"""Of the layers are trained where the user names no number: 8 of the starter's 30."""
_RANGE = re.compile(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?")


class FreezeConfig(FitSettings):
    """Settings of `freeze`; the fit loop's are in `FitSettings`."""

    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="How big each correction is: the fewer the layers, the more they bear."
    )
    layers: int = Field(
        0, ge=0, le=1000, description="How many of the last layers are trained; 0 takes about a quarter of them."
    )
    chosen: str = Field(
        "",
        max_length=200,
        description="Layers to train instead, counted from 0, such as 0,5,20-29; empty: the last ones.",
    )

    @field_validator("chosen")
    @classmethod
    def _readable(cls, text: str) -> str:
        numbers(text)
        return text


class FreezeStrategy(Strategy):
    """Full fine-tuning with fp32 master weights of the last, or chosen, decoder layers; norm and head stay."""

    id = "freeze"
    title = "Some layers in full"
    summary = "Trains only the last quarter of the layers, in full: less time and memory than training all of them."
    rank = 25
    Config = FreezeConfig

    def check(self, config: FreezeConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Remarks on the dataset, and on rates that wreck whole weights."""
        from persona_lab.api import data_problems

        problems = data_problems(config, dataset)
        if config.learning_rate > 1e-3:
            message = f"A learning rate of {config.learning_rate:g} is likely to damage the trained layers."
            problems.append(Problem(message=message, fix="Use 3e-4.", field="learning_rate", severity="warning"))
        if config.chosen and config.layers:
            message = f"`chosen` names the layers, so `layers`={config.layers} is not used."
            problems.append(Problem(message=message, fix="Set one of them.", field="layers", severity="warning"))
        return problems

    def estimate(
        self, config: FreezeConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> Estimate:
        """See `estimate_training` and `layer_parameters` in the toolkit."""
        from persona_lab.api import estimate_training, layer_count, layer_parameters

        layers = layer_count(base)
        wanted = [layer for layer in trained_layers(config, layers) if layer < layers]
        trainable = layer_parameters(base, len(wanted))
        depth = (layers - min(wanted, default=0)) / layers
        return estimate_training(config, base, dataset, machine, trainable=trainable, full_weights=True, depth=depth)

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train the layers and save the whole model."""
        from persona_lab.api import layer_count

        model, fit = self.train_model(job, ctx)
        return ctx.save_weights(model, fit, chosen=trained_layers(job.settings, layer_count(ctx.base)))

    def train_model(self, job: TrainJob, ctx: TrainContext) -> tuple[Any, FitResult]:
        """The trained model, for strategies that go on from it."""
        from persona_lab.api import layer_count, train_layers

        layers = layer_count(ctx.base)
        wanted = trained_layers(job.settings, layers)
        missing = [layer for layer in wanted if layer >= layers]
        if missing:
            told = ", ".join(map(str, missing[:5]))
            raise BadSetting(f"There is no layer {told}: {ctx.base.name} has layers 0 to {layers - 1}.", "Set chosen.")
        model = ctx.load_base()
        train_layers(model, wanted)
        ctx.log(f"Layers {', '.join(map(str, wanted))} of {layers} are trained in full.")
        return model, ctx.fit(model, job.settings, job.stage)


def trained_layers(config: FreezeConfig, layers: int) -> list[int]:
    """The numbers of the layers to train, of a model that has `layers`; chosen ones may lie beyond it."""
    if config.chosen.strip():
        return numbers(config.chosen)
    count = min(config.layers or max(1, round(SHARE * layers)), layers)
    return list(range(layers - count, layers))


def numbers(text: str) -> list[int]:
    """`0,5,20-29` as sorted numbers.

    Raises:
        ValueError: in plain words.
    """
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no layer: write numbers and ranges, such as 0,5,20-29")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{part!r} runs backwards")
        found.update(range(first, last + 1))
    return sorted(found)
