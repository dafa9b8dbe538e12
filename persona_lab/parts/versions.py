"""Versions of datasets: looked at, checked, mended, chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lab import dataset_versions
from persona_lab.dataset_versions import RowPreview
from persona_lab.errors import BadInput
from persona_lab.parts.base import Part
from persona_lab.types import DatasetSummary

if TYPE_CHECKING:
    from persona_lab.datasets.progress import Watcher
    from persona_lab.datasets.quality.report import QualityReport
    from persona_lab.datasets.reading import Look


class Versions(Part):
    """Versions of datasets: looked at, checked, mended, chosen."""

    def look_at(self, path: str | Path, persona_id: str | None = None, format: str = "auto") -> Look:
        """What a file seems to be, why, and which speakers or columns can be chosen in it.

        Raises:
            BadInput, UnknownName
        """
        from persona_lab.datasets.reading import look_at

        persona = self.persona(persona_id) if persona_id else None
        return look_at(Path(path), self.plugins.all("reader"), persona, format)

    def check_dataset(self, dataset_id: str, watcher: Watcher | None = None) -> QualityReport:
        """What may be wrong with a dataset, with examples; see `fix_dataset`.

        Raises:
            UnknownName. Cancelled: by `watcher`.
        """
        persona = self.persona(self.dataset(dataset_id).persona)
        return dataset_versions.check(self.catalog, dataset_id, persona, watcher)

    def fix_dataset(self, dataset_id: str, kinds: Sequence[str], watcher: Watcher | None = None) -> DatasetSummary:
        """A new version without some kinds of trouble, in use from then on; `use_dataset` takes it back.

        Raises:
            UnknownName, BadInput. Cancelled: by `watcher`; nothing was changed.
        """
        persona = self.persona(self.dataset(dataset_id).persona)
        return dataset_versions.fix(self.catalog, dataset_id, persona, kinds, watcher)

    def use_dataset(self, name: str, version: int | None = None) -> DatasetSummary:
        """Make a version the one that trainings take: by its id, or by a persona's id and a number.

        Raises:
            UnknownName, BadInput
        """
        return dataset_versions.use(self.catalog, dataset_versions.version_id(self.catalog, name, version))

    def dataset_from_card(self, persona_id: str) -> DatasetSummary:
        """The card's example dialogues and lorebook, as rows and probes of a new version.

        Raises:
            UnknownName. BadInput: the card has neither.
        """
        return dataset_versions.from_card(self.catalog, self.persona(persona_id))

    def write_prompts(self, dataset_id: str, base: str = "starter", seed: int = 0) -> str:
        """Queue a run in which a base model writes prompts for a document's passages; gives the run's id.

        When it is done there is a new version with them, in use from then on; `run(id).result["version"]` names it.

        Raises:
            UnknownName. BadInput: the version has no prompts that were made of templates.
        """
        from persona_lab.datasets.instructions import askable

        dataset, info = self.dataset(dataset_id), self.base_model(base)
        if not askable(dataset.conversations):
            raise BadInput(
                f"{dataset_id} has no prompts that were made of templates.",
                "A model writes prompts for passages of documents (prose, books, articles): import one first.",
            )
        return self._submit(
            "prompts",
            f"{dataset.persona[:40]}-prompts",
            name=f"Prompts for {dataset.name} by {info.name}",
            persona=self.persona(dataset.persona),
            dataset=str(self.catalog.dataset_path(dataset_id)),
            dataset_id=dataset_id,
            base=base,
            seed=seed,
        )

    def preview_row(self, dataset_id: str, row: int, base: str = "starter", max_tokens: int = 1024) -> RowPreview:
        """As `preview`, with the row cut as a training with `max_tokens` cuts it, and the numbers of tokens.

        Raises:
            UnknownName. BadInput: no such row, or the base model is not there yet.
        """
        dataset, info = self.dataset(dataset_id), self.base_model(base)
        if not info.ready:
            fix = f"Fetch it first: persona-lab models fetch {base}."
            raise BadInput(f"The base model {base!r} is not on this machine yet, so its tokens cannot be shown.", fix)
        persona = self.persona(dataset.persona)
        return dataset_versions.preview_row(dataset, row, persona, Path(info.path), max_tokens)
