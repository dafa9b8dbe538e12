"""Versions of a persona's dataset: made by fixes, chosen among, checked, and seen as the model sees them.

A version never changes. A fix makes the next one, out of the rows of the one it mends, with their splits; the one
before stays, so that undoing is choosing it again. Runs name the version they were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import BadInput, UnknownName
from persona_lab.types import Dataset, DatasetSummary, Frozen, Message, Persona, PreviewToken, RunView, now

if TYPE_CHECKING:
    from persona_lab.catalog import Catalog
    from persona_lab.datasets.progress import Watcher
    from persona_lab.datasets.quality.report import QualityReport

IN_USE = "dataset"
"""Key of a persona's library row: the version that trainings take, where it is not the newest."""


class RowPreview(Frozen):
    """A row as the model sees it.

    `total`: tokens of the whole row with the system prompt; `kept`: those that are read (`tokens`), fewer where the row
    is longer than `max_tokens`.
    """

    tokens: tuple[PreviewToken, ...]
    total: int
    kept: int
    trained: int
    max_tokens: int


def in_use_first(summaries: Sequence[DatasetSummary], row: dict[str, Any] | None) -> list[DatasetSummary]:
    """Summaries of one persona with the version in use first, the rest as they are."""
    chosen = (row or {}).get(IN_USE)
    return sorted(summaries, key=lambda summary: summary.id != chosen) if chosen else list(summaries)


def use(catalog: Catalog, dataset_id: str) -> DatasetSummary:
    """Make a version the one that trainings take.

    Raises:
        UnknownName
    """
    row = catalog.library.get("datasets", dataset_id)
    if row is None:
        raise UnknownName("dataset", dataset_id, [r["id"] for r in catalog.library.all("datasets")])
    summary = DatasetSummary.model_validate(row)
    persona = catalog.library.get("personas", summary.persona) or {"id": summary.persona}
    catalog.library.put("personas", persona | {IN_USE: dataset_id})
    return summary


def version_id(catalog: Catalog, name: str, version: int | None) -> str:
    """The id of a version: by its own id, or by a persona's id (or any of its versions) and a number.

    Raises:
        UnknownName. BadInput: there is no such version.
    """
    row = catalog.library.get("datasets", name)
    if version is None and row is not None:
        return name
    persona = row["persona"] if row else name
    found = {d.version: d.id for d in catalog.datasets(persona)}
    if not found:
        raise UnknownName("dataset", name, [r["id"] for r in catalog.library.all("datasets")])
    if version is None:
        raise BadInput(f"{name} has {len(found)} versions.", f"Name one with --version: {_listed(found)}.")
    if version not in found:
        raise BadInput(f"{persona} has no dataset version {version}.", f"There are: {_listed(found)}.")
    return found[version]


def _listed(versions: dict[int, str]) -> str:
    return ", ".join(str(number) for number in sorted(versions))


def check(catalog: Catalog, dataset_id: str, persona: Persona, watcher: Watcher | None = None) -> QualityReport:
    """What may be wrong with a version.

    Raises:
        UnknownName. Cancelled: by `watcher`.
    """
    from persona_lab.datasets.progress import watched
    from persona_lab.datasets.quality.report import quality_report

    with watched(watcher):
        return quality_report(catalog.dataset(dataset_id), persona)


def fix(
    catalog: Catalog, dataset_id: str, persona: Persona, kinds: Sequence[str], watcher: Watcher | None = None
) -> DatasetSummary:
    """A new version without some kinds of trouble; it is the one in use from then on.

    Raises:
        UnknownName: of the dataset or a kind. BadInput: nothing to mend, or nothing left. Cancelled: by `watcher`.
    """
    from persona_lab.datasets.build import next_version
    from persona_lab.datasets.progress import watched
    from persona_lab.datasets.quality.report import fixed

    before = catalog.dataset(dataset_id)
    known = next(d for d in catalog.datasets(before.persona) if d.id == dataset_id)
    with watched(watcher):
        rows, notes = fixed(before, persona, kinds, catalog.held_out(before.persona))
    made = next_version(before, catalog.next_version(before.persona), rows)
    why = f"Version {known.version} with fixes ({', '.join(kinds)}). {' '.join(notes)}"
    return catalog.keep_dataset(made, _following(known, made, why, notes))


def from_card(catalog: Catalog, persona: Persona) -> DatasetSummary:
    """The card's example dialogues and lorebook as rows of a new version beside those of the version in use.

    Raises:
        BadInput: the card has neither.
    """
    from persona_lab.api import ReadResult
    from persona_lab.datasets.card_rows import card_rows
    from persona_lab.datasets.reading import Reading

    made = card_rows(persona)
    found = catalog.datasets(persona.id)
    before = catalog.dataset(found[0].id) if found else None
    kept = () if before is None else tuple(c for c in before.conversations if not c.source.startswith("card:"))
    result = ReadResult(
        conversations=(*kept, *made.conversations), others=before.others if before else (), warnings=made.notes
    )
    why = f"{len(made.conversations)} rows made of the card" + (f", added to {found[0].name}" if found else "")
    return catalog.add_dataset(Reading(result, "card", why), persona.id, "the character's card")


def take_prompts(catalog: Catalog, run: RunView) -> DatasetSummary | None:
    """The version that a run's written prompts make of their dataset; None where they were taken before.

    Raises:
        UnknownName: the dataset is gone. DiskFull
    """
    from persona_lab.backtranslation import PROMPTS_FILE, read_prompts
    from persona_lab.datasets.build import next_version
    from persona_lab.datasets.instructions import with_prompts

    taken = prompted_by(catalog, run.id)
    if taken is not None:
        _note_version(catalog, run, taken.id)  # a kill may have come between the version and this note
        return None
    before = catalog.dataset(run.dataset)
    known = next(d for d in catalog.datasets(before.persona) if d.id == run.dataset)
    model = str(run.result["model"])
    prompts = {row: prompt for row, prompt in read_prompts(Path(run.directory) / PROMPTS_FILE).items() if prompt}
    rows = with_prompts(before.conversations, prompts, model)
    made = next_version(before, catalog.next_version(before.persona), rows)
    told = f"{run.result['written']} of {run.result['rows']} prompts made of templates are written by {model} now"
    why = f"Version {known.version}, in which {told} (run {run.id}). {known.why}"
    notes = (f"{told}; the replies are as they were.",)
    kept = catalog.keep_dataset(made, _following(known, made, why, notes, run.id))
    _note_version(catalog, run, kept.id)
    return kept


def _note_version(catalog: Catalog, run: RunView, dataset_id: str) -> None:
    row = {"id": run.id, "kind": run.kind, "name": run.name, "created": run.created}
    catalog.library.put("runs", row | (catalog.library.get("runs", run.id) or {}) | {"version": dataset_id})


def _following(
    known: DatasetSummary, made: Dataset, why: str, warnings: Sequence[str], run: str = ""
) -> DatasetSummary:
    """The summary of a version that was made from another one."""
    return known.model_copy(
        update={
            "id": made.id,
            "name": made.name,
            "version": made.version,
            "why": why,
            "counts": counts(made, known.counts),
            "fingerprint": _fingerprint(made),
            "created": now(),
            "warnings": tuple(warnings),
            "parent": known.id,
            "run": run,
        }
    )


def prompted_by(catalog: Catalog, run_id: str) -> DatasetSummary | None:
    """The version that came of a run that wrote prompts."""
    row = next((row for row in catalog.library.all("datasets") if row.get("run") == run_id), None)
    return DatasetSummary.model_validate(row) if row else None


def counts(dataset: Dataset, before: dict[str, int]) -> dict[str, int]:
    """The numbers of a summary; what the import left out stays as it was."""
    return before | {
        **{split: len(dataset.of(split)) for split in ("train", "validation", "test")},
        "others": len(dataset.others),
        "turns": sum(m.role == "assistant" for c in dataset.conversations for m in c.messages),
    }


def _fingerprint(dataset: Dataset) -> str:
    from persona_lab.datasets.build import fingerprint

    return fingerprint(dataset)


def preview_row(dataset: Dataset, row: int, persona: Persona, model: Path, max_tokens: int) -> RowPreview:
    """A row as the model sees it, cut where it is longer than `max_tokens`.

    Raises:
        BadInput: there is no such row, or the template cannot be masked.
    """
    from persona_lab.datasets.rendering import renderer_of
    from persona_lab.personas.prompt import system_prompt

    if not 0 <= row < len(dataset.conversations):
        raise BadInput(f"There is no row {row}: {dataset.id} has rows 0 to {len(dataset.conversations) - 1}.")
    messages = dataset.conversations[row].messages
    if messages[0].role != "system":
        messages = (Message(role="system", content=system_prompt(persona)), *messages)
    renderer = renderer_of(model)
    total = len(renderer.render(messages).ids)
    tokens = renderer.preview(messages, max_tokens)
    return RowPreview(
        tokens=tuple(tokens),
        total=total,
        kept=len(tokens),
        trained=sum(token.trained for token in tokens),
        max_tokens=max_tokens,
    )
