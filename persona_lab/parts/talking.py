"""What comes of talking: saved conversations, votes with ratings, feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_lab.parts.base import Part
from persona_lab.types import Variant

if TYPE_CHECKING:
    from persona_lab.chats.feedback import Added, FeedbackSet
    from persona_lab.chats.ratings import Rating
    from persona_lab.chats.store import Chats
    from persona_lab.chats.votes import Votes


class Talking(Part):
    """What comes of talking: saved conversations, votes with ratings, feedback."""

    @property
    def chats(self) -> Chats:
        """Saved conversations."""
        from persona_lab.chats.store import Chats

        return Chats(self.home)

    @property
    def votes(self) -> Votes:
        """Blind votes."""
        from persona_lab.chats.votes import Votes

        with self._guard:
            if self._votes is None:
                self._votes = Votes(self.home, self.library)
            return self._votes

    def ratings(self, persona_id: str | None = None) -> list[Rating]:
        """The variants that were voted on, the strongest first, with intervals."""
        from persona_lab.chats.ratings import ballots, rate

        return rate(ballots(self.votes.all(persona_id)))

    @property
    def feedback(self) -> FeedbackSet:
        """Liked and corrected replies."""
        from persona_lab.chats.feedback import FeedbackSet

        return FeedbackSet(self.home, self.catalog)

    def learn_from_feedback(self, persona_id: str, ids: Sequence[str] | None = None) -> Added:
        """Reviewed feedback (None: all of it) as a new version of the persona's data, in its train rows only.

        Raises:
            UnknownName. BadInput: there is nothing to add, or no dataset to add to.
        """
        with self._guard:
            self.persona(persona_id)
            return self.feedback.add_to_dataset(persona_id, ids)

    def model_variant(self, persona_id: str, base: str) -> Variant:
        """Any base model under a persona's card, to talk to: its id is `model:` and the base's id.

        Raises:
            UnknownName, BadInput, BadModel: there is no such model.
        """
        made = self.base_variant(persona_id, base)
        return made.model_copy(update={"id": f"model:{made.base}"})
