"""`persona-lab votes ...` and `persona-lab feedback ...`: what people said of replies, for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_lab.cli.common import HomeOption, JsonOption, PersonaOption, opened, show

votes_app = typer.Typer(no_args_is_help=True, help="Blind votes and the ratings that follow from them.")
feedback_app = typer.Typer(no_args_is_help=True, help="Liked and corrected replies, and adding them to the data.")

OfPersona = Annotated[str | None, typer.Option("--persona", help="A persona's id; without it: of all.")]
OutFile = Annotated[Path | None, typer.Option("--out", help="A JSONL file to write; without it: standard output.")]


@votes_app.command("list")
def votes_list(persona: OfPersona = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Every vote, oldest first."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.votes.all(persona)
    rows = [
        {
            **vote.model_dump(mode="json", include={"id", "persona", "voter", "outcome", "reason", "created"}),
            "name": vote.id,
            "variants": [candidate.variant for candidate in vote.candidates],
            "winner": vote.candidates[vote.winner].variant if vote.winner is not None else None,
        }
        for vote in found
    ]
    columns = ("created", "persona", "variants", "outcome", "winner", "reason")
    table = [tuple(", ".join(v) if isinstance(v := row[c], list) else v or "" for c in columns) for row in rows]
    show(rows, as_json, lambda: print_table(columns, table, "No votes yet."))


@votes_app.command("ratings")
def votes_ratings(persona: OfPersona = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Bradley-Terry ratings with 95% intervals, the strongest first."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.ratings(persona)
    columns = ("variant", "rating", "low", "high", "votes", "wins", "ties", "losses", "note")
    table = [
        (r.variant, *(f"{value:.0f}" for value in (r.rating, r.low, r.high)), r.votes, r.wins, r.ties, r.losses, r.note)
        for r in found
    ]
    show([rating.as_row() for rating in found], as_json, lambda: print_table(columns, table, "No votes yet."))


@votes_app.command("export")
def votes_export(
    persona: OfPersona = None,
    out: OutFile = None,
    all_contexts: Annotated[
        bool, typer.Option("--all-contexts", help="Also pairs whose replies answer different histories.")
    ] = False,
    corrections: Annotated[
        bool, typer.Option("--corrections", help="Also corrected replies, each against what was said.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Preference pairs {prompt, chosen, rejected}, a line each."""
    from persona_lab.chats.feedback import corrections as corrected
    from persona_lab.chats.votes import pairs

    with opened(home, readonly=True) as engine:
        rows: list[dict[str, Any]] = list(pairs(engine.votes.all(persona), all_contexts))
        if corrections:
            rows += corrected(engine.feedback.all(persona))
    _write(rows, out, as_json)


@feedback_app.command("list")
def feedback_list(persona: OfPersona = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Every thumb and correction, newest first."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.feedback.all(persona)
    rows = [{**item.model_dump(mode="json"), "name": item.question[:60], "wanted": item.wanted} for item in found]
    table = [(i.id, i.persona, i.status, i.thumb, i.question[:40], i.wanted[:60]) for i in found]
    show(
        rows, as_json, lambda: print_table(("id", "persona", "status", "thumb", "asked", "wanted"), table, "None yet.")
    )


@feedback_app.command("add-to-dataset")
def feedback_add(
    persona: PersonaOption,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Of a piece of feedback; may be repeated.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Liked and corrected replies as a new version of the data, to learn from; what is held out is refused."""
    with opened(home) as engine:
        made = engine.learn_from_feedback(persona, ids)
    result = {"dataset": made.dataset.id if made.dataset else None, "added": made.added, "refused": made.refused}
    show(result, as_json, lambda: _tell(result))


def _tell(result: dict[str, Any]) -> None:
    typer.echo(f"{len(result['added'])} replies added as {result['dataset'] or 'nothing: all were refused'}.")
    for feedback_id, reason in result["refused"].items():
        typer.echo(f"{feedback_id} was left out: {reason}.")


def _write(rows: list[dict[str, Any]], out: Path | None, as_json: bool) -> None:
    from persona_lab.home import refuse_existing, write_atomic

    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if out is None:
        show(rows, as_json, lambda: typer.echo(text, nl=False))
        return
    refuse_existing(out)
    write_atomic(out, text)
    show({"file": str(out.resolve()), "pairs": len(rows)}, as_json, lambda: typer.echo(f"{len(rows)} pairs in {out}."))
