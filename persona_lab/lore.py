"""A conversation's lore: what the lorebook of a variant's persona adds to its system prompt. Light: no torch.

The budget is counted with the base's own tokenizer where the base is on this machine, else roughly.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from persona_lab.errors import BadInput, BadModel, UnknownName
from persona_lab.home import Home
from persona_lab.personas.lorebook import Count, Lore, book_of, rough_tokens
from persona_lab.personas.prompt import lore_of, with_lore
from persona_lab.types import ChatRequest, Persona


def has_lore(persona: Persona) -> bool:
    """Whether what is said can wake anything."""
    return any(entry.enabled and not entry.constant and entry.keys for entry in book_of(persona.data).entries)


def token_counter(home: Home, base: str) -> Count:
    """Counts a text's tokens as `base` reads them; roughly, where the base is not on this machine."""
    from persona_lab.models.registry import describe

    try:
        info = describe(base, home)
        tokenizer = Path(info.path) / "tokenizer.json"
        if not info.ready or not tokenizer.is_file():
            return rough_tokens
        return _counter(Path(info.path), tokenizer.stat().st_mtime_ns)
    except (UnknownName, BadModel, BadInput):
        return rough_tokens  # the chat itself says what is wrong with the base


@lru_cache(4)
def _counter(folder: Path, changed: int) -> Count:
    """`changed` (nanoseconds) is in the key, so that another model in the same folder is read again."""
    from persona_lab.datasets.rendering import renderer_of

    renderer = renderer_of(folder)
    return lru_cache(4_096)(lambda text: len(renderer.text_ids(text)))


def in_conversation(request: ChatRequest, persona: Persona, home: Home) -> ChatRequest:
    """The request with the lore that its messages wake, in the variant's system prompt or in the conversation, as each
    entry says; unchanged where none does."""
    variant = request.variant
    if variant.prompt_mode != "card" or not variant.system or not has_lore(persona):
        return request
    lore: Lore = lore_of(persona, request.messages, count=token_counter(home, variant.base))
    system = with_lore(variant.system, persona, lore)
    if system == variant.system and not lore.inserted:
        return request
    update = {"variant": variant.model_copy(update={"system": system}), "inserted": lore.inserted}
    return request.model_copy(update=update)
