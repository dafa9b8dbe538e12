"""Strategy `continue`: go on from a variant with new conversations, and some of the old ones against forgetting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from persona_lab.api import (
    Artifact,
    BadInput,
    BaseModelInfo,
    Conversation,
    Dataset,
    Estimate,
    FitSettings,
    Machine,
    Persona,
    Problem,
    Strategy,
    TrainContext,
    TrainJob,
    Variant,
)

RATES = {"adapter": 2.5e-4, "weights": 5e-5}
"""Half of what `lora` and `full` use: the character is there already."""
USUAL_RANK = 16


class ContinueConfig(FitSettings):
    """Settings of `continue`; the fit loop's are in `FitSettings`."""

    variant: str = Field(
        "", max_length=200, description="The variant to go on from, by its id or name.",
        json_schema_extra={"pick": "variant"},
    )  # fmt: skip
    replay: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of the conversations it learned before that are mixed in, so that they are not forgotten.",
    )
    learning_rate: float = Field(
        0.0, ge=0, le=1, description="How big each correction is; 0 takes half of what its first training would use."
    )


class ContinueStrategy(Strategy):
    """Further training of an adapter or of whole weights, with rehearsal of earlier rows (Robins 1995,
    https://doi.org/10.1080/09540099550039318)."""

    id = "continue"
    title = "Go on from a variant"
    summary = "Teaches a variant you have your newest conversations, without starting over or losing the old ones."
    rank = 60
    Config = ContinueConfig
    goes_on = True

    def __init__(self, parent: Variant | None = None, learned: Sequence[Conversation] = ()) -> None:
        self.parent, self.learned = parent, learned

    def going_on(self, parent: Variant, learned: Sequence[Conversation]) -> ContinueStrategy:
        """With what it goes on from: estimates are of its weights, and of the rows that will be read."""
        return ContinueStrategy(parent, learned)

    def check(
        self, config: ContinueConfig, persona: Persona, dataset: Dataset | None, machine: Machine
    ) -> list[Problem]:
        """A variant must be named; that the dataset is small is no remark here: the variant knows more."""
        if self.parent is not None and dataset is not None:
            return self.check_parent(config, self.parent, self.learned, dataset)
        if config.variant:
            return []
        fix = "Train one first, or set variant=ID; persona-lab variants list shows them."
        return [Problem(message="It needs a variant to go on from.", fix=fix, field="variant")]

    def check_parent(
        self, config: ContinueConfig, parent: Variant, learned: Sequence[Conversation], dataset: Dataset
    ) -> list[Problem]:
        """There must be something new, unless all of the old is to be read again."""
        if new_rows(dataset, learned) or config.replay == 1:
            return []
        message = f"There is nothing new to learn: {parent.name!r} has learned every conversation of {dataset.name!r}."
        return [Problem(message=message, fix="Import new ones, or set replay=1 to read all of the old again.")]

    def estimate(
        self, config: ContinueConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> Estimate:
        """Of the parent's weights and the rows that are new or replayed; with no parent named, as for an adapter of the
        usual rank that reads the whole dataset."""
        from persona_lab.api import estimate_training, lora_parameters

        parent = self.parent
        kind = parent.kind if parent is not None and parent.kind in RATES else "adapter"
        whole = kind == "weights"
        trainable = base.parameters if whole else lora_parameters(base, _rank(parent))
        rated = config.model_copy(update={"learning_rate": config.learning_rate or RATES[kind]})
        if parent is not None and dataset is not None:
            # seeds choose other rows, but as many of them
            rows = (*new_rows(dataset, self.learned), *replayed(self.learned, config.replay, seed=0))
            read = [row.model_copy(update={"split": "train"}) for row in rows]
            dataset = dataset.model_copy(update={"conversations": (*read, *dataset.of("validation"))})
        quantized = parent is not None and parent.quantization is not None
        found = estimate_training(
            rated, base, dataset, machine, trainable=trainable, full_weights=whole, quantized=quantized
        )
        if parent is not None:
            return found
        reason = (
            "If the variant is an adapter; whole weights take as much as `full`. Only new rows and replays are read."
        )
        return found.model_copy(update={"reason": reason, "uncertainty": max(found.uncertainty, 3.0)})

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Train the variant's adapter or weights on; the artifact says what it went on from, and with how much."""
        config: ContinueConfig = job.settings
        parent = ctx.parent
        if parent is None or parent.kind not in RATES:
            raise BadInput("There is no trained variant to go on from.", "Start it again with --set variant=ID.")
        new, old = new_rows(ctx.dataset, ctx.learned), replayed(ctx.learned, config.replay, ctx.seed)
        ctx.log(f"{len(new)} new conversations, and {len(old)} of {len(ctx.learned)} that {parent.name!r} knows.")
        settings = config.model_copy(update={"learning_rate": config.learning_rate or RATES[parent.kind]})
        model = ctx.load_parent()
        fit = ctx.fit(model, settings, job.stage, conversations=[*new, *old])
        save = ctx.save_adapter if parent.kind == "adapter" else ctx.save_weights
        return save(model, fit, parent=parent.id, new_rows=len(new), replayed_rows=len(old))


def _rank(parent: Variant | None) -> int:
    """Of the parent's adapter; the usual one where it cannot be read."""
    if parent is None or parent.kind != "adapter":
        return USUAL_RANK
    try:
        found = json.loads((Path(parent.path) / "adapter_config.json").read_text(encoding="utf-8")).get("r")
    except (OSError, ValueError, AttributeError):
        return USUAL_RANK
    return found if isinstance(found, int) and found > 0 else USUAL_RANK


def new_rows(dataset: Dataset, learned: Sequence[Conversation]) -> list[Conversation]:
    """Training rows whose content is not among the learned ones."""
    from persona_lab.api import content_key

    known = {content_key(conversation) for conversation in learned}
    return [conversation for conversation in dataset.of("train") if content_key(conversation) not in known]


def replayed(learned: Sequence[Conversation], share: float, seed: int) -> list[Conversation]:
    """This share of the learned rows: the same for the same rows and seed, whatever their order."""
    from persona_lab.api import content_key

    def place(conversation: Conversation) -> str:
        return hashlib.sha256(f"{seed} {content_key(conversation)}".encode()).hexdigest()

    return sorted(learned, key=place)[: round(share * len(learned))]
