"""Cards, lorebooks and bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lab.errors import UnknownName
from persona_lab.parts.base import Part
from persona_lab.types import ChatRequest, Dataset, DatasetSummary, Persona

if TYPE_CHECKING:
    from persona_lab.sharing import Imported


class Sharing(Part):
    """Cards, lorebooks and bundles."""

    def import_character(self, path: str | Path, persona_id: str | None = None) -> Imported:
        """As `import_persona`, with what the file was and what to know of it.

        Raises:
            BadInput
        """
        from persona_lab import sharing

        with self._guard:
            return sharing.import_file(self.catalog, Path(path), persona_id)

    def import_lorebook(self, path: str | Path, persona_id: str) -> Imported:
        """A world-info file, or another card's lorebook, into a persona's own.

        Raises:
            UnknownName. BadInput: there is no lorebook in it.
        """
        from persona_lab import sharing

        with self._guard:
            return sharing.import_lorebook(self.catalog, Path(path), self.persona(persona_id))

    def undo_card(self, persona_id: str, again: bool = False) -> Persona:
        """Take the last edit of a card back; `again` brings back what was taken back.

        Raises:
            UnknownName. BadInput: there is nothing to take back.
        """
        from persona_lab.personas.versions import redo_edit, undo_edit

        with self._guard:
            self.persona(persona_id)
            (redo_edit if again else undo_edit)(self.home.persona(persona_id))
            return self.catalog.refreshed(persona_id)

    def _shared_data(self, persona_id: str) -> tuple[Dataset, DatasetSummary] | None:
        summaries = self.datasets(persona_id)
        return (self.dataset(summaries[0].id), summaries[0]) if summaries else None

    def _with_lore(self, request: ChatRequest) -> ChatRequest:
        """The request with what its messages wake in the persona's lorebook."""
        from persona_lab.lore import in_conversation

        try:
            persona = self.catalog.persona(request.variant.persona)
        except UnknownName:  # deleted since: the variant has the card it was made with
            return request
        return in_conversation(request, persona, self.home)

    def token_counter(self, base: str = "starter") -> Callable[[str], int]:
        """Counts a text's tokens as a base reads them; roughly, where that base is not on this machine."""
        from persona_lab.lore import token_counter

        return token_counter(self.home, base)
