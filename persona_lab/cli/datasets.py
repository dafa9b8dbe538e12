"""`datasets`: what characters learn from. Importing, looking, checking, mending, choosing a version."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.common import (
    BaseOption,
    HomeOption,
    JsonOption,
    PersonaOption,
    SeedOption,
    follow,
    opened,
    require_done,
    show,
)
from persona_lab.errors import Cancelled

if TYPE_CHECKING:
    from persona_lab.engine import Engine
    from persona_lab.types import DatasetSummary

datasets_app = typer.Typer(no_args_is_help=True, help="What they learn from.")
SPLITS = ("train", "validation", "test")
FormatOption = Annotated[str, typer.Option("--format", help="auto, or a reader's id.")]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=16, help="Where a training cuts a row.")]


class _Watcher:
    """Says on standard error how far a long import is: once a second on a terminal, else every five."""

    def __init__(self) -> None:
        from persona_lab.cli.terminal import PLAIN_SECONDS

        self._pause = 1.0 if sys.stderr.isatty() else PLAIN_SECONDS
        self._last = time.monotonic()
        self._shown = False

    def __call__(self, doing: str, share: float) -> None:
        now = time.monotonic()
        if now - self._last < self._pause:
            return
        self._last = now
        ending = "\r" if sys.stderr.isatty() else "\n"
        sys.stderr.write(f"{doing}: {share:4.0%}   {ending}")
        sys.stderr.flush()
        self._shown = True

    def __enter__(self) -> _Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._shown and sys.stderr.isatty():
            sys.stderr.write("\n")
        if kind is KeyboardInterrupt:
            raise Cancelled("It was stopped, and nothing was changed.", "") from None


@datasets_app.command("list")
def datasets_list(
    persona: Annotated[str | None, typer.Option("--persona")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Datasets and their versions; of one persona, the version in use first."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.datasets(persona)
    rows = [(d.id, d.persona, d.version, d.format, *(d.counts.get(s, 0) for s in SPLITS), d.source) for d in found]
    columns = ("id", "persona", "version", "format", *SPLITS, "source")
    show(found, as_json, lambda: print_table(columns, rows, "None yet: persona-lab datasets import FILE --persona ID."))


@datasets_app.command("look")
def datasets_look(
    file: Path,
    persona: Annotated[str | None, typer.Option("--persona", help="Whose lines are looked for.")] = None,
    format: FormatOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a file seems to be, why, and which speakers or columns --map may name. Imports nothing."""
    with opened(home, readonly=True) as engine:
        look = engine.look_at(file, persona, format)

    def tell() -> None:
        print(look.why if look.format else f"No reader knows {file}.")
        for candidate in look.candidates:
            print(f"  {candidate.score:4.0%}  {candidate.id:16} {candidate.why}")
        for role, names in look.roles.items():
            print(f"--map {role}=  {', '.join(names[:30])}")

    show(dataclasses.asdict(look), as_json, tell)


@datasets_app.command("import")
def datasets_import(
    file: Path,
    persona: PersonaOption,
    format: FormatOption = "auto",
    map: Annotated[
        str,
        typer.Option(
            "--map", help="Columns or speakers by role: user=question,assistant=answer; assistant=NICK,user=NICK or *."
        ),
    ] = "",
    prompts_by: Annotated[
        str,
        typer.Option("--prompts-by", help="Documents: a base model (starter, ...) that then writes the prompts."),
    ] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A file or folder of conversations, as a new version of the persona's dataset."""
    from persona_lab.settings import parse_assignments

    mapping = parse_assignments(part for part in map.split(",") if part.strip())
    with opened(home) as engine:
        with _Watcher() as watcher:
            summary = engine.import_dataset(file, persona, format, mapping, watcher)
        if prompts_by:
            summary = _with_prompts(engine, summary.id, prompts_by, 0)
    _show_summary(summary, as_json)


@datasets_app.command("write-prompts")
def datasets_write_prompts(
    dataset_id: str,
    base: BaseOption = "starter",
    seed: SeedOption = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A base model writes the prompts of a document's passages, in place of templates; a new version."""
    with opened(home) as engine:
        summary = _with_prompts(engine, dataset_id, base, seed)
    _show_summary(summary, as_json)


def _with_prompts(engine: Engine, dataset_id: str, base: str, seed: int) -> DatasetSummary:
    run = follow(engine, engine.write_prompts(dataset_id, base, seed))
    require_done(run)
    return next(summary for summary in engine.datasets() if summary.id == run.result["version"])


@datasets_app.command("from-card")
def datasets_from_card(persona: PersonaOption, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The card's example dialogues and lorebook as rows and probes, beside the rows of the version in use."""
    with opened(home) as engine:
        summary = engine.dataset_from_card(persona)
    _show_summary(summary, as_json)


@datasets_app.command("check")
def datasets_check(dataset_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What may be wrong with it before a training, with examples."""
    with opened(home, readonly=True) as engine, _Watcher() as watcher:
        report = engine.check_dataset(dataset_id, watcher)

    def tell() -> None:
        for finding in report.findings:
            print(f"{finding.title}: {finding.count} of {report.conversations} rows ({finding.kind}). {finding.why}")
            for example in finding.examples:
                print(f"    row {example.row}: {example.text}")
        kinds = ",".join(finding.kind for finding in report.findings if finding.fix)
        print(f"Nothing found: {', '.join(report.clean)}." if report.clean else "")
        if kinds:
            print(f"Mend, as a new version: persona-lab datasets fix {dataset_id} --kinds {kinds}")

    show(report.model_dump(mode="json", exclude={"reply_words"}) | {"reply_words": _spread(report)}, as_json, tell)


def _spread(report: Any) -> list[int]:
    """Least, quartiles and most of the words of a reply."""
    words = report.reply_words
    return [words[round(share * (len(words) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)] if words else []


@datasets_app.command("fix")
def datasets_fix(
    dataset_id: str,
    kinds: Annotated[str, typer.Option("--kinds", help="What to mend, as `datasets check` names it: a,b.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A new version without some kinds of trouble; the version before stays."""
    with opened(home) as engine, _Watcher() as watcher:
        summary = engine.fix_dataset(dataset_id, [kind.strip() for kind in kinds.split(",") if kind.strip()], watcher)
    _show_summary(summary, as_json)


@datasets_app.command("use")
def datasets_use(
    name: str,
    version: Annotated[int | None, typer.Option("--version", help="With a persona's id: the version's number.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take this version for trainings from now on; so a fix or an import is undone."""
    with opened(home) as engine:
        summary = engine.use_dataset(name, version)
    show(summary, as_json, lambda: print(f"{summary.persona} learns from {summary.id} now ({summary.source})."))


def _show_summary(summary: Any, as_json: bool) -> None:
    def tell() -> None:
        print(f"{summary.id}: {summary.why}")
        print(", ".join(f"{key} {value}" for key, value in summary.counts.items()))
        for warning in summary.warnings:
            print(f"warning: {warning}")

    show(summary, as_json, tell)


@datasets_app.command("inspect")
def datasets_inspect(dataset_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Counts, warnings and the first rows."""
    with opened(home, readonly=True) as engine:
        engine.dataset(dataset_id)
        report = engine.inspect_dataset(dataset_id)

    def tell() -> None:
        for key in ("id", "persona", "format", "why", "source", "counts", "reply_words", "tags", "warnings"):
            print(f"{key}: {report.get(key)}")
        for row in report["first_rows"]:
            print(f"\n{row['id']} ({row['split']})" + (f", made: {row['made']}" if row["made"] else ""))
            for message in row["messages"]:
                print(f"  {message['role']}: {message['content']}")

    show(report, as_json, tell)


@datasets_app.command("preview")
def datasets_preview(
    dataset_id: str,
    row: Annotated[int, typer.Option("--row", help="Row number, from 0.")] = 0,
    base: BaseOption = "starter",
    max_tokens: TokensOption = 1024,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """One row as the model sees it; what is trained on stands in [[ ]]."""
    with opened(home, readonly=True) as engine:
        found = engine.preview_row(dataset_id, row, base, max_tokens)
    document = {"dataset": dataset_id, "row": row, "base": base, **found.model_dump(mode="json")}

    def tell() -> None:
        print(_marked(found.tokens))
        cut = f"; {found.total - found.kept} more are cut off at {max_tokens}" if found.total > found.kept else ""
        print(f"\n{found.kept} tokens, {found.trained} trained on{cut}")

    show(document, as_json, tell)


def _marked(tokens: Any) -> str:
    text, inside = "", False
    for token in tokens:
        if token.trained != inside:
            text += "[[" if token.trained else "]]"
            inside = token.trained
        text += token.text
    return text + ("]]" if inside else "")
