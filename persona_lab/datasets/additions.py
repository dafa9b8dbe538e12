"""Rows added to a dataset by hand: a new version with them in train, and nothing else moved.

Never into validation or test, and never a row that repeats, or nearly repeats, what is held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from persona_lab.datasets.build import fingerprint
from persona_lab.datasets.held_out import HeldOut, normalised, row_name
from persona_lab.datasets.similarity import Clusters, near_duplicates
from persona_lab.datasets.splits import content_key
from persona_lab.types import Conversation, Dataset, DatasetSummary, now


@dataclass(frozen=True)
class Sorted:
    """Rows that may be trained on, and those that may not with the reason, by id."""

    good: tuple[Conversation, ...]
    refused: dict[str, str]


def sort_out(
    rows: Sequence[Conversation],
    newest: Dataset,
    held: Iterable[Conversation],
    ledger: HeldOut,
    asked: Iterable[str] = (),
) -> Sorted:
    """Which rows may be added to `newest`.

    Args:
        held: conversations that are held out: of every version, and the user's own reply probes.
        ledger: fingerprints of what was ever held out.
        asked: questions of the persona's other probes; an answer to one must not be trained on.
    """
    kept_out = [*newest.of("validation"), *newest.of("test"), *held]
    questions = {normalised(question) for question in asked}
    known = {content_key(conversation) for conversation in newest.conversations}
    # families, not pairs: of several rows like a held-out one, only some pairs are told
    alike = Clusters(len(kept_out) + len(rows))
    for a, b in near_duplicates([*kept_out, *rows]):
        alike.join(a, b)
    held_by = {alike.root(place): row for place, row in enumerate(kept_out)}
    roots = {place: alike.root(len(kept_out) + place) for place in range(len(rows))}
    near = {place: held_by[root] for place, root in roots.items() if root in held_by}
    good: list[Conversation] = []
    refused: dict[str, str] = {}
    for place, row in enumerate(rows):
        entry = ledger.find(row)
        asks = next((m.content for m in row.messages if m.role == "user" and normalised(m.content) in questions), "")
        if entry is not None:
            refused[row.id] = f"it repeats a held-out row ({entry.row})"
        elif place in near:
            refused[row.id] = f"it nearly repeats a held-out row ({row_name(near[place])})"
        elif asks:
            refused[row.id] = "it answers a question that the character is tested with"
        elif content_key(row) in known:
            refused[row.id] = "it is in the data already"
        else:
            known.add(content_key(row))
            good.append(row)
    return Sorted(tuple(good), refused)


def extended(
    newest: Dataset, summary: DatasetSummary, rows: Sequence[Conversation], version: int, source: str, why: str
) -> tuple[Dataset, DatasetSummary]:
    """The dataset with `rows` in train, as version `version`, and its summary; splits stay as they are."""
    taken = {conversation.id for conversation in newest.conversations}
    added = []
    for row in rows:
        number, chosen = 1, row.id
        while chosen in taken:
            number += 1
            chosen = f"{row.id}~{number}"
        taken.add(chosen)
        added.append(row.model_copy(update={"id": chosen, "split": "train"}))
    said = {m.content for row in added for m in row.messages if m.role == "assistant"}
    stem = newest.id.rsplit("-v", 1)[0]
    dataset = newest.model_copy(
        update={
            "id": f"{stem}-v{version}",
            "version": version,
            "name": f"{newest.persona} v{version}",
            "conversations": (*newest.conversations, *added),
            "others": tuple(text for text in newest.others if text not in said),
        }
    )
    turns = sum(m.role == "assistant" for c in dataset.conversations for m in c.messages)
    counts = {
        **summary.counts,
        "train": len(dataset.of("train")),
        "others": len(dataset.others),
        "turns": turns,
    }
    return dataset, summary.model_copy(
        update={
            "id": dataset.id,
            "name": dataset.name,
            "version": version,
            "source": source,
            "why": why,
            "counts": counts,
            "fingerprint": fingerprint(dataset),
            "created": now(),
            "warnings": (),
            "parent": summary.id,
            "run": "",
        }
    )
