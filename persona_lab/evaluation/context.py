"""What evaluators get in the worker: likelihoods and replies of variants and of their base, each computed once.

Results are kept by what really went in (weights and the whole prompt), in memory and on disk, so evaluators may ask
again, also in a later run, and a variant that only changes the prompt shares its base's results.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import NoSettings, Reporter
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.evaluation.score_cache import ScoreCache, key_of
from persona_lab.evaluation.updates import Update, updates
from persona_lab.home import Home
from persona_lab.inference.decoding import generate
from persona_lab.inference.divergence import Passage, divergence
from persona_lab.inference.loading import VariantHost
from persona_lab.inference.prompting import messages_for
from persona_lab.inference.scoring import loglikelihood
from persona_lab.inference.trait_files import kept_file, read_kept
from persona_lab.models.registry import ensure
from persona_lab.models.weights import settings_digest, sha256
from persona_lab.personas.prompt import system_prompt
from persona_lab.traits import library
from persona_lab.traits.reading import positions
from persona_lab.types import (
    BaseModelInfo,
    Dataset,
    Divergence,
    LogLikelihood,
    Machine,
    Message,
    Persona,
    Sampling,
    TraitState,
    Variant,
)

Item = tuple[Sequence[Message], str]
_ITEMS_AT_ONCE = 160
"""Items scored between two looks at whether the user cancelled; what is scored is on disk after each."""
_PROMPTS_AT_ONCE = 20
_PASSAGES_AT_ONCE = 12
_READ_AT_ONCE = 32
_TOKENS_BETWEEN_LOOKS = 64


class Models:
    """Base models held once each, and everything they have computed in this run."""

    def __init__(self, home: Home, machine: Machine, reporter: Reporter) -> None:
        self._home, self._machine, self._reporter = home, machine, reporter
        self._bases: dict[str, tuple[BaseModelInfo, VariantHost, ChatRenderer]] = {}
        self._known: dict[str, Any] = {}
        self._settings: dict[str, str] = {}
        self._disk = ScoreCache(home.score_cache, reporter)

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

    def weights(self, variant: Variant) -> tuple[str, ...]:
        """What decides a result besides the prompt: the weights' own fingerprint, the files that say how they are used
        (an adapter's scaling, the chat template), and the arithmetic."""
        info, host, _ = self.of(variant.base)
        arithmetic = "bf16" if self._machine.bf16 else "fp32"
        folders = [info.path, *([variant.path] if variant.kind in ("adapter", "weights") else [])]
        used = [self._settings_of(folder) for folder in folders]
        return (host.base_fingerprint, host.weights_key(variant), self._machine.device, arithmetic, *used)

    def _settings_of(self, folder: str) -> str:
        """Read once: a tokenizer may have tens of megabytes."""
        if folder not in self._settings:
            self._settings[folder] = settings_digest(Path(folder))
        return self._settings[folder]

    def known(self, keys: Sequence[str]) -> dict[str, Any]:
        """What has been computed before, by key: JSON values."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self._known]
        self._known |= self._disk.get(unknown)
        return self._known

    def keep(self, results: dict[str, Any]) -> None:
        """Keep JSON values by key, in memory and on disk."""
        self._known |= results
        self._disk.put(results)


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
        self.settings: Any = NoSettings()
        self.base_variant = base_of(subject, persona)

    def with_settings(self, settings: Any) -> VariantContext:
        """The same context for an evaluator with these settings."""
        other = copy.copy(self)
        other.settings = settings
        return other

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
        weights = self._models.weights(chosen)
        keys = [key_of("likelihood", weights, _plain(messages), reply) for messages, reply in full]

        def score(model: Any, renderer: ChatRenderer, part: Sequence[int], done: int, total: int) -> list[Any]:
            self.step(done, total, stage="scoring")
            scored = loglikelihood(model, renderer, [full[i] for i in part])
            return [[result.total, result.tokens, result.bytes] for result in scored]

        # By prompt, then by length: what shares a prompt is computed together, and a batch holds little padding.
        order = sorted(range(len(full)), key=lambda i: (sum(len(m.content) for m in full[i][0]), keys[i]))
        order = _together(order, [full[i][0] for i in range(len(full))])
        found = self._computed(chosen, keys, order, _ITEMS_AT_ONCE, "scoring", score)
        return [LogLikelihood(total=total, tokens=tokens, bytes=size) for total, tokens, size in found]

    def generate(self, variant: Variant | None, prompts: Sequence[Sequence[Message]], sampling: Sampling) -> list[str]:
        """One reply a prompt under the variant, or the base; only what was not asked before is computed."""
        chosen = variant or self.base_variant
        full = [tuple(messages_for(chosen, messages)) for messages in prompts]
        weights = self._models.weights(chosen)
        drawn = sampling.model_dump(mode="json")
        keys = [key_of("reply", weights, _plain(messages), drawn) for messages in full]

        def write(model: Any, renderer: ChatRenderer, part: Sequence[int], done: int, total: int) -> list[Any]:
            look = self._looker(done, total)
            return [r.text for r in generate(model, renderer, [full[i] for i in part], sampling, on_token=look)]

        # rows of similar length share a batch, so that little is padded
        order = sorted(range(len(full)), key=lambda i: (sum(len(m.content) for m in full[i]), keys[i]))
        return self._computed(chosen, keys, order, _PROMPTS_AT_ONCE, "writing", write)

    def divergence(self, variant: Variant, passages: Sequence[Passage]) -> list[Divergence]:
        """How far the variant's weights moved the base's predictions; only what was not asked before is computed.

        Measured are weights: no system prompt and no examples are put before anything. KL is 0 by definition where the
        weights are the base's own. The base is the unquantised one, also for an adapter on a 4-bit base.
        """
        weights = (self._models.weights(self.base_variant), self._models.weights(variant))
        keys = [
            key_of("divergence", weights, passage if isinstance(passage, str) else [_plain(passage[0]), passage[1]])
            for passage in passages
        ]
        known = self._models.known(keys)
        missing = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        if missing:
            _, host, renderer = self._models.of(self.base_variant.base)
            _, own_host, _ = self._models.of(variant.base)
            same = _or_none(variant) is None and own_host is host
            own = None if same else lambda: own_host.model_for(variant)
            for start in range(0, len(missing), _PASSAGES_AT_ONCE):
                part = missing[start : start + _PASSAGES_AT_ONCE]
                look = self._teller(start, len(part), len(missing))
                found = divergence(lambda: host.model_for(None), own, renderer, [passages[i] for i in part], look)
                self._models.keep({keys[i]: d.model_dump(mode="json") for i, d in zip(part, found, strict=True)})
            self.step(len(missing), len(missing), stage="comparing predictions")
        return [Divergence.model_validate(known[key]) for key in keys]

    def _teller(self, first: int, passages: int, total: int) -> Callable[[int, int], None]:
        """A callback that reports tokens of one part as passages of them all, and so notices a wish to cancel."""
        return lambda done, tokens: self.step(
            first + passages * done // max(tokens, 1), total, stage="comparing predictions"
        )

    def updates(self, variant: Variant) -> Iterator[Update]:
        """Every weight matrix that training changed, one at a time; nothing for the base and for prompts."""
        base, under = self._models.of(self.base_variant.base)[0], self._models.of(variant.base)[0]
        if _or_none(variant) is None and under.path == base.path:
            return iter(())
        return updates(variant, base, self.machine, under)

    def computed_traits(self) -> list[TraitState]:
        """The traits whose vectors are there for the base's own weights; none is computed."""
        _, host, _ = self._models.of(self.base_variant.base)
        found = library.states(host.home, [host.base_fingerprint])
        return [state for state in found if state.status != "not computed"]

    def along_traits(self, traits: Sequence[str], items: Sequence[Item]) -> list[dict[str, float | None]]:
        """Where each (messages, reply) stands along these traits, as the base reads it, by id of the trait.

        Read are texts: no system prompt and no examples are put before anything, and whose words they are does not
        matter. See `traits.reading`.

        Raises:
            BadInput: a trait was not computed for this base. BadModel
        """
        base = self.base_variant.model_copy(update={"traits": {}})
        weights, host = self._models.weights(base), self._models.of(base.base)[1]
        paths = [kept_file(base, host.home, trait, [host.base_fingerprint]) for trait in traits]
        kept = [read_kept(path) for path in paths]
        directions = [sha256(path) for path in paths]
        keys = [key_of("along", weights, directions, _plain(messages), reply) for messages, reply in items]

        def read(model: Any, renderer: ChatRenderer, part: Sequence[int], done: int, total: int) -> list[Any]:
            self.step(done, total, stage="reading")
            return positions(model, renderer, kept, [items[i] for i in part])

        # texts of similar length share a batch, so that little is padded
        order = sorted(range(len(items)), key=lambda i: (sum(len(m.content) for m in items[i][0]), keys[i]))
        found = self._computed(base, keys, order, _READ_AT_ONCE, "reading", read)
        return [dict(zip(traits, values, strict=True)) for values in found]

    def _computed(
        self,
        chosen: Variant,
        keys: Sequence[str],
        order: Sequence[int],
        at_once: int,
        stage: str,
        compute: Callable[[Any, ChatRenderer, Sequence[int], int, int], list[Any]],
    ) -> list[Any]:
        """The result of each key; what is missing is computed `at_once` a time, and kept as soon as it is there."""
        known = self._models.known(keys)
        missing = list({keys[i]: i for i in order if keys[i] not in known}.values())
        if missing:
            _, host, renderer = self._models.of(chosen.base)
            with host.model_for(_or_none(chosen)) as model:
                for start in range(0, len(missing), at_once):
                    part = missing[start : start + at_once]
                    results = compute(model, renderer, part, start, len(missing))
                    self._models.keep({keys[i]: result for i, result in zip(part, results, strict=True)})
            self.step(len(missing), len(missing), stage=stage)
        return [known[key] for key in keys]

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
    """The base under the same system prompt as the variant, or under the card's if it has none of its own.

    Of a variant on a foundation it is the foundation's own origin: so its gain counts what the foundation taught, too,
    and is on one scale with that of variants made straight from the origin.
    """
    if variant.kind == "base":
        return variant
    system = variant.system
    if not system and variant.prompt_mode == "card":
        system = system_prompt(persona)
    return Variant(
        id=f"base-{variant.persona}",
        name="base",
        persona=variant.persona,
        base=variant.compared_with,
        strategy="base",
        kind="base",
        prompt_mode=variant.prompt_mode,
        system=system,
    )


def _plain(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in messages]


def _together(order: Sequence[int], prompts: Sequence[Sequence[Message]]) -> list[int]:
    """The same indices with those of equal prompts next to each other, prompts in the order of their first index."""
    groups: dict[tuple[Message, ...], list[int]] = {}
    for index in order:
        groups.setdefault(tuple(prompts[index]), []).append(index)
    return [index for group in groups.values() for index in group]


def _or_none(variant: Variant) -> Variant | None:
    """The host's name for "the base's own weights, pulled nowhere" is None."""
    return None if variant.kind in ("base", "prompt") and not variant.traits else variant
