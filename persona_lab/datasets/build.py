"""From what a reader gave to a dataset: duplicates out, splits in, counted, fingerprinted; empty data is refused."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from persona_lab.datasets.held_out import Entry, HeldOut, line_keys, probe_keys
from persona_lab.datasets.progress import tick, ticking
from persona_lab.datasets.reading import Reading
from persona_lab.datasets.splits import assign_splits, content_key, without_duplicates
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Dataset, DatasetSummary, now, slug

_PLACEHOLDER = re.compile(r"\{\{[\w ]{1,30}\}\}|<(?:user|bot)>", re.IGNORECASE)


def build_dataset(
    reading: Reading,
    persona_id: str,
    version: int,
    name: str,
    source: str,
    ledger: HeldOut | None = None,
    earlier: Dataset | None = None,
) -> tuple[Dataset, DatasetSummary]:
    """The dataset and its summary. The id is `<persona>-v<version>`.

    Args:
        version: from 1; each import adds one.
        name: for people.
        source: where it came from, as the user named it.
        ledger: what the persona holds out already; it is test here too.
        earlier: the version before this one, whose training rows are not to become tests.

    Raises:
        BadInput: nothing in it can be trained on.
    """
    result = reading.result
    tick("sharing out", 0)
    unique = without_duplicates(result.conversations)
    held = {} if ledger is None else _held(unique, ledger)
    split = assign_splits(unique, held, _trained_before(unique, earlier))
    conversations = _with_own_ids(split.conversations)
    if not any(conversation.split == "train" for conversation in conversations):
        raise BadInput(
            f"{source} has {len(conversations)} usable conversations, but none to train on: all are held out"
            + (f", {len(held)} of them because they were held out before." if held else "."),
            "Add conversations that were never held out."
            if held
            else "Mark some rows `train`, or take the split column out so that they are shared out here.",
        )
    replies = {message.content for c in conversations for message in c.messages if message.role == "assistant"}
    others = tuple(text for text in dict.fromkeys(result.others) if text.strip() and text not in replies)
    dataset = Dataset(
        id=dataset_id(persona_id, version),
        persona=persona_id,
        version=version,
        name=name,
        conversations=conversations,
        others=others,
    )
    duplicates = len(result.conversations) - len(unique) + split.dropped
    again = _held_again([unique[i] for i in held], sorted({entry.dataset for entry in held.values()}))
    warnings = (*result.warnings, *again, *split.warnings, *_remarks(reading, conversations))
    return dataset, DatasetSummary(
        id=dataset.id,
        name=name,
        persona=persona_id,
        version=version,
        source=source,
        format=reading.format,
        why=reading.why,
        counts=_counts(dataset, duplicates, len(result.skipped)),
        fingerprint=fingerprint(dataset),
        created=now(),
        warnings=warnings,
    )


def _held(conversations: Sequence[Conversation], ledger: HeldOut) -> dict[int, Entry]:
    """What was held out before, by index."""
    if not ledger.entries:
        return {}
    rows = enumerate(ticking(conversations, len(conversations), "looking for what is held out"))
    return {i: entry for i, conversation in rows if (entry := ledger.find(conversation))}


def next_version(before: Dataset, version: int, rows: tuple[Conversation, ...]) -> Dataset:
    """The dataset that follows another one, with other rows; splits are kept, ids made unique."""
    said = {message.content for c in rows for message in c.messages if message.role == "assistant"}
    return Dataset(
        id=dataset_id(before.persona, version),
        persona=before.persona,
        version=version,
        name=f"{before.persona} v{version}",
        conversations=_with_own_ids(rows),
        others=tuple(text for text in before.others if text not in said),
    )


def dataset_id(persona_id: str, version: int) -> str:
    """`<persona>-v<version>`; of a very long persona id, its beginning."""
    return slug(persona_id)[:40] + f"-v{version}" if len(persona_id) > 56 else f"{persona_id}-v{version}"


def _trained_before(conversations: Sequence[Conversation], earlier: Dataset | None) -> set[int]:
    if earlier is None:
        return set()
    seen = {key for c in earlier.conversations if c.split != "test" for key in probe_keys(c, frozenset())}
    return {i for i, conversation in enumerate(conversations) if not seen.isdisjoint(line_keys(conversation))}


def _held_again(held: Sequence[Conversation], datasets: Sequence[str]) -> list[str]:
    """What is said of conversations that were held out before."""
    if not held:
        return []
    one = len(held) == 1
    told = f"{len(held)} conversation{' was' if one else 's were'} held out before (in {', '.join(datasets[:3])}) and "
    moved = sum(conversation.split in ("train", "validation") for conversation in held)
    although = f", although the file marks {moved} of them for training" if moved else ""
    return [f"{told}{'stays' if one else 'stay'} in the test split{although}."]


def fingerprint(dataset: Dataset) -> str:
    """sha256 of what the dataset holds and how it is split, whatever the order of its rows."""
    lines = sorted(f"{conversation.split} {content_key(conversation)}" for conversation in dataset.conversations)
    others = sorted(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() for text in dataset.others)
    return hashlib.sha256("\n".join([*lines, *others]).encode()).hexdigest()


def _with_own_ids(conversations: Sequence[Conversation]) -> tuple[Conversation, ...]:
    """Ids made unique: a repeated one gets `~2`, `~3`, ... as its end."""
    taken = {conversation.id for conversation in conversations}
    seen: set[str] = set()
    result: list[Conversation] = []
    for conversation in conversations:
        chosen, number = conversation.id, 1
        while chosen in seen or (number > 1 and chosen in taken):
            number += 1
            chosen = f"{conversation.id}~{number}"
        seen.add(chosen)
        result.append(conversation if chosen == conversation.id else conversation.model_copy(update={"id": chosen}))
    return tuple(result)


def _counts(dataset: Dataset, duplicates: int, skipped: int) -> dict[str, int]:
    return {
        "train": len(dataset.of("train")),
        "validation": len(dataset.of("validation")),
        "test": len(dataset.of("test")),
        "others": len(dataset.others),
        "turns": sum(m.role == "assistant" for c in dataset.conversations for m in c.messages),
        "duplicates": duplicates,
        "skipped": skipped,
    }


def _remarks(reading: Reading, conversations: Sequence[Conversation]) -> list[str]:
    """What a person should know about the data, beyond what reader and split said."""
    remarks: list[str] = []
    if reading.result.skipped:
        reasons = Counter(reason for _, reason in reading.result.skipped).most_common(3)
        told = "; ".join(f"{count} because it {reason}" for reason, count in reasons)
        remarks.append(f"{len(reading.result.skipped)} rows were skipped: {told}.")
    holders = [c for c in conversations if any(_PLACEHOLDER.search(message.content) for message in c.messages)]
    if holders:
        found = Counter(p for c in holders for m in c.messages for p in _PLACEHOLDER.findall(m.content))
        told = ", ".join(text for text, _ in found.most_common(3))
        remarks.append(
            f"{len(holders)} conversations hold placeholders ({told}): the character will say them literally."
        )
    return remarks
