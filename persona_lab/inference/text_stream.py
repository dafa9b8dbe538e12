"""Token ids to text, piece by piece, without ever showing half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer

BROKEN = "\ufffd"


class TextStream:
    """One reply. `push` gives the text that became whole; `text` is all of it so far.

    Only the last few tokens are decoded again each time: a token's text can depend on the ones right before it.
    """

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._ids: list[int] = []
        self._from = 0
        self._read = 0
        self.text = ""

    def push(self, token: int) -> str:
        """Add a token; the new whole text, which may be empty."""
        self._ids.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """What is left, less a character that never became whole."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        before = self._renderer.decode(self._ids[self._from : self._read])
        now = self._renderer.decode(self._ids[self._from :])
        if len(now) <= len(before) or (now.endswith(BROKEN) and not final):
            return ""
        self._from, self._read = self._read, len(self._ids)
        new = now[len(before) :].replace(BROKEN, "")
        self.text += new
        return new
