"""What is held out stays held out: fingerprints of test conversations, kept in the persona's folder.

A line of the ledger is the sha256 of a held-out (question, reply) pair, of a reply of at least four words, or of a
whole conversation, without case, punctuation and spacing; with the row and dataset it came from. A later import puts
what matches into its test split again, in whatever order or format it comes, and no training starts on a match.

A stock phrase (a reply to three or more different questions of the same data) is known by its pairs only: it says
nothing about where a row came from.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from persona_lab.datasets.progress import tick, ticking
from persona_lab.datasets.toolkit import read_text
from persona_lab.errors import BadInput
from persona_lab.home import write_atomic
from persona_lab.types import Conversation, Dataset

LEDGER = "held_out.jsonl"
MIN_WORDS = 4
"""Shorter replies ("Yes.", "Of course, sir.") are everybody's: they are no probes, and no leaks."""
STOCK_QUESTIONS = 3
NAMED_ROWS = 5
_WRITING = threading.Lock()
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_LETTERS = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Entry:
    """Where a fingerprint came from. `kind`: pair, reply or whole; `row`: as the user's file names it."""

    kind: str
    row: str
    dataset: str


@dataclass(frozen=True)
class HeldOut:
    """The ledger of one persona: entries by fingerprint."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    def find(self, conversation: Conversation) -> Entry | None:
        """The entry that this conversation repeats in whole or in one of its lines, or None."""
        for key in (_whole(conversation), *line_keys(conversation)):
            if key in self.entries:
                return self.entries[key]
        return None

    def find_line(self, conversation: Conversation) -> Entry | None:
        """As `find`, but only by lines of at least four words: what a probe may be made of."""
        return next((self.entries[key] for key in line_keys(conversation) if key in self.entries), None)

    def with_test_of(self, dataset: Dataset) -> HeldOut:
        """This ledger and what the dataset holds out; the first source of a fingerprint stays."""
        return HeldOut(_fingerprints(dataset.of("test"), dataset.conversations, dataset.id) | dict(self.entries))


# --- fingerprints ---------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """Letters and digits only, lower case, single spaces: what two copies of a line have in common."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    if "'" in plain or "’" in plain:
        plain = _APOSTROPHE.sub("", plain)
    return " ".join(_LETTERS.findall(plain.casefold()))


def exchanges(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """(the last user turn before it, the reply) for each reply that says anything."""
    question = ""
    for message in conversation.messages:
        if message.role == "user":
            question = message.content
        elif message.role == "assistant" and normalised(message.content):
            yield question, message.content


def line_keys(conversation: Conversation) -> list[str]:
    """The fingerprints to look a conversation up by: each exchange, and each reply alone."""
    keys = []
    for question, reply in exchanges(conversation):
        keys += [pair_key(question, reply), reply_key(reply)]
    return keys


def pair_key(question: str, reply: str) -> str:
    """sha256, hex, of a question with its reply."""
    return _sha256("pair", normalised(question), normalised(reply))


def reply_key(reply: str) -> str:
    """sha256, hex, of a reply, whatever was asked."""
    return _sha256("reply", normalised(reply))


def _whole(conversation: Conversation) -> str:
    said = (f"{m.role}: {normalised(m.content)}" for m in conversation.messages if m.role != "system")
    return _sha256("whole", *said)


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()


def long_enough(reply: str) -> bool:
    """Whether a reply is long enough to tell one speaker from another."""
    return len(reply.split()) >= MIN_WORDS and bool(normalised(reply))


def stock_phrases(conversations: Iterable[Conversation]) -> frozenset[str]:
    """The replies (normalised) that are given to three or more different questions."""
    questions: dict[str, set[str]] = defaultdict(set)
    for number, conversation in enumerate(conversations):
        if number % 1024 == 0:
            tick("looking for lines that come again", 0.5)
        for question, reply in exchanges(conversation):
            questions[normalised(reply)].add(normalised(question))
    return frozenset(reply for reply, asked in questions.items() if len(asked) >= STOCK_QUESTIONS)


def probe_keys(conversation: Conversation, stock: frozenset[str]) -> dict[str, str]:
    """The fingerprints that make another row a leak of this one, with their kinds: `pair` or `reply`."""
    keys: dict[str, str] = {}
    for question, reply in exchanges(conversation):
        if long_enough(reply):
            keys[pair_key(question, reply)] = "pair"
            if normalised(reply) not in stock:
                keys[reply_key(reply)] = "reply"
    return keys


def _fingerprints(held: Iterable[Conversation], of: Iterable[Conversation], dataset: str) -> dict[str, Entry]:
    stock = stock_phrases(of)
    entries: dict[str, Entry] = {}
    for conversation in held:
        for key, kind in {_whole(conversation): "whole", **probe_keys(conversation, stock)}.items():
            entries.setdefault(key, Entry(kind, row_name(conversation), dataset))
    return entries


def sharing_lines(conversations: Sequence[Conversation]) -> Iterator[tuple[int, int]]:
    """Pairs of conversations that have a line of at least four words in common, and so belong in one split."""
    stock = stock_phrases(conversations)
    first: dict[str, int] = {}
    for i, conversation in enumerate(ticking(conversations, len(conversations), "looking for lines that come again")):
        for key in probe_keys(conversation, stock):
            if first.setdefault(key, i) != i:
                yield first[key], i


# --- the ledger on disk ---------------------------------------------------------------------------


def read_ledger(folder: Path) -> HeldOut:
    """The ledger in a persona's folder; empty where there is none.

    Raises:
        BadInput: it is damaged (names the line).
    """
    path = folder / LEDGER
    if not path.is_file() or not path.stat().st_size:
        return HeldOut()
    entries: dict[str, Entry] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            entries.setdefault(str(row["key"]), Entry(str(row["kind"]), str(row["row"]), str(row["dataset"])))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{path}, line {number} cannot be read, so nothing says what is held out ({type(error).__name__}).",
                "Restore the file from a copy; or take that line out, and its conversation may be trained on.",
            ) from error
    return HeldOut(entries)


def hold_out(folder: Path, dataset: Dataset) -> HeldOut:
    """Add a dataset's test split to the persona's ledger. Called by the process that owns the home only.

    Raises:
        BadInput: the ledger is damaged. DiskFull: nothing was changed.
    """
    return _append(folder, _fingerprints(dataset.of("test"), dataset.conversations, dataset.id))


def hold_out_conversations(folder: Path, conversations: Sequence[Conversation], source: str) -> HeldOut:
    """Add conversations that are probes by themselves, such as those a user wrote; `source` takes the dataset's place.

    Raises:
        BadInput: the ledger is damaged. DiskFull: nothing was changed.
    """
    return _append(folder, _fingerprints(conversations, (), source))


def _append(folder: Path, found: Mapping[str, Entry]) -> HeldOut:
    path = folder / LEDGER
    with _WRITING:
        known = read_ledger(folder)
        new = {key: entry for key, entry in found.items() if key not in known.entries}
        if new:
            before = read_text(path) if known.entries else ""
            before += "\n" if before and not before.endswith("\n") else ""
            rows = ({"key": key, "kind": e.kind, "row": e.row, "dataset": e.dataset} for key, e in new.items())
            write_atomic(path, before + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return HeldOut({**known.entries, **new})


# --- the check before a training ------------------------------------------------------------------


def check_training(dataset: Dataset, ledger: HeldOut, path: Path | None = None) -> None:
    """Refuse to train on what is held out, also where the dataset's file was edited by hand.

    Args:
        ledger: of the persona; the dataset's own test split is held out as well.
        path: the dataset's file, for the message.

    Raises:
        BadInput: naming the rows.
    """
    held = ledger.with_test_of(dataset)
    found = ((c, held.find_line(c)) for split in ("train", "validation") for c in dataset.of(split))
    leaks = [(conversation, entry) for conversation, entry in found if entry is not None]
    if not leaks:
        return
    listed = "; ".join(f"{c.split} {row_name(c)} = held-out {e.row} ({e.dataset})" for c, e in leaks[:NAMED_ROWS])
    more = f"; and {len(leaks) - NAMED_ROWS} more" if len(leaks) > NAMED_ROWS else ""
    one = len(leaks) == 1
    raise BadInput(
        f"{len(leaks)} conversation{'' if one else 's'} of {dataset.name!r} that would be trained on "
        f"{'repeats' if one else 'repeat'} held-out ones ({listed}{more}).",
        "Scores would mean nothing. Import the data again, and these go to the test split"
        + (f"; or take them out of {path}." if path else "."),
    )


def check_untrained(lines: Sequence[Conversation], dataset: Dataset) -> None:
    """Refuse to make probes of lines that the dataset trains on.

    Raises:
        BadInput: naming each with its training row.
    """
    trained = {key: c for split in ("train", "validation") for c in dataset.of(split) for key in line_keys(c)}
    stock = stock_phrases(dataset.conversations)
    found = ((line, next((trained[k] for k in probe_keys(line, stock) if k in trained), None)) for line in lines)
    seen = [(line, row) for line, row in found if row is not None]
    if seen:
        listed = "; ".join(f"{line.id} = {row_name(row)}" for line, row in seen[:NAMED_ROWS])
        raise BadInput(
            f"{len(seen)} line{' is' if len(seen) == 1 else 's are'} in what {dataset.name!r} trains on ({listed}), "
            "and a probe must be new to the character.",
            "Use lines that it never trained on; the dataset's own held-out lines are probes already.",
        )


def row_name(conversation: Conversation) -> str:
    """A conversation as the user's file names it."""
    return conversation.source or conversation.id
