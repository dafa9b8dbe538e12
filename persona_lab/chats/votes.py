"""Blind votes: stored the moment they are cast, counted once, exported as preference pairs.

A vote is a file under `<home>/votes` (with the texts) and a row in the library (who judged what, without the texts).
A voter is a browser or, where people log in, an account: who clears a browser's storage is somebody new to us.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from persona_lab.chats import files
from persona_lab.chats.records import Vote, id_of
from persona_lab.errors import BadInput
from persona_lab.home import Home
from persona_lab.library import Library, Row

_CASTING = threading.Lock()


class Votes:
    """The votes of one home."""

    def __init__(self, home: Home, library: Library) -> None:
        self.folder = home.root / "votes"
        self.library = library
        if not library.readonly:
            self._recover()

    def _recover(self) -> None:
        """Files are the truth: a vote without a row (a kill between the two writes, an old backup) gets its row."""
        known = {row["id"] for row in self.library.all("votes")}
        for path in self.folder.glob("*.json"):
            vote = files.read(path, Vote) if path.stem not in known else None
            if vote is not None:
                self.library.put("votes", _row(vote))

    def cast(self, vote: Vote) -> Vote:
        """Store a vote; gives it with its id, which follows from voter and replies.

        Raises:
            BadInput: this voter has judged one of the replies already, or there is nothing to compare. DiskFull
        """
        _check(vote)
        replies = sorted(candidate.reply for candidate in vote.candidates)
        vote = vote.model_copy(update={"id": id_of(vote.voter, *replies)})
        with _CASTING:
            judged = {
                reply for row in self.library.all("votes") if row["voter"] == vote.voter for reply in row["replies"]
            }
            if not judged.isdisjoint(replies):
                raise BadInput("You have voted on these replies already, and a vote counts once.", "Ask something new.")
            files.write(self.folder, vote.id, vote)
            self.library.put("votes", _row(vote))
        return vote

    def all(self, persona: str | None = None) -> list[Vote]:
        """Every vote, oldest first."""
        found = [vote for vote in files.read_all(self.folder, Vote) if persona in (None, vote.persona)]
        return sorted(found, key=lambda vote: (vote.created, vote.id))


def _check(vote: Vote) -> None:
    if len(vote.candidates) < 2 or len({c.reply for c in vote.candidates}) < len(vote.candidates):
        raise BadInput("A vote compares two or more replies.", "Show at least two panes.")
    if len({candidate.variant for candidate in vote.candidates}) < 2:
        raise BadInput("All these replies are by the same variant.", "Choose different ones to compare.")
    if (vote.outcome == "win") != (vote.winner is not None and 0 <= vote.winner < len(vote.candidates)):
        raise BadInput("This vote does not say which reply won.")


def _row(vote: Vote) -> Row:
    return {
        "id": vote.id,
        "persona": vote.persona,
        "voter": vote.voter,
        "replies": [candidate.reply for candidate in vote.candidates],
        "variants": [candidate.variant for candidate in vote.candidates],
        "outcome": vote.outcome,
        "winner": vote.winner,
        "created": vote.created,
    }


def pairs(votes: list[Vote], other_contexts: bool = False) -> Iterator[dict[str, Any]]:
    """Preference pairs in the conversational form of TRL: `prompt`, `chosen`, `rejected` are lists of messages.

    Only votes with a winner give pairs. After the first exchange each pane has its own history, so the two replies
    answer different prompts: such pairs are left out.

    Args:
        other_contexts: give these too, with `same_context` false and the loser's own messages as `rejected_prompt`.
    """
    for vote in votes:
        if vote.winner is None:
            continue
        best = vote.candidates[vote.winner]
        for place, other in enumerate(vote.candidates):
            same = other.messages == best.messages
            if place == vote.winner or other.text.strip() == best.text.strip() or not (same or other_contexts):
                continue
            pair = {
                "prompt": [m.model_dump() for m in best.messages],
                "chosen": [{"role": "assistant", "content": best.text}],
                "rejected": [{"role": "assistant", "content": other.text}],
                "chosen_variant": best.variant,
                "rejected_variant": other.variant,
                "persona": vote.persona,
                "reason": vote.reason,
                "vote": vote.id,
                "same_context": same,
            }
            yield pair if same else pair | {"rejected_prompt": [m.model_dump() for m in other.messages]}
