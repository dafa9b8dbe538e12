"""`probes`: what a persona is asked when it is scored; list, propose from the card, add, remove."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.common import HomeOption, JsonOption, opened, show
from persona_lab.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from persona_lab.engine import Engine
    from persona_lab.personas.probe_file import OwnProbe, ProbeFile
    from persona_lab.types import Probe

probes_app = typer.Typer(no_args_is_help=True, help="What they are asked when they are scored.")
NAME_LENGTH = 60


@probes_app.command("list")
def probes_list(
    persona_id: Annotated[str, typer.Argument(metavar="PERSONA")], home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """A persona's facts, adversarial prompts and held-out lines, and where each comes from."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        file = engine.probes(persona_id)
        rows = [_row(probe) for probe in file.probes] + _others(engine, persona_id)
    _warn(file)
    shown = [(r["id"], r["kind"], r["name"], r["answer"][:NAME_LENGTH], r["source"]) for r in rows]
    columns = ("id", "kind", "asks", "answer", "source")
    show(rows, as_json, lambda: print_table(columns, shown, f"None yet: persona-lab probes propose {persona_id}."))


@probes_app.command("propose")
def probes_propose(
    persona_id: Annotated[str, typer.Argument(metavar="PERSONA")],
    accept: Annotated[str, typer.Option("--accept", help="Ids of proposals to keep, with commas between.")] = "",
    accept_all: Annotated[bool, typer.Option("--accept-all", help="Keep every proposal.")] = False,
    limit: Annotated[int, typer.Option(help="The most proposals.", min=1, max=200)] = 40,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Facts that the card states, each with its sentence; saved only with --accept or --accept-all."""
    from persona_lab.cli.terminal import print_table

    wanted = [name.strip() for name in accept.split(",") if name.strip()]
    with opened(home, readonly=not (wanted or accept_all)) as engine:
        proposed = engine.propose_facts(persona_id, limit)
        known = {each.fact.id for each in proposed}
        for name in wanted:
            if name not in known:
                raise UnknownName("proposal", name, known)
        chosen = [each.fact for each in proposed if accept_all or each.fact.id in wanted]
        if chosen:
            engine.edit_probes(persona_id, lambda file: file.added(chosen))
    accepted = {fact.id for fact in chosen}
    rows = [
        {
            **_row(p.fact, source=p.sentence),
            "wrong": list(p.fact.wrong),
            "topic": p.kind,
            "accepted": p.fact.id in accepted,
        }
        for p in proposed
    ]
    shown = [
        (r["id"], r["question"], r["answer"], ", ".join(r["wrong"]), r["source"], "saved" if r["accepted"] else "")
        for r in rows
    ]
    columns = ("id", "question", "answer", "wrong answers", "from the card", "")
    nothing = "The card states nothing more that can be asked. Write facts by hand: persona-lab probes add."
    show(rows, as_json, lambda: print_table(columns, shown, nothing))


@probes_app.command("add")
def probes_add(
    persona_id: Annotated[str, typer.Argument(metavar="PERSONA")],
    file: Annotated[Path, typer.Option("--file", help="JSON lines, as in a persona's probes.jsonl.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add facts, adversarial prompts and lines from a file; a line that cannot be used is named, the rest is kept."""
    from persona_lab.personas.probe_file import read_probes

    given = read_probes(file)
    if not given.probes:
        number, what = given.problems[0] if given.problems else (1, "is empty")
        raise BadInput(
            f"{file} holds no probe that can be used: line {number} {what}.",
            'A line is {"kind": "fact", "question": "...", "answer": "...", "wrong": ["...", "...", "..."]}.',
        )
    with opened(home) as engine:
        engine.persona(persona_id)  # a shipped example is installed first, so that its own probes are not new
        before = set(engine.probes(persona_id).probes)
        after = engine.edit_probes(persona_id, lambda known: known.added(given.probes))
    new = [_row(probe) for probe in after.probes if probe not in before]
    _warn(given)
    document = {
        "added": new,
        "known": len(given.probes) - len(new),
        "skipped": [{"line": number, "reason": what} for number, what in given.problems],
    }

    def tell() -> None:
        known = f" {document['known']} were there already." if document["known"] else ""
        print(f"{len(new)} probes added.{known}")
        for row in new:
            print(f"  {row['id']}: {row['name']}")

    show(document, as_json, tell)


@probes_app.command("remove")
def probes_remove(
    persona_id: Annotated[str, typer.Argument(metavar="PERSONA")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove probes of the persona's own file; `undo` brings them back."""
    with opened(home) as engine:
        engine.edit_probes(persona_id, lambda file: file.removed(ids))
    note = f"Removed: {', '.join(ids)}. Back again with: persona-lab probes undo {persona_id}."
    show({"removed": ids}, as_json, lambda: print(note))


@probes_app.command("undo")
def probes_undo(
    persona_id: Annotated[str, typer.Argument(metavar="PERSONA")], home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Take the last change of a persona's probes back; a second time, bring it back."""
    with opened(home) as engine:
        file = engine.undo_probes(persona_id)
    counts = {"facts": len(file.facts), "adversarial": len(file.adversarial), "replies": len(file.replies)}
    show(counts, as_json, lambda: print(", ".join(f"{count} {name}" for name, count in counts.items())))


def _others(engine: Engine, persona_id: str) -> list[dict[str, Any]]:
    """Probes that nobody wrote for this persona: prompts shared by all, and held-out lines of the newest data."""
    from persona_lab.personas.store import adversarial_prompts

    rows = [_row(prompt, source="shared by all personas") for prompt in adversarial_prompts()]
    return rows + [_held_out(probe) for probe in engine.held_out_lines(persona_id)]


def _row(probe: OwnProbe, source: str = "probes.jsonl") -> dict[str, Any]:
    from persona_lab.personas.probe_file import asked, kind_of
    from persona_lab.types import AdversarialPrompt, Fact

    kind, question = kind_of(probe), asked(probe)
    row = {"id": probe.id, "name": _short(question), "kind": kind}
    row["prompt" if isinstance(probe, AdversarialPrompt) else "question"] = question
    answer = probe.answer if isinstance(probe, Fact) else getattr(probe, "reply", "")
    return {**row, "answer": answer, "source": source}


def _held_out(probe: Probe) -> dict[str, Any]:
    question = probe.messages[-1].content
    row = {"id": probe.id, "name": _short(question), "kind": "reply", "question": question}
    return {**row, "answer": probe.reply, "source": "held out of the newest data"}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NAME_LENGTH else line[: NAME_LENGTH - 1] + "…"


def _warn(file: ProbeFile) -> None:
    for number, what in file.problems:
        sys.stderr.write(f"warning: line {number} {what}\n")
