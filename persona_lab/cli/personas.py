"""`personas`: characters in, out, and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona_lab.cli.common import HomeOption, JsonOption, OutOption, opened, show
from persona_lab.errors import BadInput

personas_app = typer.Typer(no_args_is_help=True, help="Who the characters are.")


@personas_app.command("list")
def personas_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Your personas and the shipped examples."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.personas()
    rows = [
        (p.id, p.name, "example" if p.example else "yours", p.conversations, p.variants, p.tagline[:70]) for p in found
    ]
    columns = ("id", "name", "", "conversations", "variants", "")
    show(found, as_json, lambda: print_table(columns, rows, "None yet: persona-lab personas import FILE."))


@personas_app.command("show")
def personas_show(
    persona_id: str,
    said: Annotated[str, typer.Option("--said", help="Show the prompt as it is when this is said (lorebook).")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """One persona: its card, facts, and the prompt the model sees."""
    from persona_lab.personas.macros import unknown_macros
    from persona_lab.personas.prompt import lore_of, system_prompt
    from persona_lab.types import Message

    with opened(home, readonly=True) as engine:
        persona = engine.persona(persona_id)
    lore = lore_of(persona, [Message(role="user", content=said)]) if said else None
    prompt = system_prompt(persona, lore=lore)
    unknown = unknown_macros(persona)
    document = persona.model_dump(mode="json") | {"system_prompt": prompt, "unknown_macros": unknown}
    if lore is not None:
        document["lorebook"] = {
            "used": [entry.title for entry in lore.used],
            "left_out": [entry.title for entry in lore.left_out],
            "inserted": [one.model_dump(mode="json") for one in lore.inserted],
            "problems": lore.problems,
        }

    def tell() -> None:
        print(f"{persona.name} ({persona.id}), {len(persona.facts)} facts\n\n{prompt}")
        if lore is not None:
            print(f"\nLorebook entries woken: {', '.join(entry.title for entry in lore.used) or 'none'}")
        for one in lore.inserted if lore else ():
            print(f"Not in the prompt but {one.depth} messages before the end, as {one.role}: {one.content}")
        for problem in lore.problems if lore else ():
            print(f"warning: {problem}")
        if unknown:
            print(f"\nwarning: these macros are not known and stay as they are: {', '.join(unknown)}")

    show(document, as_json, tell)


@personas_app.command("import")
def personas_import(
    file: Path,
    persona_id: Annotated[str | None, typer.Option("--id", help="The id to give it.")] = None,
    into: Annotated[
        str | None, typer.Option("--into", help="Add the file's lorebook entries to this persona instead.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A character card (PNG, JSON, CHARX, YAML; V1, V2 or V3), or a bundle. Never overwrites a persona."""
    if into and persona_id:
        raise BadInput("--into adds to a persona that is there, and --id names a new one.", "Give one of them.")
    with opened(home) as engine:
        found = engine.import_lorebook(file, into) if into else engine.import_character(file, persona_id)
    persona = found.persona
    document = {
        "id": persona.id,
        "name": persona.name,
        "avatar": persona.avatar,
        "kind": found.kind,
        "notes": found.notes,
    }

    def tell() -> None:
        print(f"{persona.name} is persona {persona.id!r} now, from {found.kind}." if not into else f"{persona.name}:")
        for note in found.notes:
            print(f"note: {note}")

    show(document, as_json, tell)


@personas_app.command("export")
def personas_export(
    persona_id: str,
    out: OutOption,
    format: Annotated[str, typer.Option("--format", help="png, json, charx, or bundle (card, data, probes).")] = "png",
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="Name this variant's weights in the card; may be repeated.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Of a bundle: what others may do with it.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a persona's card, or a bundle to pass on."""
    # a shipped example's data comes into the home when a bundle is made of it
    with opened(home, readonly=format != "bundle") as engine:
        path = engine.export_persona(persona_id, format, out, variant or (), licence)
    show({"id": persona_id, "file": str(path)}, as_json, lambda: print(path))


@personas_app.command("dialogues")
def personas_dialogues(
    persona_id: str,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write them as JSONL, which `datasets import` reads.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """The example dialogues of a card, as conversations."""
    from persona_lab.home import refuse_existing, write_atomic
    from persona_lab.personas.dialogues import as_rows, example_dialogues

    with opened(home, readonly=True) as engine:
        found = example_dialogues(engine.persona(persona_id))
    if out is not None:
        refuse_existing(out)
        write_atomic(out, as_rows(found))

    def tell() -> None:
        for dialogue in found:
            print(f"{dialogue.id}")
            for message in dialogue.messages:
                print(f"  {message.role}: {message.content}")
        print(f"{len(found)} dialogues" + (f" in {out}" if out else "."))

    show([dialogue.model_dump(mode="json") for dialogue in found], as_json, tell)


@personas_app.command("undo")
def personas_undo(
    persona_id: str,
    again: Annotated[bool, typer.Option("--again", help="Bring back what was taken back.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the last edit of a card back."""
    with opened(home) as engine:
        persona = engine.undo_card(persona_id, again)
    show({"id": persona.id, "name": persona.name}, as_json, lambda: print(f"{persona.name} is as it was before."))


@personas_app.command("delete")
def personas_delete(persona_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put a persona and its datasets aside."""
    with opened(home) as engine:
        engine.delete_persona(persona_id)
        trash = engine.home.root / "trash"
    note = f"{persona_id} was put aside in {trash} until the next delete; the page can bring it back."
    show({"id": persona_id, "deleted": True}, as_json, lambda: print(note))
