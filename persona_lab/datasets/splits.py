"""Train, validation and test: by whole conversation, the same for the same rows in any order, without leaks.

Near-duplicates and rows of one `group` never end up in two splits. A file's own split is respected; where it puts a
near-duplicate of a held-out row into train, the train row is dropped. What an earlier version of the data held out is
held out again, whatever the file says. It does not read files or drop exact duplicates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from persona_lab.datasets.held_out import sharing_lines
from persona_lab.datasets.progress import ticking
from persona_lab.datasets.similarity import Clusters, near_duplicates
from persona_lab.types import Conversation, Split

HELD_OUT_SHARE = 0.1
_STRICTNESS: dict[Split | None, int] = {None: 0, "train": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class SplitResult:
    """Conversations in their given order, each with a split; `dropped`: near-duplicates taken out of train."""

    conversations: tuple[Conversation, ...]
    dropped: int = 0
    warnings: tuple[str, ...] = ()


def content_key(conversation: Conversation) -> str:
    """sha256 of what is said and by whom, whatever the row's id, source, split or order."""
    turns = [[message.role, message.content] for message in conversation.messages]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def without_duplicates(conversations: Sequence[Conversation]) -> tuple[Conversation, ...]:
    """Each content once, at its first place; of two with different splits the one held out stays.

    Of two with the same split the one with a group stays, so that the order of the rows decides nothing.
    """
    best: dict[str, Conversation] = {}
    for conversation in ticking(conversations, len(conversations), "looking for duplicates"):
        key = content_key(conversation)
        known = best.get(key)
        if known is None or _precedence(conversation) > _precedence(known):
            best[key] = conversation
    return tuple(best.values())


def _precedence(conversation: Conversation) -> tuple[int, str]:
    return _STRICTNESS[conversation.split], conversation.group


def assign_splits(
    conversations: Sequence[Conversation], held_out: Collection[int] = (), trained: Collection[int] = ()
) -> SplitResult:
    """Give each conversation its split: the file's own where there is one, else 80 / 10 / 10 by content hash.

    Args:
        conversations: without exact duplicates.
        held_out: those (by index) that were held out before: they, and what is like them, are test.
        trained: those that were trained on before; test is filled up from others first, so that the variants made with
            an earlier version can still be scored.
    """
    keys = [content_key(c) for c in ticking(conversations, len(conversations), "sharing out")]
    alike = Clusters(len(conversations))
    for a, b in (*near_duplicates(conversations), *sharing_lines(conversations)):
        alike.join(a, b)
    splits: list[Split | None] = [conversation.split for conversation in conversations]
    given = {split for split in splits if split is not None}
    locked = _locked(alike, conversations, held_out)
    for i in locked:
        splits[i] = "test"
    warnings: list[str] = []
    leaked = _leaks(alike, splits)
    if leaked:
        warnings.append(f"{len(leaked)} rows were left out: they nearly repeat rows that are held out.")
    _join_groups(alike, conversations, splits)
    clusters = [[i for i in members if i not in leaked] for members in alike.members()]
    clusters = [members for members in clusters if members]
    _fill(clusters, splits, keys, warnings, given, len(locked), frozenset(trained))
    kept = [
        conversation.model_copy(update={"split": split or "train"})
        for i, (conversation, split) in enumerate(zip(conversations, splits, strict=True))
        if i not in leaked
    ]
    return SplitResult(tuple(kept), len(leaked), tuple(warnings))


def _locked(alike: Clusters, conversations: Sequence[Conversation], held_out: Collection[int]) -> set[int]:
    """What was held out before, its near-duplicates, and the rest of its groups where the file leaves those to us."""
    locked: set[int] = set()
    waiting = set(held_out)
    members = {alike.root(each[0]): each for each in alike.members()}
    while waiting:
        locked |= {i for each in waiting for i in members[alike.root(each)]}
        groups = {conversations[i].group for i in locked if conversations[i].group}
        waiting = {i for i, c in enumerate(conversations) if c.group in groups and c.split is None} - locked
    return locked


def _leaks(alike: Clusters, splits: Sequence[Split | None]) -> set[int]:
    """Rows whose near-duplicate the file itself holds out more strictly; these are dropped."""
    leaked: set[int] = set()
    for members in alike.members():
        strictest = max((splits[i] for i in members), key=lambda split: _STRICTNESS[split])
        if strictest in ("test", "validation"):
            leaked.update(i for i in members if splits[i] != strictest)
    return leaked


def _join_groups(alike: Clusters, conversations: Sequence[Conversation], splits: Sequence[Split | None]) -> None:
    """Rows of one group that the file leaves to us stay together."""
    first: dict[str, int] = {}
    for i, conversation in enumerate(conversations):  # a file that splits its own groups is taken at its word
        if conversation.group and splits[i] in (None, "train"):
            alike.join(i, first.setdefault(conversation.group, i))


def _fill(
    clusters: list[list[int]],
    splits: list[Split | None],
    keys: Sequence[str],
    warnings: list[str],
    given: set[Split],
    locked: int,
    trained: frozenset[int],
) -> None:
    """Complete `splits` in place: whole clusters go to test and validation, in the order of their hashes."""
    free = [members for members in clusters if all(splits[i] in (None, "train") for i in members)]
    if given:  # rows without a split beside rows with one are train
        wanted: list[Split] = [split for split in ("test", "validation") if split not in given]
        if given == {"train"} or given == {"train", "validation"}:
            warnings.append("The file holds nothing out for testing; part of its train rows was taken for that.")
    else:
        wanted = ["test", "validation"]
    ordered = sorted(free, key=lambda members: _cluster_hash([keys[i] for i in members]))
    target = _held_out(sum(map(len, free)) + locked)
    for split in wanted:
        if split == "test":
            fresh = [members for members in ordered if trained.isdisjoint(members)]
            seen = [members for members in ordered if not trained.isdisjoint(members)]
            ordered = _take(fresh, splits, split, target - locked)
            if fresh == ordered and not locked:  # a new file of old rows: better seen before than nothing at all
                seen = _take(seen, splits, split, target)
            ordered = sorted([*ordered, *seen], key=lambda members: _cluster_hash([keys[i] for i in members]))
        else:
            ordered = _take(ordered, splits, split, target)
    for members in ordered:
        for i in members:
            splits[i] = "train"
    if not target and wanted:
        warnings.append("There are too few conversations to hold any out: losses and scores will say little.")


def _held_out(count: int) -> int:
    """How many of `count` conversations to hold out for one of validation and test."""
    if count < 3:
        return 0
    return max(round(count * HELD_OUT_SHARE), 2 if count >= 10 else 1)


def _take(ordered: list[list[int]], splits: list[Split | None], split: Split, target: int) -> list[list[int]]:
    """Put clusters into `split` until it has `target` rows, passing over those too large; gives the rest."""
    rest: list[list[int]] = []
    taken = 0
    for members in ordered:
        if taken + len(members) <= target:
            taken += len(members)
            for i in members:
                splits[i] = split
        else:
            rest.append(members)
    if not taken and len(rest) > 1 and target > 0:  # only large clusters: better too many than none
        smallest = min(rest, key=len)
        if 2 * len(smallest) <= sum(map(len, rest)):
            rest.remove(smallest)
            for i in smallest:
                splits[i] = split
    return rest


def _cluster_hash(keys: Sequence[str]) -> str:
    return hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()
