"""Strategy `qlora`: LoRA on a base whose weights are stored in 4 bits, for models that would not fit otherwise."""

from __future__ import annotations

from pydantic import Field

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
from persona_lab_builtin.strategies.lora import LoRAConfig, adapted, lora_problems

WHY_NOT = {
    "pissa": "PiSSA starts from the exact weights of the base, and a 4-bit base no longer has them.",
    "olora": "OLoRA starts from the exact weights of the base, and a 4-bit base no longer has them.",
    "orthogonal": "An orthogonal start takes the type of the base's weights, and 4-bit weights have none it can use.",
}


class QLoRAConfig(LoRAConfig):
    """Settings of `qlora`: those of `lora`, and how the base is stored."""

    double_quantisation: bool = Field(
        True, description="Also squeeze the 4-bit weights' own scales: 0.4 bits a weight less, at no loss worth naming."
    )


class QLoRAStrategy(Strategy):
    """LoRA on NF4 weights (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314) through bitsandbytes."""

    id = "qlora"
    title = "QLoRA (4-bit base)"
    summary = "For big models on one graphics card: the base is squeezed to 4 bits while LoRA learns beside it."
    rank = 50
    Config = QLoRAConfig

    def check(self, config: QLoRAConfig, persona: Persona, dataset: Dataset | None, machine: Machine) -> list[Problem]:
        """Starts that a 4-bit base does not allow; remarks on the dataset; on a CPU, that `lora` is better."""
        from persona_lab.api import data_problems

        problems = [*data_problems(config, dataset), *lora_problems(config)]
        if config.initialisation in WHY_NOT:
            fix = "Use initialisation=default, or the strategy `lora`."
            problems.append(Problem(message=WHY_NOT[config.initialisation], fix=fix, field="initialisation"))
        if machine.device == "cpu":
            message = "Without a graphics card, 4-bit training is slower than `lora` and needs more memory, not less."
            problems.append(Problem(message=message, fix="Use `lora` here.", severity="warning"))
        if machine.device == "mps":
            message = "4-bit training is not supported on Apple graphics."
            problems.append(Problem(message=message, fix="Use `lora`."))
        return problems

    def estimate(self, config: QLoRAConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine) -> Estimate:
        """See `estimate_training` and `lora_parameters` in the toolkit."""
        from persona_lab.api import estimate_training, lora_parameters

        trainable = lora_parameters(base, config.rank, config.targets, config.dora)
        return estimate_training(
            config, base, dataset, machine, trainable=trainable, full_weights=False, quantized=True
        )

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train the adapter on the 4-bit base and save it; the artifact says which base it belongs to."""
        config: QLoRAConfig = job.settings
        base = ctx.load_base(quantization="nf4" if config.double_quantisation else "nf4_single")
        model = adapted(base, config, ctx)
        return ctx.save_adapter(model, ctx.fit(model, config, job.stage))
