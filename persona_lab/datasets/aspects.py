"""Which rows show which facet of a character: by the rows' own tags, or, where none has any, by two crude rules.

The rules know words only, and say so: `knowledge` is a reply that shares content words with the card or its facts,
`mood` one with an exclamation or a word of feeling. Tags of one's own are better.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from persona_lab.errors import BadInput, BadSetting
from persona_lab.types import Conversation, Dataset, Persona, slug

VOICE = "voice"
KNOWLEDGE = "knowledge"
MOOD = "mood"
FEWEST = 4
"""Training rows: an aspect with fewer is left out."""
MOST = 8
SHARED_WORDS = 2
Untagged = Literal["voice", "all", "none"]

_LETTERS = re.compile(r"[^\W_]+")
_WORD = re.compile(r"[^\W\d_]{4,}")
_COMMON = frozenset(
    _WORD.findall(
        "about after again also always another because been before being both cannot could does doing done down "
        "each even ever every from give goes going have having here hers herself himself into itself just keep "
        "know like little long made make many might more most much must myself never nothing often once only "
        "other ours over people quite rather really said same says should since some someone something still such "
        "take tell than that their them then there these they thing things think this those though through time "
        "upon user very want well were what when where which while will with without would years your yours "
        "yourself character name speaks speak "
    )
)
_FEELING = re.compile(
    r"\b(afraid|alas|angry|anger|ashamed|awful|bless|cross|cry|cried|damn|dear|delight\w*|despair|dread\w*|fear|fears|"
    r"fond|furious|glad|grief|grieve\w*|happy|hate|hated|heart|horrible|horrid|joy|laugh\w*|lonely|love|loved|lovely|"
    r"mad|miss|miserable|pity|proud|rage|regret|sad|shame|sorrow|sorry|tears|terrible|weep\w*|wept|wonderful|worried)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Aspects:
    """Parts of one dataset by aspect, in the order they are trained: the voice first, then the larger before the
    smaller. `by_rule`: no row had a tag. `notes`: what was left out, for people."""

    parts: dict[str, Dataset]
    by_rule: bool
    notes: tuple[str, ...] = ()


def rows_by_aspect(dataset: Dataset, persona: Persona, untagged: Untagged = "voice") -> Aspects:
    """The rows of each aspect. A row may belong to several.

    Args:
        untagged: where rows without a tag go once others have some: to the voice, to every aspect, or nowhere.

    Raises:
        BadInput: fewer than two aspects have enough rows, or there are more than eight.
    """
    by_tag = rows_by_tag(dataset, untagged)
    return by_tag if by_tag is not None else _parted(dataset, _by_rule(dataset, persona), tagged=False)


def rows_by_tag(dataset: Dataset, untagged: Untagged = "voice") -> Aspects | None:
    """The same by tags alone; None: no row has one.

    Raises:
        BadInput
    """
    tagged = any(conversation.tags for conversation in dataset.conversations)
    return _parted(dataset, _tagged(dataset, untagged), tagged=True) if tagged else None


def _parted(dataset: Dataset, names: Sequence[Sequence[str]], tagged: bool) -> Aspects:
    rows: dict[str, list[Conversation]] = {}
    for conversation, found in zip(dataset.conversations, names, strict=True):
        for name in found:
            rows.setdefault(name, []).append(conversation)
    counts = {name: sum(c.split == "train" for c in part) for name, part in rows.items()}
    enough = [name for name in rows if counts[name] >= FEWEST]
    _refuse(enough, counts, tagged)
    order = sorted(enough, key=lambda name: (name != VOICE, -counts[name], name))
    parts = {name: dataset.model_copy(update={"conversations": tuple(rows[name])}) for name in order}
    few = [f"{name} ({counts[name]})" for name in sorted(rows) if name not in enough]
    notes = [f"Left out, because fewer than {FEWEST} training rows show them: {', '.join(few)}."] if few else []
    return Aspects(parts, not tagged, tuple(notes))


def _refuse(enough: list[str], counts: Mapping[str, int], tagged: bool) -> None:
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
    how = 'Tag rows in your file: {"messages": [...], "tags": ["mood"]}, or a column `aspect`; or use `lora`.'
    if len(enough) < 2:
        by = "tags" if tagged else "rules (no row has a tag)"
        raise BadInput(
            f"Aspects need two facets with at least {FEWEST} training rows each; by {by} there are: {told}.", how
        )
    if len(enough) > MOST:
        raise BadInput(f"There are {len(enough)} aspects ({told}); at most {MOST} are trained.", "Use fewer tags.")


def _tagged(dataset: Dataset, untagged: Untagged) -> list[list[str]]:
    every = sorted({aspect_name(tag) for c in dataset.conversations for tag in c.tags})
    instead = {"voice": [VOICE], "all": every, "none": []}[untagged]
    return [list(dict.fromkeys(aspect_name(tag) for tag in c.tags)) or instead for c in dataset.conversations]


def aspect_name(tag: str) -> str:
    """The aspect that a tag names: as an id, in whatever script it is written."""
    if tag.isascii():
        return slug(tag)
    return "_".join(_LETTERS.findall(unicodedata.normalize("NFKC", tag).casefold()))[:48].strip("_") or slug("")


def _by_rule(dataset: Dataset, persona: Persona) -> list[list[str]]:
    known = _card_words(persona)
    found = []
    for conversation in dataset.conversations:
        said = " ".join(m.content for m in conversation.messages if m.role == "assistant")
        names = [VOICE]
        if len(known & _words([said])) >= SHARED_WORDS:
            names.append(KNOWLEDGE)
        if "!" in said or _FEELING.search(said):
            names.append(MOOD)
        found.append(names)
    return found


def _card_words(persona: Persona) -> set[str]:
    texts = [persona.field(name) for name in ("description", "personality", "scenario")]
    return _words([*texts, *(fact.answer for fact in persona.facts)]) - _words([persona.name])


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in _WORD.findall(text.casefold())} - _COMMON


# --- weights --------------------------------------------------------------------------------------


def parse_weights(text: str) -> dict[str, float]:
    """`voice=1,mood=0.5` as weights by aspect; empty text gives none.

    Raises:
        BadSetting: it is not written so, or a weight is not between -4 and 4.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = part.partition("=")
        try:
            weight = float(value) if separator and name.strip() else None
        except ValueError:
            weight = None
        if weight is None or not -4 <= weight <= 4:
            raise BadSetting(
                f"{part!r} is not an aspect with a weight from -4 to 4.", "Write name=weight, such as voice=1,mood=0.5."
            )
        found[name.strip()] = weight
    return found
