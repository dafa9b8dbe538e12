"""Strategy `hybrid`: LoRA first, then a map of where the character sits, then full fine-tuning of a few layers."""

from __future__ import annotations

import json
from typing import Any, Literal

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
MAP_FILE = "layers.json"


class HybridConfig(FitSettings):
    """Settings of `hybrid`: those of the fit loop are for its second stage, the others for LoRA and the map."""

    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="How big each correction of the chosen layers is, in the second stage."
    )
    epochs: float = Field(2.0, gt=0, le=100, description="How often the second stage reads every conversation.")
    lora_learning_rate: float = Field(5e-4, gt=0, le=1, description="How big each correction of the LoRA stage is.")
    lora_epochs: float = Field(1.0, gt=0, le=100, description="How often the LoRA stage reads every conversation.")
    rank: int = Field(16, ge=1, le=512, description="Size of the matrices that LoRA adds.")
    alpha: float = Field(32.0, gt=0, le=2048, description="How strongly LoRA's matrices count; usually twice the rank.")
    criterion: Literal["last", "benefit", "ablation", "sensitivity"] = Field(
        "last",
        description="Which layers are trained in full: the last ones, which are cheapest; as many last ones as pay for "
        "their time; those without whose update the loss rises most; those the loss is most sensitive to.",
    )
    layers: int = Field(
        0,
        ge=0,
        le=1000,
        description="How many layers are trained in the second stage; 0 takes about a quarter of them.",
    )
    map_conversations: int = Field(
        12, ge=1, le=60, description="Validation conversations used to draw the map of where the character sits."
    )


class HybridStrategy(Strategy):
    """LoRA, a map of the layers, merge, full fine-tuning of some layers. Measured in docs/locating.md."""

    id = "hybrid"
    title = "Hybrid"
    summary = "LoRA first, then full fine-tuning of a few layers, with a map of where the character sits."
    rank = 20
    Config = HybridConfig

    def check(self, config: HybridConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Remarks on the dataset, which must have validation conversations to draw the map by."""
        from persona_lab.api import data_problems

        problems = data_problems(config, dataset)
        if dataset is not None and not dataset.of("validation"):
            message = "There are no validation conversations to find the character's layers by."
            problems.append(Problem(message=message, fix="Import more conversations, or use `lora`."))
        return problems

    def estimate(
        self, config: HybridConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> Estimate:
        """The larger memory and the summed time of both stages, and the map's."""
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
        drawing = (layers + 1) * min(config.map_conversations, held) / max(held, 1)
        lora = estimate_training(
            config.model_copy(update={"epochs": config.lora_epochs}),
            base,
            dataset,
            machine,
            trainable=lora_parameters(base, config.rank),
            full_weights=False,
            validations=drawing,
        )
        top = estimate_training(
            config,
            base,
            dataset,
            machine,
            trainable=layer_parameters(base, count),
            full_weights=True,
            # layers chosen by their effect may lie anywhere, so a step may have to go through all of them
            depth=count / layers if config.criterion in ("last", "benefit") else 1.0,
        )
        return combine_estimates(lora, top, reason=f"LoRA first, then {count} of {layers} layers in full.")

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Both stages; the map is kept in the artifact's details."""
        model, fit, details = self._train(job, ctx)
        return ctx.save_weights(model, fit, **details)

    def train_model(self, job: TrainJob, ctx: TrainContext) -> tuple[Any, FitResult]:
        """The trained model, for strategies that go on from it."""
        model, fit, _ = self._train(job, ctx)
        return model, fit

    def _train(self, job: TrainJob, ctx: TrainContext) -> tuple[Any, FitResult, dict[str, Any]]:
        from persona_lab.api import merged_model, train_layers

        config: HybridConfig = job.settings
        model, lora = ctx.run_strategy("lora", self._lora_settings(config), "lora")
        rises = self._map(model, config, ctx)
        model = merged_model(model)
        chosen = self._chosen(model, rises, config, ctx)
        ctx.log(f"Layers {_ranges(chosen)} of {len(rises)} are trained in full. {_strongest(rises)}")
        train_layers(model, chosen)
        top = ctx.fit(model, config, "layers")
        details = {
            "layers": {str(layer): round(rise, 5) for layer, rise in rises},
            "chosen": chosen,
            "criterion": config.criterion,
            "after_lora": lora.validation_after,
        }
        return model, _together(lora, top), details

    def _lora_settings(self, config: HybridConfig) -> dict[str, Any]:
        shared = {name: getattr(config, name) for name in FitSettings.model_fields}
        own = {"learning_rate": config.lora_learning_rate, "epochs": config.lora_epochs}
        return {**shared, **own, "rank": config.rank, "alpha": config.alpha}

    def _count(self, config: HybridConfig, layers: int) -> int:
        return min(config.layers or max(1, round(SHARE * layers)), layers)

    def _map(self, model: Any, config: HybridConfig, ctx: TrainContext) -> list[tuple[int, float]]:
        """(layer, rise of the validation loss when its update is switched off), in order of layers.

        Kept in the run's folder, so that a resumed run goes on with the same layers.
        """
        from persona_lab.api import ablation, adapted_layers, write_atomic

        kept = ctx.run_dir / "checkpoints" / MAP_FILE
        try:
            return [(int(layer), float(rise)) for layer, rise in json.loads(kept.read_bytes())]
        except FileNotFoundError:
            pass
        except (ValueError, TypeError):
            ctx.log("The map of the layers is damaged and is drawn again.", "warning")
        ctx.phase("Finding where the character sits", len(adapted_layers(model)))
        rises = ablation(model, lambda m: ctx.validation_loss(m, limit=config.map_conversations), ctx.step)
        write_atomic(kept, json.dumps(rises))
        return rises

    def _chosen(self, model: Any, rises: list[tuple[int, float]], config: HybridConfig, ctx: TrainContext) -> list[int]:
        from persona_lab.api import benefit_per_cost

        layers = [layer for layer, _ in rises]
        count = self._count(config, len(layers))
        if config.criterion == "benefit":
            return layers[-(config.layers or benefit_per_cost(rises)) :]
        if config.criterion == "last":
            return layers[-count:]
        values = rises
        if config.criterion == "sensitivity":
            values = ctx.layer_sensitivity(model, limit=2 * config.map_conversations)
        return sorted(layer for layer, _ in sorted(values, key=lambda pair: -pair[1])[:count])


def _ranges(layers: list[int]) -> str:
    """`0, 19, 22-29`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _strongest(rises: list[tuple[int, float]]) -> str:
    strongest = sorted(layer for layer, _ in sorted(rises, key=lambda pair: -pair[1])[:3])
    return f"Most of what LoRA learnt sits in layers {', '.join(map(str, strongest))}."


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
