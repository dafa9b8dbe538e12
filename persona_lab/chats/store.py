"""Saved conversations: one file each under `<home>/chats`, each belonging to one browser or account."""

from __future__ import annotations

import json
import threading

from persona_lab.chats import files
from persona_lab.chats.records import SavedChat, SavedPane, SavedTurn, new_id
from persona_lab.errors import BadInput, UnknownName
from persona_lab.home import Home
from persona_lab.types import now

TITLE_CHARACTERS = 60
_WRITING = threading.Lock()


class Chats:
    """The conversations of one home. Only the owner of a conversation can list, open, change or delete it."""

    def __init__(self, home: Home) -> None:
        self.folder = home.root / "chats"

    def save(self, chat: SavedChat) -> SavedChat:
        """Write the conversation; gives it as written, with its next revision.

        Where another window saved it in the meantime, or it is somebody else's, it becomes a conversation of its own
        (another id) and nothing is lost.
        """
        with _WRITING:
            path = files.path_of(self.folder, chat.id)
            known = files.read(path, SavedChat)
            lost = known is None and path.exists()  # it cannot be read, and is left alone
            if lost or (known is not None and (known.revision != chat.revision or known.owner != chat.owner)):
                chat = chat.model_copy(update={"id": new_id(), "revision": 0, "branch_of": chat.id, "created": now()})
            title = chat.title or _title(chat)
            chat = chat.model_copy(update={"revision": chat.revision + 1, "changed": now(), "title": title})
            files.write(self.folder, chat.id, chat)
        return chat

    def all(self, owner: str, persona: str | None = None) -> list[SavedChat]:
        """The owner's conversations, last changed first."""
        found = [
            chat
            for chat in files.read_all(self.folder, SavedChat)
            if chat.owner == owner and persona in (None, chat.persona)
        ]
        return sorted(found, key=lambda chat: chat.changed, reverse=True)

    def get(self, chat_id: str, owner: str) -> SavedChat:
        """One of the owner's conversations.

        Raises:
            UnknownName: there is none of that id, or it is somebody else's.
        """
        chat = files.read(files.path_of(self.folder, chat_id), SavedChat)
        if chat is None or chat.owner != owner:
            raise UnknownName("conversation", chat_id, [])
        return chat

    def delete(self, chat_id: str, owner: str) -> None:
        """Delete one of the owner's conversations; votes and feedback given in it stay.

        Raises:
            UnknownName
        """
        self.get(chat_id, owner)
        files.path_of(self.folder, chat_id).unlink(missing_ok=True)


def _title(chat: SavedChat) -> str:
    said = next((t.text for pane in chat.panes for t in pane.turns if t.role == "user"), "")
    line = " ".join(said.split())
    return line[:TITLE_CHARACTERS] + ("…" if len(line) > TITLE_CHARACTERS else "")


# --- taking them away -----------------------------------------------------------------------------


def exported(chat: SavedChat, format: str) -> str:
    """The conversation as text: `jsonl` (a line a pane, in the `messages` form of datasets) or `md`.

    Raises:
        UnknownName: another format. BadInput: it is a blind comparison that is not decided yet.
    """
    if chat.hidden:
        raise BadInput("This blind comparison is not decided yet, and the file would name the panes.", "Vote first.")
    if format == "jsonl":
        return "".join(json.dumps(_line(chat, pane), ensure_ascii=False) + "\n" for pane in chat.panes[: chat.count])
    if format == "md":
        return _markdown(chat)
    raise UnknownName("format", format, ("jsonl", "md"))


def _line(chat: SavedChat, pane: SavedPane) -> dict[str, object]:
    return {
        "messages": [{"role": turn.role, "content": turn.text} for turn in pane.turns if turn.text],
        "variant": pane.variant,
        "name": pane.name,
        "stamps": [turn.stamp.model_dump(mode="json") for turn in pane.turns if turn.stamp],
        "chat": chat.id,
        "persona": chat.persona,
        "created": chat.created,
    }


def _markdown(chat: SavedChat) -> str:
    parts = [f"# {chat.title or 'Conversation'}", f"{chat.persona}, {chat.changed[:16].replace('T', ' ')}"]
    for pane in chat.panes[: chat.count]:
        parts.append(f"## {pane.name or pane.variant}")
        parts += [_spoken(turn) for turn in pane.turns if turn.text or turn.error]
    return "\n\n".join(parts) + "\n"


def _spoken(turn: SavedTurn) -> str:
    who = "You" if turn.role == "user" else "Character"
    text = f"**{who}:** {turn.text}" if turn.text else f"*(no reply: {turn.error})*"
    if turn.stamp is None:
        return text
    speed = turn.stamp.tokens / turn.stamp.seconds if turn.stamp.seconds > 0 else 0.0
    return f"{text}\n\n<sub>{turn.stamp.adapter} · seed {turn.stamp.seed} · {speed:.0f} tokens/s</sub>"
