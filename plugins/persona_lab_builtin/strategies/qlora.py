"""Strategy `qlora`: LoRA on a base whose weights are stored in 4 bits, for models that would not fit otherwise."""

from __future__ import annotations

from persona_lab.api import (
    Artifact,
    BaseModelInfo,
    Dataset,
    Estimate,
    Machine,
    Persona,
    Problem,
    Strategy,
    TrainContext,
    TrainJob,
)
from persona_lab_builtin.strategies.lora import LoRAConfig


class QLoRAStrategy(Strategy):
    """LoRA on NF4 weights (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314) through bitsandbytes."""

    id = "qlora"
    title = "QLoRA (4-bit base)"
    summary = "For big models on one graphics card: the base is squeezed to 4 bits while LoRA learns beside it."
    rank = 50
    Config = LoRAConfig

    def check(self, config: LoRAConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Remarks on the dataset; on a CPU, that plain LoRA is the better choice."""
        from persona_lab.api import data_problems

        problems = data_problems(config, dataset)
        if machine.device == "cpu":
            message = "Without a graphics card, 4-bit training is slower than `lora` and needs more memory, not less."
            problems.append(Problem(message=message, fix="Use `lora` here.", severity="warning"))
        if machine.device == "mps":
            message = "4-bit training is not supported on Apple graphics."
            problems.append(Problem(message=message, fix="Use `lora`."))
        return problems

    def estimate(self, config: LoRAConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """See `estimate_training` and `lora_parameters` in the toolkit."""
        from persona_lab.api import estimate_training, lora_parameters

        trainable = lora_parameters(base, config.rank)
        return estimate_training(
            config, base, dataset, machine, trainable=trainable, full_weights=False, quantized=True
        )

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train the adapter on the 4-bit base and save it; the artifact says which base it belongs to."""
        from persona_lab.api import attach_lora

        config: LoRAConfig = job.settings
        base = ctx.load_base(quantization="nf4")
        model = attach_lora(base, rank=config.rank, alpha=config.alpha, dropout=config.dropout)
        return ctx.save_adapter(model, ctx.fit(model, config, job.stage))
