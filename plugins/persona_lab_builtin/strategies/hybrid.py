"""Strategy `hybrid`: LoRA finds where the character sits; full fine-tuning goes on in those layers only."""

from __future__ import annotations

import json
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

SHARE = 8 / 30
"""Of the layers are fine-tuned where the user names no number: 8 of the starter's 30."""
RANKING_FILE = "layers.json"


class HybridConfig(FitSettings):
    """Settings of `hybrid`: those of the fit loop are for its second stage, the others for LoRA and the ranking."""

    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="How big each correction of the chosen layers is, in the second stage."
    )
    epochs: float = Field(1.0, gt=0, le=100, description="How often the second stage reads every conversation.")
    lora_learning_rate: float = Field(5e-4, gt=0, le=1, description="How big each correction of the LoRA stage is.")
    lora_epochs: float = Field(1.0, gt=0, le=100, description="How often the LoRA stage reads every conversation.")
    rank: int = Field(16, ge=1, le=512, description="Size of the matrices that LoRA adds.")
    alpha: float = Field(32.0, gt=0, le=2048, description="How strongly LoRA's matrices count; usually twice the rank.")
    layers: int = Field(
        0,
        ge=0,
        le=1000,
        description="How many layers are trained in the second stage; 0 takes about a quarter of them.",
    )
    ranking_conversations: int = Field(
        10, ge=1, le=60, description="Validation conversations used to find the layers that matter most."
    )


class HybridStrategy(Strategy):
    """LoRA, ranking of layers by ablation of their update, merge, full fine-tuning of the top layers."""

    id = "hybrid"
    title = "Hybrid"
    summary = "LoRA shows which layers carry the character; then only those are trained in full, to see where it sits."
    rank = 20
    Config = HybridConfig

    def check(self, config: HybridConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Remarks on the dataset, which must have validation conversations to rank by."""
        from persona_lab.api import data_problems

        problems = data_problems(config, dataset)
        if dataset is not None and not dataset.of("validation"):
            message = "There are no validation conversations to rank the layers by."
            problems.append(Problem(message=message, fix="Import more conversations, or use `lora`."))
        return problems

    def estimate(
        self, config: HybridConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> Estimate:
        """The larger memory and the summed time of both stages, and the ranking's."""
        from persona_lab.api import (
            combine_estimates,
            estimate_training,
            layer_count,
            layer_parameters,
            lora_parameters,
        )

        layers = layer_count(base)
        count = self._count(config, layers)
        held = min(len(dataset.of("validation")), 60) if dataset is not None else 15
        ranking = (layers + 1) * min(config.ranking_conversations, held) / max(held, 1)
        lora = estimate_training(
            config.model_copy(update={"epochs": config.lora_epochs}),
            base,
            dataset,
            machine,
            trainable=lora_parameters(base, config.rank),
            full_weights=False,
            validations=ranking,
        )
        # the chosen layers may lie anywhere, so the backward pass is counted whole
        top = estimate_training(
            config, base, dataset, machine, trainable=layer_parameters(base, count), full_weights=True
        )
        return combine_estimates(lora, top, reason=f"LoRA first, then the {count} layers that matter most.")

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Both stages; the ranking is kept in the artifact's details."""
        from persona_lab.api import merged_model, train_layers

        config: HybridConfig = job.settings
        model, lora = ctx.run_strategy("lora", self._lora_settings(config), "lora")
        ranking = self._ranking(model, config, ctx)
        chosen = sorted(layer for layer, _ in ranking[: self._count(config, len(ranking))])
        ctx.log(
            f"The layers that carry most of the character: {', '.join(map(str, chosen))}; these are trained in full."
        )
        model = merged_model(model)
        train_layers(model, chosen)
        top = ctx.fit(model, config, "layers")
        layers = {str(layer): round(rise, 5) for layer, rise in ranking}
        return ctx.save_weights(
            model, _together(lora, top), layers=layers, chosen=chosen, after_lora=lora.validation_after
        )

    def _lora_settings(self, config: HybridConfig) -> dict[str, Any]:
        shared = {name: getattr(config, name) for name in FitSettings.model_fields}
        own = {"learning_rate": config.lora_learning_rate, "epochs": config.lora_epochs}
        return {**shared, **own, "rank": config.rank, "alpha": config.alpha}

    def _count(self, config: HybridConfig, layers: int) -> int:
        return min(config.layers or max(1, round(SHARE * layers)), layers)

    def _ranking(self, model: Any, config: HybridConfig, ctx: TrainContext) -> list[tuple[int, float]]:
        """(layer, rise of the validation loss when its update is switched off), largest rise first.

        Kept in the run's folder, so that a resumed run goes on with the same layers.
        """
        from persona_lab.api import adapted_layers, without_layer, write_atomic

        kept = ctx.run_dir / "checkpoints" / RANKING_FILE
        if kept.exists():
            return [(int(layer), float(rise)) for layer, rise in json.loads(kept.read_text())]
        layers = adapted_layers(model)
        ctx.phase("Finding the layers that matter", len(layers))
        whole = ctx.validation_loss(model, limit=config.ranking_conversations)
        rises = []
        for number, layer in enumerate(layers, start=1):
            with without_layer(model, layer):
                rises.append((layer, ctx.validation_loss(model, limit=config.ranking_conversations) - whole))
            ctx.step(number, len(layers))
        rises.sort(key=lambda pair: -pair[1])
        write_atomic(kept, json.dumps(rises))
        return rises


def _together(first: FitResult, second: FitResult) -> FitResult:
    """One account of both stages."""
    return second.model_copy(
        update={
            "steps": first.steps + second.steps,
            "validation_before": first.validation_before,
            "best_step": first.steps + second.best_step,
            "seconds": first.seconds + second.seconds,
        }
    )
