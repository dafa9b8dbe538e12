"""Strategy `foundation`: full fine-tuning on a broad corpus, kept as a base for several characters, then LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from persona_lab.api import (
    Artifact,
    BadInput,
    BaseModelInfo,
    Conversation,
    Dataset,
    Estimate,
    FitResult,
    FitSettings,
    Machine,
    Message,
    Persona,
    Problem,
    Strategy,
    TrainContext,
    TrainJob,
)

CHARACTERS_A_TOKEN = 4
GUESSED_CORPUS = 1.15
"""How much wider the error bar is, as a corpus's tokens are guessed from the size of its files."""
FEW_CHARACTERS = 20_000
"""A corpus below this (about ten pages) is no genre: LoRA on the conversations learns as much."""


class FoundationConfig(FitSettings):
    """Settings of `foundation`: those of the fit loop are for the character's LoRA, `corpus_*` for the stage before."""

    corpus: str = Field(
        "",
        max_length=4096,
        description="A text, Markdown or JSONL file, or a folder of them, that the world of the character is learned "
        "from. Empty: the other speakers' lines and the training conversations.",
    )
    corpus_epochs: float = Field(1.0, gt=0, le=100, description="How many times the corpus is read.")
    corpus_learning_rate: float = Field(
        5e-5, gt=0, le=1, description="How big each correction is while the corpus is read; every weight is trained."
    )
    passage_tokens: int = Field(
        256, ge=32, le=8192, description="The corpus is read in passages of at most so many tokens."
    )
    corpus_held_out: float = Field(
        0.05, ge=0, le=0.5, description="Share of the passages that is kept to see whether reading still helps."
    )
    keep_as: str = Field(
        "",
        max_length=48,
        description="A name for the foundation, to train more characters on with --base NAME; empty: one is made up.",
    )
    then_lora: bool = Field(
        True, description="Train the character on top of it; without, the foundation itself is the variant."
    )
    rank: int = Field(16, ge=1, le=512, description="Size of the matrices that the character's LoRA adds.")
    alpha: float = Field(32.0, gt=0, le=2048, description="How strongly they count; usually twice the rank.")

    @field_validator("corpus")
    @classmethod
    def _absolute(cls, value: str) -> str:
        """The run works in another folder than the one the path was typed in."""
        return str(Path(value).expanduser().absolute()) if value.strip() else ""

    @field_validator("keep_as")
    @classmethod
    def _as_id(cls, value: str) -> str:
        from persona_lab.api import slug

        if value and (slug(value) != value or value == "starter"):
            raise ValueError(f"{value!r} cannot be a name: use small letters, digits, _ and -, and not `starter`")
        return value


class FoundationStrategy(Strategy):
    """Continued pretraining on the domain (Gururangan et al. 2020, https://arxiv.org/abs/2004.10964), then LoRA."""

    id = "foundation"
    title = "Foundation, then LoRA"
    summary = "For several characters of one world: the world is learned once and kept, then each character on it."
    rank = 60
    Config = FoundationConfig

    def check(
        self, config: FoundationConfig, persona: Persona, dataset: Dataset | None, machine: Machine
    ) -> list[Problem]:
        """Remarks on the dataset, and on a corpus that is not there or too small to be one."""
        from persona_lab.api import data_problems

        problems = data_problems(config, dataset) if config.then_lora else []
        try:
            size = _corpus_characters(config, dataset)
        except BadInput as error:
            return [*problems, Problem(message=error.message, fix=error.fix, field="corpus")]
        if size is not None and size < FEW_CHARACTERS:
            message = f"The corpus has about {size:,} characters: too little to learn a world from."
            fix = "Name more text with `corpus`, or use `lora`."
            problems.append(Problem(message=message, fix=fix, field="corpus", severity="warning"))
        if config.corpus_learning_rate > 5e-4:
            message = f"A learning rate of {config.corpus_learning_rate:g} is likely to damage the whole model."
            problems.append(Problem(message=message, fix="Use 5e-5.", field="corpus_learning_rate", severity="warning"))
        return problems

    def estimate(
        self, config: FoundationConfig, base: BaseModelInfo, dataset: Dataset | None, machine: Machine
    ) -> Estimate:
        """The larger memory and the summed time and disk of both stages. A kept foundation costs only the second."""
        from persona_lab.api import combine_estimates, estimate_training, lora_parameters

        corpus = _stand_in(config, dataset)
        reading = _counting(machine, base, corpus, config.passage_tokens)
        first = estimate_training(
            self._corpus_settings(config), base, corpus, reading, trainable=base.parameters, full_weights=True
        )
        first = first.model_copy(update={"uncertainty": round(first.uncertainty * GUESSED_CORPUS, 2)})
        if not config.then_lora:
            return first.model_copy(update={"disk_bytes": first.disk_bytes + 2 * base.parameters})
        trainable = lora_parameters(base, config.rank)
        lora = estimate_training(config, base, dataset, machine, trainable=trainable, full_weights=False)
        reason = f"The corpus first, {first.seconds:.0f} s of it; for the next character it is there already."
        both = combine_estimates(first, lora, reason=reason, trainable=trainable)
        # the artifact's steps are those of the LoRA alone, and must not be taken for a run that stopped early
        return both.model_copy(update={"steps": 0})

    def train(self, job: TrainJob, ctx: TrainContext) -> Artifact:
        """Find or train the foundation, then the character's LoRA on it."""
        config: FoundationConfig = job.settings
        base, fit, details = self._foundation(config, ctx)
        above = ctx.using(base=base)
        if not config.then_lora:
            model = above.load_base().requires_grad_(True)
            return ctx.save_weights(model, fit, foundation=details, **_after(details, ctx, model))
        model, lora = above.run_strategy("lora", self._lora_settings(config), "lora")
        losses = {"validation_before": details["validation_origin"], "validation_after": lora.validation_after}
        details["validation_foundation"] = lora.validation_before
        artifact = above.save_adapter(model, lora, foundation=details, **losses)
        return artifact.model_copy(update={"base": base.id})

    def _foundation(
        self, config: FoundationConfig, ctx: TrainContext
    ) -> tuple[BaseModelInfo, FitResult, dict[str, Any]]:
        """The kept base, what its training did, and what is told of it; trained now unless it is there."""
        from persona_lab.api import corpus_passages, keep_base, kept_base

        ctx.phase("Reading the corpus")
        passages = corpus_passages(ctx, config.corpus, config.passage_tokens, config.corpus_held_out)
        counts = passages.counts
        ctx.log(
            f"The corpus: {counts['passages']} passages, {counts['tokens']} tokens. {counts['dropped']} of its "
            f"{counts['units']} pieces were left out, because they hold lines that are held out."
        )
        settings = self._corpus_settings(config)
        recipe = passages.recipe(ctx.base, settings.model_dump(mode="json"), ctx.seed)
        model = ctx.load_base()
        details: dict[str, Any] = {"corpus": counts, "validation_origin": ctx.validation_loss(model)}
        known = kept_base(ctx, recipe, config.keep_as)
        if known is not None:
            ctx.log(f"The foundation {known[0].id!r} was made of just this before: it is used again, not trained.")
            return *known, details | {"id": known[0].id, "reused": True, "fit": known[1].model_dump(mode="json")}
        model.requires_grad_(True)
        fit = ctx.fit(model, settings, "foundation", rendered=(passages.train, passages.validation))
        info = keep_base(ctx, model, recipe, config.keep_as, fit, passages)
        ctx.log(f"The foundation is kept as {info.id!r}; train other characters on it with --base {info.id}.")
        return info, fit, details | {"id": info.id, "reused": False, "fit": fit.model_dump(mode="json")}

    def _corpus_settings(self, config: FoundationConfig) -> FitSettings:
        """Of the first stage. Without samples: half a passage is no conversation."""
        shared = {name: getattr(config, name) for name in FitSettings.model_fields}
        own = {"learning_rate": config.corpus_learning_rate, "epochs": config.corpus_epochs}
        return FitSettings(**{**shared, **own, "max_tokens": config.passage_tokens, "samples": 0})

    def _lora_settings(self, config: FoundationConfig) -> dict[str, Any]:
        shared = {name: getattr(config, name) for name in FitSettings.model_fields}
        return {**shared, "rank": config.rank, "alpha": config.alpha}


def _after(details: dict[str, Any], ctx: TrainContext, model: Any) -> dict[str, float]:
    """The losses on the persona's own conversations, which the corpus stage did not look at."""
    return {"validation_before": details["validation_origin"], "validation_after": ctx.validation_loss(model)}


def _corpus_characters(config: FoundationConfig, dataset: Dataset | None) -> int | None:
    """Roughly, from the sizes of files; None: there is no dataset to take the place of a corpus.

    Raises:
        BadInput: there is no such corpus.
    """
    from persona_lab.api import corpus_files, own_corpus

    if config.corpus:
        return sum(file.stat().st_size for file in corpus_files(Path(config.corpus)))
    return None if dataset is None else sum(len(unit.text) for unit in own_corpus(dataset).units)


def _stand_in(config: FoundationConfig, dataset: Dataset | None) -> Dataset | None:
    """A dataset of as many passages as the corpus has, for the estimate of the fit loop's work."""
    try:
        size = _corpus_characters(config, dataset)
    except BadInput:
        size = None  # `check` says what is wrong with it
    if not size:
        return None
    text = "x" * (config.passage_tokens * CHARACTERS_A_TOKEN)
    held = min(60, round(config.corpus_held_out * size / len(text)))
    rows = [
        Conversation(
            id=str(i),
            messages=(Message(role="assistant", content=text),),
            split="validation" if i < held else "train",
        )
        for i in range(max(1, round(size / len(text))) + held)
    ]
    return Dataset(id="corpus", persona="corpus", version=1, name="corpus", conversations=tuple(rows))


def _counting(machine: Machine, base: BaseModelInfo, corpus: Dataset | None, tokens: int) -> Machine:
    """The machine with the lengths of the stand-in: passages are full, share no prompt, and every token is learned."""
    from persona_lab.api import Measured, TokenCounts

    if corpus is None:
        return machine
    lengths = {passage.id: (tokens, tokens - 1) for passage in corpus.conversations}
    counts = TokenCounts(dataset=corpus.id, base=base.key, prefix=0, conversations=lengths)
    known = machine.measured or Measured()
    return machine.model_copy(update={"measured": known.model_copy(update={"counts": (counts,)})})
