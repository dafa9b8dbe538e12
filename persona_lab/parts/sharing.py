"""Cards, lorebooks and bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lab.errors import BadInput, UnknownName
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

    def _with_lore(self, requests: Sequence[ChatRequest]) -> list[ChatRequest]:
        """The requests with what their messages wake in the lorebooks of their personas."""
        from persona_lab.lore import in_conversation

        known: dict[str, Persona | None] = {}
        found = []
        for request in requests:
            variant = request.variant
            if variant.prompt_mode == "card" and variant.system:
                if variant.persona not in known:
                    known[variant.persona] = self._persona_or_none(variant.persona)
                persona = known[variant.persona]
                request = in_conversation(request, persona, self.home) if persona else request
            found.append(request)
        return found

    def _persona_or_none(self, persona_id: str) -> Persona | None:
        try:
            return self.catalog.persona(persona_id)
        except (UnknownName, BadInput):  # deleted or damaged since: a variant has the card it was made with
            return None

    def token_counter(self, base: str = "starter") -> Callable[[str], int]:
        """Counts a text's tokens as a base reads them; roughly, where that base is not on this machine."""
        from persona_lab.lore import token_counter

        return token_counter(self.home, base)
