"""Splits are deterministic, order-free, by whole conversation, and never leak."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lab.datasets.similarity import (
    Clusters,
    hashes,
    jaccard,
    linked_pairs,
    near_duplicates,
    shingles,
    similar_pairs,
)
from persona_lab.datasets.splits import assign_splits, content_key, without_duplicates
from persona_lab.types import Conversation, Message, Split

WORDS = (
    "kettle stair biscuit lamp harbour ferry walnut radish cellar Tuesday bell orchard map kite " + "rope boot"
).split()


def pair(question: str, answer: str, split: Split | None = None, **rest: str) -> Conversation:
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Conversation(id=rest.pop("id", question), messages=messages, split=split, **rest)  # type: ignore[arg-type]


def sentences(count: int, seed: int = 0, length: int = 12) -> list[str]:
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=length)) for _ in range(count)]


def different(count: int, split: Split | None = None, seed: int = 0) -> list[Conversation]:
    texts = sentences(2 * count, seed)
    return [pair(texts[2 * i], texts[2 * i + 1], split) for i in range(count)]


def by_split(conversations: tuple[Conversation, ...]) -> dict[str, int]:
    return {name: sum(c.split == name for c in conversations) for name in ("train", "validation", "test")}


words = st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=9).map(" ".join)
rows = st.lists(
    st.builds(
        lambda q, a, split, group: pair(q, a, split, group=group),
        words,
        words,
        st.sampled_from([None, None, "train", "validation", "test"]),
        st.sampled_from(["", "", "a", "b"]),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_same_rows_in_any_order_give_the_same_leak_free_split(
    rows: list[Conversation], order: random.Random
) -> None:
    result = assign_splits(without_duplicates(rows)).conversations
    shuffled = list(rows)
    order.shuffle(shuffled)
    again = assign_splits(without_duplicates(shuffled)).conversations
    assert {content_key(c): c.split for c in result} == {content_key(c): c.split for c in again}
    for a, b in near_duplicates(result):
        assert result[a].split == result[b].split
    assert len({content_key(c) for c in result}) == len(result)
    assert all(c.split is not None for c in result)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_the_files_own_held_out_rows_stay_where_they_are(rows: list[Conversation]) -> None:
    given_splits = {content_key(c): c.split for c in without_duplicates(rows)}
    result = {content_key(c): c.split for c in assign_splits(without_duplicates(rows)).conversations}
    for key, split in given_splits.items():
        if split == "test":
            assert result[key] == "test"
        if split == "validation":
            assert result.get(key, "validation") == "validation"


@settings(max_examples=60, deadline=None)
@given(st.lists(words, max_size=25), st.sampled_from([0.4, 0.6, 0.7, 1.0]))
def test_similar_pairs_finds_exactly_what_comparing_all_pairs_finds(texts: list[str], threshold: float) -> None:
    sets = [shingles(text) for text in texts]
    found = {frozenset(pair) for pair in similar_pairs(sets, threshold)}
    expected = {frozenset((i, j)) for i in range(len(sets)) for j in range(i) if jaccard(sets[i], sets[j]) >= threshold}
    assert found == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(words, max_size=25), st.sampled_from([0.4, 0.6, 0.7, 1.0]))
def test_linked_pairs_join_what_similar_pairs_join(texts: list[str], threshold: float) -> None:
    joined, linked = Clusters(len(texts)), Clusters(len(texts))
    for a, b in similar_pairs([shingles(text) for text in texts], threshold):
        joined.join(a, b)
    for a, b in linked_pairs([hashes(text) for text in texts], threshold):
        assert a < b
        assert jaccard(shingles(texts[a]), shingles(texts[b])) >= threshold
        linked.join(a, b)
    assert sorted(joined.members()) == sorted(linked.members())


def test_large_families_of_alike_rows_costs_little() -> None:
    sets = [
        hashes(f"it is always raining somewhere and mostly here said {i % 50} to the kettle") for i in range(20_000)
    ]
    linked = Clusters(len(sets))
    for a, b in linked_pairs(sets, 0.6):
        linked.join(a, b)
    assert len(linked.members()) == 50


def test_default_shares() -> None:
    assert by_split(assign_splits(different(200)).conversations) == {"train": 160, "validation": 20, "test": 20}
    assert by_split(assign_splits(different(12)).conversations) == {"train": 8, "validation": 2, "test": 2}
    assert by_split(assign_splits(different(4)).conversations) == {"train": 2, "validation": 1, "test": 1}
    few = assign_splits(different(2))
    assert by_split(few.conversations) == {"train": 2, "validation": 0, "test": 0}
    assert "too few" in few.warnings[0]


def test_adding_a_row_moves_few_others() -> None:
    """A dataset that grows keeps most of its held-out rows, so that scores stay comparable."""
    before = {content_key(c) for c in assign_splits(different(200)).conversations if c.split == "test"}
    grown = assign_splits([*different(200), pair("something else", "entirely new and not like the rest of them")])
    after = {content_key(c) for c in grown.conversations if c.split == "test"}
    assert len(before & after) >= len(before) - 2


def test_a_file_with_train_and_test_gives_a_tenth_of_train_for_validation() -> None:
    result = assign_splits([*different(100, "train"), *different(40, "test", seed=1)])
    assert by_split(result.conversations) == {"train": 90, "validation": 10, "test": 40}
    assert result.warnings == ()


def test_rows_without_a_split_beside_rows_with_one_are_train() -> None:
    result = assign_splits([*different(50), *different(10, "validation", 1), *different(10, "test", 2)])
    assert by_split(result.conversations) == {"train": 50, "validation": 10, "test": 10}


def test_a_near_duplicate_of_a_test_row_is_dropped_from_train() -> None:
    question, answer = sentences(2, seed=5)
    leak = pair(f"{question}!", f"{answer}, indeed.", "train", id="leak")
    result = assign_splits([*different(30, "train"), leak, pair(question, answer, "test", id="held")])
    assert "leak" not in {c.id for c in result.conversations}
    assert "held" in {c.id for c in result.conversations}
    assert result.dropped == 1
    assert "nearly repeat" in result.warnings[0]


def test_the_same_long_reply_to_another_question_is_a_leak_and_a_short_one_is_not() -> None:
    first, second, reply = sentences(3, seed=9)
    assert near_duplicates([pair(first, reply), pair(second, reply)])
    assert not near_duplicates([pair(first, "Aye, love."), pair(second, "Aye, love.")])


def test_groups_stay_together() -> None:
    scenes = [c.model_copy(update={"group": f"scene-{i // 5}"}) for i, c in enumerate(different(100))]
    result = assign_splits(scenes)
    homes: dict[str, set[str | None]] = {}
    for conversation in result.conversations:
        homes.setdefault(conversation.group, set()).add(conversation.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert by_split(result.conversations) == {"train": 80, "validation": 10, "test": 10}


def test_one_big_cluster_is_trained_on() -> None:
    same = [pair(f"tell me about the {WORDS[i % 16]} please number {i}", sentences(1)[0] + f" {i}") for i in range(20)]
    assert by_split(assign_splits(same).conversations)["train"] == 20


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("test", "train"), (None, "validation")])
def test_of_two_equal_rows_the_held_out_one_stays(first: Split | None, second: Split | None) -> None:
    kept = without_duplicates([pair("a", "b", first), pair("a", "b", second)])
    assert len(kept) == 1
    assert kept[0].split in ("test", "validation")


def test_five_thousand_rows_take_seconds(conversations_factory: Callable[..., list[Conversation]]) -> None:
    import time

    rows = different(5000)
    begun = time.perf_counter()
    assign_splits(rows)
    assert time.perf_counter() - begun < 10  # 1 s alone on an idle core
