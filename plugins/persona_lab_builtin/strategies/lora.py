"""Strategy `lora`: small matrices beside every linear layer learn the character; the base stays as it is."""

from __future__ import annotations

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

PEFT_TARGETS = {"all": "all-linear", "attention": "attention", "mlp": "mlp"}
EVA_CONVERSATIONS, EVA_TOKENS = 16, 512
"""Read for EVA in one batch, and of each at most: some hundred trained tokens show a layer's main directions."""
STRONG = 4.0
"""A scaling (2 by default) above which the usual learning rate is too high."""


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
    targets: Literal["all", "attention", "mlp"] = Field(
        "all",
        description="Where matrices are added: all layers learn best; attention or mlp alone makes a smaller file.",
    )
    rslora: bool = Field(
        False,
        description="Divide alpha by the root of the rank: choose it for ranks of 64 and more, with alpha near 16.",
    )
    dora: bool = Field(
        False,
        description="Also learn how long each weight row is: can help at ranks of 4 and less; slower, and chats alone.",
    )
    initialisation: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva"] = Field(
        "default",
        description="How the matrices start. default: as the base, safest; gaussian: the same, drawn from a bell curve;"
        " orthogonal: both matrices in use from the start; pissa and olora: on the base's main directions, to learn in"
        " fewer steps; eva: on the directions your data excites, for very small ranks.",
    )


class LoRAStrategy(Strategy):
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685) of linear layers."""

    id = "lora"
    title = "LoRA"
    summary = "The best start: fast, small on disk, and as good as full fine-tuning on a few hundred conversations."
    rank = 10
    Config = LoRAConfig

    def check(self, config: LoRAConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Remarks on the dataset and on settings that do not go together."""
        from persona_lab.api import data_problems

        return [*data_problems(config, dataset), *lora_problems(config)]

    def estimate(self, config: LoRAConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """See `estimate_training` and `lora_parameters` in the toolkit."""
        from persona_lab.api import estimate_training, lora_parameters

        trainable = lora_parameters(base, config.rank, config.targets, config.dora)
        return estimate_training(config, base, dataset, machine, trainable=trainable, full_weights=False)

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train the adapter and save it."""
        model, fit = self.train_model(job, ctx)
        return ctx.save_adapter(model, fit)

    def train_model(self, job: TrainJob, ctx: TrainContext) -> tuple[Any, FitResult]:
        """The trained peft model, for strategies that go on from it."""
        model = adapted(ctx.load_base(), job.settings, ctx)
        return model, ctx.fit(model, job.settings, job.stage)


def adapted(base: Any, config: LoRAConfig, ctx: TrainContext) -> Any:
    """A peft model around `base` as these settings want it."""
    from persona_lab.api import attach_lora

    batch = _read_for_eva(config, ctx) if config.initialisation == "eva" else None
    if config.initialisation != "default":
        ctx.phase(f"Preparing the start ({config.initialisation})")
    return attach_lora(
        base,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        targets=PEFT_TARGETS[config.targets],
        rslora=config.rslora,
        dora=config.dora,
        initialisation=config.initialisation,
        batch=batch,
    )


def _read_for_eva(config: LoRAConfig, ctx: TrainContext) -> dict[str, Any] | None:
    """Training conversations from all over the dataset as one batch of tensors, with labels where something is
    predicted; None if there are none."""
    import torch

    conversations = ctx.dataset.of("train")
    conversations = conversations[:: max(1, len(conversations) // EVA_CONVERSATIONS)][:EVA_CONVERSATIONS]
    rows = [ctx.rendered(conversation, min(config.max_tokens, EVA_TOKENS)) for conversation in conversations]
    if not rows:
        return None
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids, labels = torch.full(shape, ctx.renderer.pad_id), torch.full(shape, -100)
    real = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens, mask = torch.tensor(row.ids), torch.tensor(row.mask)
        ids[number, : len(row.ids)], real[number, : len(row.ids)] = tokens, 1
        labels[number, : len(row.ids)][mask] = tokens[mask]
    return {"input_ids": ids, "attention_mask": real, "labels": labels}


def lora_problems(config: LoRAConfig) -> list[Problem]:
    """Settings of LoRA that cannot go together, or that gain nothing so."""
    found = []
    if config.initialisation == "orthogonal" and config.rank % 2:
        message = f"Orthogonal initialisation needs an even rank, not {config.rank}."
        found.append(Problem(message=message, fix=f"Use rank={config.rank + 1}.", field="rank"))
    scaling = config.alpha / (config.rank**0.5 if config.rslora else config.rank)
    if scaling > STRONG:
        message = (
            f"With these settings the matrices count {scaling:.3g} times; 2 is usual, and more can overfit at once."
        )
        fitting = 2 * (config.rank**0.5 if config.rslora else config.rank)
        fix = f"Use alpha={fitting:.0f}, or a lower learning rate."
        found.append(Problem(message=message, fix=fix, field="alpha", severity="warning"))
    if config.dora and config.initialisation in ("pissa", "olora", "eva"):
        message = f"DoRA with {config.initialisation}: nobody has shown that the two together gain anything."
        found.append(Problem(message=message, fix="Use one of them.", field="dora", severity="warning"))
    if config.dora and config.rank >= 32:
        message = f"DoRA helps at small ranks; at rank {config.rank} it mostly costs time."
        found.append(Problem(message=message, fix="Leave it off.", field="dora", severity="warning"))
    return found
