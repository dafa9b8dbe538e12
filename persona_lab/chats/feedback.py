"""Feedback on replies: thumbs and "what it should have said", reviewed, then added to the dataset as a new version.

One file a piece, under `<home>/feedback`. What is learnt is one exchange: the user's last message and the wanted
reply. The turns before it are left out, since training would then learn replies nobody has judged.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_lab.chats import files
from persona_lab.chats.records import Feedback, id_of
from persona_lab.errors import BadInput
from persona_lab.home import Home
from persona_lab.types import Conversation, DatasetSummary, Message, now

if TYPE_CHECKING:
    from persona_lab.catalog import Catalog

_WRITING = threading.Lock()


@dataclass(frozen=True)
class Added:
    """What came of adding feedback. `refused`: reasons by id; `dataset` is None where nothing was added."""

    dataset: DatasetSummary | None
    added: tuple[str, ...]
    refused: dict[str, str]


class FeedbackSet:
    """The feedback of one home."""

    def __init__(self, home: Home, catalog: Catalog) -> None:
        self.folder = home.root / "feedback"
        self.catalog = catalog

    def give(self, feedback: Feedback) -> Feedback:
        """Store feedback on a reply, or change what its author gave before; gives it with its id.

        A piece that is in the data already stays as it is there; the changed one waits for review again.

        Raises:
            BadInput: it says nothing. DiskFull
        """
        correction = feedback.correction.strip()
        if not feedback.thumb and not correction:
            raise BadInput("This feedback says nothing.", "Give a thumb, or write what it should have said.")
        feedback_id = id_of(feedback.author, feedback.reply)
        update: dict[str, Any] = {"id": feedback_id, "correction": correction, "changed": now()}
        with _WRITING:
            path = files.path_of(self.folder, feedback_id)
            known = files.read(path, Feedback)
            if known is None and path.exists():
                raise BadInput(f"{path} cannot be read, so it was not replaced.", "Move it away, then try again.")
            if known is not None:
                update |= {"created": known.created, "correction": correction or known.correction}
                if known.status == "added":
                    same = (known.wanted, known.question) == (feedback.wanted, feedback.question)
                    update |= {"status": "added", "dataset": known.dataset} if same else {}
            feedback = feedback.model_copy(update=update)
            files.write(self.folder, feedback_id, feedback)
        return feedback

    def take_back(self, author: str, reply: str) -> None:
        """Forget an author's feedback on a reply, unless it is in the data already."""
        path = files.path_of(self.folder, id_of(author, reply))
        with _WRITING:
            known = files.read(path, Feedback)
            if known is not None and known.status != "added":
                path.unlink(missing_ok=True)

    def all(self, persona: str | None = None) -> list[Feedback]:
        """Every piece, newest first."""
        found = [item for item in files.read_all(self.folder, Feedback) if persona in (None, item.persona)]
        return sorted(found, key=lambda item: (item.changed or item.created, item.id), reverse=True)

    def to_review(self, persona: str) -> list[Feedback]:
        """What could be learnt and waits for somebody to look at it: liked and corrected replies to a question."""
        return [item for item in self.all(persona) if item.status == "new" and item.wanted and item.question]

    def discard(self, ids: Iterable[str]) -> int:
        """Take pieces out of the review; gives how many."""
        return sum(self._mark(feedback_id, status="discarded") for feedback_id in ids)

    def _mark(self, feedback_id: str, **update: Any) -> bool:
        with _WRITING:
            known = files.read(files.path_of(self.folder, feedback_id), Feedback)
            if known is None:
                return False
            files.write(self.folder, feedback_id, known.model_copy(update={**update, "changed": now()}))
            return True

    def add_to_dataset(self, persona: str, ids: Sequence[str] | None = None) -> Added:
        """Reviewed feedback as a new version of the persona's data, in its train rows only.

        Args:
            ids: which; None: all that wait for review.

        Raises:
            BadInput: there is nothing to add, or no dataset to add to. UnknownName, DiskFull
        """
        waiting = self.to_review(persona)
        chosen = [item for item in waiting if ids is None or item.id in set(ids)]
        if not chosen:
            raise BadInput(
                "There is no feedback to add.", "Like or correct some replies in the chat, then choose them here."
            )
        rows = [_as_row(item) for item in chosen]
        summary, refused = self.catalog.extend_dataset(persona, rows, "feedback from the chat")
        added = tuple(item.id for item in chosen if item.id not in refused)
        for feedback_id in added:
            self._mark(feedback_id, status="added", dataset=summary.id if summary else "")
        return Added(summary, added, refused)


def _as_row(item: Feedback) -> Conversation:
    question = Message(role="user", content=item.question)
    reply = Message(role="assistant", content=item.wanted)
    kind = "corrected" if item.correction.strip() else "liked"
    return Conversation(id=item.id, messages=(question, reply), source=f"feedback:{item.id}", tags=("feedback", kind))


def corrections(items: Iterable[Feedback]) -> Iterable[dict[str, Any]]:
    """Corrected replies as preference pairs: what should have been said against what was."""
    for item in items:
        if item.correction.strip() and item.correction.strip() != item.text.strip() and item.text.strip():
            yield {
                "prompt": [m.model_dump() for m in item.messages],
                "chosen": [{"role": "assistant", "content": item.correction.strip()}],
                "rejected": [{"role": "assistant", "content": item.text}],
                "rejected_variant": item.variant,
                "persona": item.persona,
                "feedback": item.id,
                "same_context": True,
            }
