"""Characters into a home: cards of every kind, lorebooks, and bundles. Never overwrites a persona.

It joins what personas/ reads and writes with the catalog; `Engine` has a thin method for each function.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

from persona_lab.catalog import Catalog
from persona_lab.datasets.held_out import LEDGER, hold_out, read_ledger
from persona_lab.datasets.store import save_dataset
from persona_lab.errors import BadInput
from persona_lab.formats import written
from persona_lab.home import write_atomic
from persona_lab.personas.bundle import Bundle
from persona_lab.personas.cards import CardFile, card_name, card_to_json
from persona_lab.personas.files import read_persona_file
from persona_lab.personas.lorebook_entries import rows_of
from persona_lab.personas.macros import unknown_macros
from persona_lab.personas.probe_file import probes_of
from persona_lab.personas.store import (
    PROBES,
    example_folders,
    load_persona,
    save_assets,
    save_persona,
)
from persona_lab.personas.world_info import WorldInfo, added_to
from persona_lab.types import DatasetSummary, Persona, now, slug

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Imported:
    """What an import brought. `kind`: what the file was, for people; `notes`: what they should know of it."""

    persona: Persona
    kind: str
    notes: tuple[str, ...] = ()


# --- in -------------------------------------------------------------------------------------------


def import_file(catalog: Catalog, path: Path, persona_id: str | None = None) -> Imported:
    """A card or a bundle as a new persona.

    Args:
        persona_id: the id to give it; None: one made of its name, with a number where that is taken.

    Raises:
        BadInput: the file is no character, or the id is taken or malformed.
    """
    found = read_persona_file(path)
    if isinstance(found, WorldInfo):
        raise BadInput(
            f"{path} is {found.kind} with {len(found.entries)} entries, not a character.",
            "Add it to a character's lorebook: persona-lab personas import FILE --into ID, or “Lorebook” in the page.",
        )
    card = found.card if isinstance(found, Bundle) else found
    name = card_name(card.card["data"])
    chosen = _free_id(catalog, persona_id, name)
    persona = Persona(id=chosen, name=name, card=card.card)
    bundle = found if isinstance(found, Bundle) else None
    saved, summary = _install(catalog, persona, card, bundle)
    if bundle is None:
        return Imported(saved, f"a character card ({card.spec})", _notes(card, saved))
    rows = sum(summary.counts.get(split, 0) for split in ("train", "validation", "test")) if summary else 0
    kind = f"a bundle with {rows} conversations" if rows else "a bundle without data"
    licence = f"Licence: {bundle.licence.splitlines()[0][:200]}"
    return Imported(saved, kind, (licence, *_notes(card, saved)))


def _free_id(catalog: Catalog, wanted: str | None, name: str) -> str:
    if wanted is None:
        return catalog.free_persona_id(slug(name, "persona"))
    if slug(wanted) != wanted:
        raise BadInput(f"{wanted!r} cannot be an id.", f"Use small letters, digits, _ and -: {slug(wanted)!r}.")
    if catalog.has_persona(wanted) or wanted in example_folders():
        fix = "Choose another with --id, or delete that persona first."
        raise BadInput(f"There is a persona called {wanted!r} already.", fix)
    return wanted


def _notes(card: CardFile, persona: Persona) -> tuple[str, ...]:
    unknown = unknown_macros(persona)
    told = (f"These macros are not known and stay as they are: {', '.join(unknown[:8])}.",) if unknown else ()
    return (*card.warnings, *told)


def import_lorebook(catalog: Catalog, path: Path, persona: Persona) -> Imported:
    """A world-info file's entries, or another card's lorebook, into a persona's own; entries it has are passed over.

    Raises:
        BadInput: there is no lorebook in the file.
    """
    found = read_persona_file(path)
    if isinstance(found, WorldInfo):
        book, kind = found.book, found.kind
    else:
        card = found.card if isinstance(found, Bundle) else found
        book, kind = card.card["data"].get("character_book"), "the lorebook of another character"
    entries = [entry for entry in rows_of(book) if isinstance(entry, dict)]
    if not entries:
        raise BadInput(f"{path} has no lorebook entries.", "Choose a world-info file, or a card with a lorebook.")
    card_object = copy.deepcopy(persona.card)
    data = card_object["data"]
    own = data.get("character_book")
    head = own if isinstance(own, dict) else {**{k: v for k, v in book.items() if k != "entries"}, "entries": []}
    data["character_book"], added = added_to(head, entries)
    saved = catalog.save_persona(persona.model_copy(update={"card": card_object}), None)
    told = f"{added} of {len(entries)} entries were added" + ("." if added == len(entries) else "; it had the others.")
    return Imported(saved, kind, (told,))


def _install(
    catalog: Catalog, persona: Persona, card: CardFile, bundle: Bundle | None
) -> tuple[Persona, DatasetSummary | None]:
    """All files into a folder of their own, checked there, then moved to the personas in one step."""
    summary = None
    with tempfile.TemporaryDirectory(dir=catalog.home.root, prefix=".incoming-") as made:
        folder = Path(made) / persona.id
        save_persona(folder, persona, card.avatar_png)
        save_assets(folder, card.files)
        if bundle is not None:
            summary = _unpack(folder, persona, bundle)
        load_persona(folder)
        target = catalog.home.persona(persona.id)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    row = {"id": persona.id, "name": persona.name, "example": False, "created": now(), "changed": now()}
    catalog.library.put("personas", row)
    if summary is not None:
        catalog.library.put("datasets", summary.model_dump(mode="json"))
    return catalog.persona(persona.id), summary


def _unpack(folder: Path, persona: Persona, bundle: Bundle) -> DatasetSummary | None:
    """What a bundle has beyond a card."""
    for name, text in ((PROBES, bundle.probes), (LEDGER, bundle.held_out)):
        if text:
            write_atomic(folder / name, text)
    write_atomic(folder / PROVENANCE, card_to_json({**bundle.provenance, "licence": bundle.licence}))
    probes_of(folder)
    read_ledger(folder)
    return _place_dataset(folder, persona, bundle)


def _place_dataset(folder: Path, persona: Persona, bundle: Bundle) -> DatasetSummary | None:
    """The bundle's dataset as the first version of the new persona's."""
    if bundle.dataset is None or bundle.summary is None:
        return None
    named = {"id": f"{persona.id[:56]}-v1", "persona": persona.id, "version": 1, "name": f"{persona.id} v1"}
    dataset = bundle.dataset.model_copy(update=named)
    summary = bundle.summary.model_copy(
        update={**named, "source": f"{bundle.summary.source} (bundle)"[:300], "run": ""}
    )
    hold_out(folder, dataset)
    path = folder / "datasets" / f"{dataset.id}.jsonl"
    save_dataset(path, dataset)
    write_atomic(path.with_suffix(".summary.json"), written("dataset summary", summary, indent=1))
    return summary
