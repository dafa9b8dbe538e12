"""Exact lengths of a dataset's conversations for one base and one card, kept on disk; and a machine that knows them.

Light: the tokenizer and the chat template run without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from persona_lab.datasets.batching import shared_prefix
from persona_lab.datasets.rendering import renderer_of
from persona_lab.errors import BadInput, BadModel
from persona_lab.home import Home, write_atomic
from persona_lab.models.calibration import measured_for
from persona_lab.models.work import MOST_VALIDATION
from persona_lab.personas.prompt import system_prompt
from persona_lab.types import BaseModelInfo, Dataset, Machine, Message, Persona, TokenCounts

MOST_KEPT = 32
"""Files of counts; the oldest go."""


def informed(machine: Machine, home: Home, base: BaseModelInfo, dataset: Dataset | None, persona: Persona) -> Machine:
    """The machine with what is known by measurement: its rates, earlier runs, and this dataset's exact lengths."""
    known = measured_for(home, machine, base)
    counts = token_counts(home, base, dataset, persona) if dataset is not None and base.ready else None
    return machine.model_copy(update={"measured": known.model_copy(update={"counts": (counts,) if counts else ()})})


def token_counts(home: Home, base: BaseModelInfo, dataset: Dataset, persona: Persona) -> TokenCounts | None:
    """Counted once for each dataset, base and card; None where this base's template cannot be rendered here."""
    system = system_prompt(persona)
    path = home.token_counts / f"{_key(base, dataset, system)}.json"
    try:
        return TokenCounts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        counts = _count(base, dataset, system)
    if counts is not None:
        _keep(path, counts)
    return counts


def _key(base: BaseModelInfo, dataset: Dataset, system: str) -> str:
    digest = hashlib.sha256(f"{base.key}\0{base.path}\0{dataset.id}\0{system}".encode("utf-8", "replace"))
    tokenizer = Path(base.path) / "tokenizer.json"
    if tokenizer.exists():
        state = tokenizer.stat()
        digest.update(f"{state.st_size}:{state.st_mtime_ns}".encode())
    for conversation in dataset.conversations:
        digest.update(conversation.model_dump_json().encode("utf-8", "replace"))
    return digest.hexdigest()[:24]


def _count(base: BaseModelInfo, dataset: Dataset, system: str) -> TokenCounts | None:
    try:
        renderer = renderer_of(Path(base.path))
    except BadModel:
        return None  # the training says so; a plan can still guess
    chosen = [*dataset.of("train"), *dataset.of("validation")[:MOST_VALIDATION]]
    lengths, rendered = {}, []
    for conversation in chosen:
        try:
            one = renderer.render(_messages(system, conversation.messages))
        except BadInput:
            continue  # named row by row before a training; here it only lacks its count
        if any(one.mask[1:]):
            rendered.append(one)
        lengths[conversation.id] = (len(one.ids), sum(one.mask[1:]))
    prefix = len(shared_prefix(rendered))
    return TokenCounts(dataset=dataset.id, base=base.key, prefix=prefix, conversations=lengths)


def _messages(system: str, messages: Sequence[Message]) -> list[Message]:
    """As training puts them: the persona's system prompt, and none of the conversation's own."""
    own = [message for message in messages if message.role != "system"]
    return [Message(role="system", content=system), *own] if system else own


def _keep(path: Path, counts: TokenCounts) -> None:
    try:
        write_atomic(path, counts.model_dump_json())
        kept = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in kept[MOST_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        return  # a cache that cannot be written costs time only
