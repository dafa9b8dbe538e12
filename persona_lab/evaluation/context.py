"""What evaluators get in the worker: likelihoods and replies of variants and of their base, each computed once a run.

Results are cached by what really went in (weights and the whole prompt), so evaluators may ask again, and a variant
that only changes the prompt shares its base's results. Models are loaded once a base; writes nothing to disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import Reporter
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home
from persona_lab.inference.decoding import generate
from persona_lab.inference.loading import VariantHost
from persona_lab.inference.prompting import messages_for
from persona_lab.inference.scoring import loglikelihood
from persona_lab.models.registry import ensure
from persona_lab.personas.prompt import system_prompt
from persona_lab.types import BaseModelInfo, Dataset, LogLikelihood, Machine, Message, Persona, Sampling, Variant

Item = tuple[Sequence[Message], str]
_ITEMS_AT_ONCE = 48
"""Items scored between two looks at whether the user cancelled."""
_PROMPTS_AT_ONCE = 20
_TOKENS_BETWEEN_LOOKS = 64


class Models:
    """Base models held once each, and everything they have computed in this run."""

    def __init__(self, home: Home, machine: Machine, reporter: Reporter) -> None:
        self._home, self._machine, self._reporter = home, machine, reporter
        self._bases: dict[str, tuple[BaseModelInfo, VariantHost, ChatRenderer]] = {}
        self.likelihoods: dict[tuple[Any, ...], LogLikelihood] = {}
        self.replies: dict[tuple[Any, ...], str] = {}

    def of(self, base: str) -> tuple[BaseModelInfo, VariantHost, ChatRenderer]:
        """The base's description, its host and its renderer; fetched and loaded on first use.

        Raises:
            BadModel, ModelUnavailable, OutOfMemory
        """
        if base not in self._bases:
            self._reporter.phase(f"Loading {base}", None)
            info = ensure(base, self._home, self._reporter)
            host = VariantHost(info, self._machine, self._home)
            self._bases[base] = (info, host, ChatRenderer(Path(info.path)))
        return self._bases[base]


class VariantContext:
    """An `EvalContext` for one variant: `None` stands for its base, with the variant's own system prompt.

    Args:
        models: shared by the contexts of one run.
        subject: the variant that is being scored; decides the base and the prompt that `None` means.
    """

    def __init__(
        self,
        models: Models,
        reporter: Reporter,
        subject: Variant,
        persona: Persona,
        dataset: Dataset | None,
        machine: Machine,
        seed: int,
        quick: bool,
    ) -> None:
        self._models, self._reporter = models, reporter
        self.persona, self.dataset, self.machine = persona, dataset, machine
        self.seed, self.quick = seed, quick
        self.base_variant = base_of(subject, persona)

    def phase(self, title: str, total: int | None = None) -> None:
        """Begin a part of the work."""
        self._reporter.phase(title, total)

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        """Report progress. Raises Cancelled."""
        self._reporter.step(step, total, **values)

    def log(self, message: str, level: str = "info") -> None:
        """Say something to people."""
        self._reporter.log(message, level)

    def loglikelihood(self, variant: Variant | None, items: Sequence[Item]) -> list[LogLikelihood]:
        """Of each (messages, reply) under the variant, or the base; only what was not asked before is computed."""
        chosen = variant or self.base_variant
        full = [(tuple(messages_for(chosen, messages)), reply) for messages, reply in items]
        keys = [(*_weights(chosen), messages, reply) for messages, reply in full]
        cache = self._models.likelihoods
        missing = list(dict.fromkeys(i for i, key in enumerate(keys) if key not in cache))
        # Sorted by length, so that a batch holds no padding.
        missing.sort(key=lambda i: sum(len(m.content) for m in full[i][0]) + len(full[i][1]))
        if missing:
            _, host, renderer = self._models.of(chosen.base)
            with host.model_for(_or_none(chosen)) as model:
                for start in range(0, len(missing), _ITEMS_AT_ONCE):
                    part = missing[start : start + _ITEMS_AT_ONCE]
                    self.step(start, len(missing), stage="scoring")
                    for i, result in zip(part, loglikelihood(model, renderer, [full[i] for i in part]), strict=True):
                        cache[keys[i]] = result
            self.step(len(missing), len(missing), stage="scoring")
        return [cache[key] for key in keys]

    def generate(self, variant: Variant | None, prompts: Sequence[Sequence[Message]], sampling: Sampling) -> list[str]:
        """One reply a prompt under the variant, or the base; only what was not asked before is computed."""
        chosen = variant or self.base_variant
        full = [tuple(messages_for(chosen, messages)) for messages in prompts]
        keys = [(*_weights(chosen), messages, sampling) for messages in full]
        cache = self._models.replies
        missing = [i for i, key in enumerate(keys) if key not in cache]
        if missing:
            _, host, renderer = self._models.of(chosen.base)
            with host.model_for(_or_none(chosen)) as model:
                for start in range(0, len(missing), _PROMPTS_AT_ONCE):
                    part = missing[start : start + _PROMPTS_AT_ONCE]
                    look = self._looker(start, len(missing))
                    written = generate(model, renderer, [full[i] for i in part], sampling, on_token=look)
                    for i, reply in zip(part, written, strict=True):
                        cache[keys[i]] = reply.text
            self.step(len(missing), len(missing), stage="writing")
        return [cache[key] for key in keys]

    def _looker(self, done: int, total: int) -> Any:
        """A callback for each token that now and then reports, and so notices a wish to cancel."""
        count = 0

        def on_token(_index: int, _text: str) -> None:
            nonlocal count
            if count % _TOKENS_BETWEEN_LOOKS == 0:
                self.step(done, total, stage="writing")
            count += 1

        return on_token


def base_of(variant: Variant, persona: Persona) -> Variant:
    """The base under the same system prompt as the variant, or under the card's if it has none of its own."""
    if variant.kind == "base":
        return variant
    system = variant.system
    if not system and variant.prompt_mode == "card":
        system = system_prompt(persona)
    return Variant(
        id=f"base-{variant.persona}",
        name="base",
        persona=variant.persona,
        base=variant.base,
        strategy="base",
        kind="base",
        prompt_mode=variant.prompt_mode,
        system=system,
    )


def _weights(variant: Variant) -> tuple[str, ...]:
    """What tells two sets of weights apart; base and prompt variants share the base's."""
    if variant.kind in ("base", "prompt"):
        return (variant.base,)
    return (variant.base, variant.kind, variant.path, variant.fingerprint, variant.quantization or "")


def _or_none(variant: Variant) -> Variant | None:
    """The host's name for "the base's own weights" is None."""
    return None if variant.kind in ("base", "prompt") else variant
