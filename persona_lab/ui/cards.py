"""Character cards as the page edits and shows them: plain functions between Persona and text or HTML."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from persona_lab.errors import BadInput
from persona_lab.personas.macros import substitute
from persona_lab.types import Persona, PersonaSummary, slug
from persona_lab.ui.html import avatar, chip, esc, plural

# (card field, label, help, lines)
EDITED: tuple[tuple[str, str, str, int], ...] = (
    ("description", "Description", "Who the character is: looks, past, work, people. The model reads this.", 5),
    ("personality", "Personality", "How the character thinks and talks.", 3),
    ("scenario", "Scenario", "Where the conversation takes place.", 2),
    ("first_mes", "First message", "What the character says when a chat begins.", 3),
)


def gallery(people: Sequence[PersonaSummary], chosen: str | None) -> str:
    """Cards to pick from; each is a button that carries the persona's id."""
    return f'<div class="pl-gallery">{"".join(_card(person, person.id == chosen) for person in people)}</div>'


def _card(person: PersonaSummary, chosen: bool) -> str:
    facts = [plural(person.conversations, "conversation")] if person.conversations else []
    if person.variants:
        facts.append(plural(person.variants, "variant"))
    badge = chip("example") if person.example else ""
    use = "In use" if chosen else "Use this persona"
    return (
        f'<button type="button" class="pl-card {"pl-chosen" if chosen else ""}" data-id="{esc(person.id)}" '
        f'aria-pressed="{str(chosen).lower()}">{avatar(person.avatar, person.name, 72)}'
        f'<span class="pl-card-text"><span class="pl-card-name">{esc(person.name)} {badge}</span>'
        f'<span class="pl-card-line">{esc(person.tagline)}</span>'
        f'<span class="pl-card-foot"><span class="pl-soft">{esc(" · ".join(facts))}</span>'
        f'<span class="pl-use">{use}</span></span></span></button>'
    )


def details(persona: Persona) -> str:
    """The character at a glance."""
    tags = [tag for tag in persona.data.get("tags") or () if isinstance(tag, str)]
    counted = f"{plural(len(persona.facts), 'fact')} it can be tested on" if persona.facts else "no test facts yet"
    parts = [
        f'<div class="pl-who">{avatar(persona.avatar, persona.name, 112)}<div><h2>{esc(persona.name)}</h2>'
        '<p class="pl-tags">'
        f"{''.join(chip(tag) for tag in tags[:8])}</p>"
        f'<p class="pl-soft">{esc(counted)}</p></div></div>'
    ]
    greeting = _filled(persona, "first_mes")
    if greeting:
        parts.append(f'<blockquote class="pl-greeting">{esc(greeting)}</blockquote>')
    for name, label, _, _ in EDITED[:3]:
        text = _filled(persona, name)
        if text:
            parts.append(f"<h3>{esc(label)}</h3><p>{esc(text)}</p>")
    return f'<article class="pl-details">{"".join(parts)}</article>'


def _filled(persona: Persona, name: str) -> str:
    """A card's text with its macros filled in, as a reader expects it."""
    return substitute(persona.field(name), persona, "you").strip()


def edited(persona: Persona, name: str, texts: Sequence[str]) -> Persona:
    """The persona with what the form changed; everything else of the card is kept.

    Args:
        texts: one for each of EDITED.

    Raises:
        BadInput: no name.
    """
    if not name.strip():
        raise BadInput("The character has no name.", "Give it one.")
    card = copy.deepcopy(persona.card)
    data = card.setdefault("data", {})
    data["name"] = name.strip()
    for (key, *_), text in zip(EDITED, texts, strict=True):
        data[key] = (text or "").strip()
    return persona.model_copy(update={"name": name.strip(), "card": card, "example": False})


def created(name: str, texts: Sequence[str], taken: Collection[str]) -> Persona:
    """A new persona from the form.

    Raises:
        BadInput: no name, or nothing at all about who it is.
    """
    if not any(text and text.strip() for text in texts[:2]):
        raise BadInput("Nothing says who this character is.", "Write a description or a personality.")
    stem = slug(name, "persona")
    free, number = stem, 2
    while free in taken:
        free, number = f"{stem}_{number}", number + 1
    card: dict[str, Any] = {"spec": "chara_card_v3", "spec_version": "3.0", "data": {"extensions": {}, "tags": []}}
    return edited(Persona(id=free, name=name or "?", card=card), name, texts)
