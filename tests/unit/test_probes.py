"""Probes: what is held out, who the other line comes from, and that nothing trained on becomes a probe."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from persona_lab.errors import BadInput
from persona_lab.evaluation.probes import (
    build_probes,
    check_leaks,
    match_lengths,
    normalised,
    other_lines,
    reply_probes,
    sample_probes,
    spread,
)
from persona_lab.personas.store import adversarial_prompts
from persona_lab.types import Conversation, Dataset, Message, Persona, Split

LINES = [f"{'word ' * count}number {count}" for count in range(3, 43)]


def conversation(name: str, split: Split, *turns: str, group: str = "") -> Conversation:
    messages = tuple(Message(role="assistant" if i % 2 else "user", content=turn) for i, turn in enumerate(turns))
    return Conversation(id=name, split=split, messages=messages, source=f"file.jsonl:{name}", group=group)


def dataset(*conversations: Conversation, others: tuple[str, ...] = ()) -> Dataset:
    return Dataset(id="d1", persona="tamsin", version=1, name="data", conversations=conversations, others=others)


def test_every_held_out_turn_of_four_words_is_a_probe_with_its_context() -> None:
    data = dataset(
        conversation(
            "a", "test", "Hello?", "I am only the cartographer.", "Oh.", "Yes.", "Why?", "Because maps fold badly."
        ),
        conversation("b", "train", "Hello there?", "I was trained on this line."),
        conversation("c", "test", "And you?", "Folded, thank you very much.", group="scene-1"),
    )
    probes = reply_probes(data)
    assert [(p.id, p.cluster) for p in probes] == [("a:1", "a"), ("a:5", "a"), ("c:1", "scene-1")]
    assert [m.content for m in probes[1].messages] == ["Hello?", "I am only the cartographer.", "Oh.", "Yes.", "Why?"]
    assert probes[1].reply == "Because maps fold badly."


def test_other_lines_are_near_in_length_all_different_and_never_the_characters() -> None:
    replies = [f"{'reply ' * count}of {count}" for count in range(3, 33)]
    turns = [conversation(f"t{i}", "test", f"Question {i}, please?", reply) for i, reply in enumerate(replies)]
    data = dataset(*turns, others=(*LINES, replies[3].upper()))
    probes = reply_probes(data)
    assert len({p.other for p in probes}) == len(probes)
    assert not {normalised(p.other) for p in probes} & {normalised(r) for r in replies}
    near = [0.7 <= len(p.other.encode()) / len(p.reply.encode()) <= 1.3 for p in probes]
    assert sum(near) >= 0.9 * len(near)
    assert probes == reply_probes(data)


def test_a_line_of_the_probes_own_context_is_not_its_other() -> None:
    data = dataset(
        conversation("a", "test", "The kettle has opinions.", "The lighthouse has none."),
        others=(
            "The kettle has opinions!",
            "A very much longer line that nobody would call near in length to the reply.",
        ),
    )
    assert reply_probes(data)[0].other.startswith("A very much longer")


def test_lines_are_reused_only_when_all_are_used() -> None:
    assert sorted(filter(None, match_lengths(["aaaa"] * 4, ["bbbb", "cccc"]))) == ["bbbb", "bbbb", "cccc", "cccc"]
    assert match_lengths(["aaaa"], []) == [None]


def test_the_pool_is_topped_up_with_held_out_user_turns_only() -> None:
    data = dataset(
        conversation("a", "test", "Held out question?", "A reply of four words."),
        conversation("b", "validation", "Validation question?", "Another reply of words."),
        conversation("c", "train", "Training question?", "Seen in training, this."),
        others=("An overheard line.",),
    )
    assert other_lines(data, at_least=1) == ["An overheard line."]
    assert other_lines(data, at_least=2) == ["An overheard line.", "Held out question?", "Validation question?"]


def test_a_test_conversation_that_was_trained_on_is_refused_by_row() -> None:
    data = dataset(
        conversation("train1", "train", "Who are you?", "I am the keeper of small hours."),
        conversation("test1", "test", "Who ARE you", "I am the keeper... of small hours!"),
    )
    with pytest.raises(BadInput) as error:
        check_leaks(data, data)
    assert "file.jsonl:test1 = train file.jsonl:train1" in str(error.value)
    check_leaks(dataset(data.conversations[1]), dataset(conversation("x", "train", "Who are you?", "Nobody.")))


def test_all_kinds_of_probes(persona_factory: Callable[..., Persona]) -> None:
    persona = persona_factory()
    probes = build_probes(persona, dataset(conversation("a", "test", "Hello?", "I am only the cartographer.")))
    facts = [p for p in probes if p.kind == "fact"]
    assert [(p.cluster, p.reply) for p in facts] == [("drawer", "the sea")] * 2
    adversarial = [p for p in probes if p.kind == "adversarial"]
    assert len(adversarial) == len(adversarial_prompts()) >= 40
    assert [p.kind for p in build_probes(persona, None)] == ["fact"] * 2 + ["adversarial"] * len(adversarial)


def test_a_quick_look_still_spreads_over_conversations_and_attacks(persona_factory: Callable[..., Persona]) -> None:
    turns = [f"A turn with number {i} in it." for i in range(20)]
    data = dataset(
        *(conversation(f"c{i}", "test", *(f"{t} {i}" for t in turns)) for i in range(12)), others=tuple(LINES)
    )
    probes = build_probes(persona_factory(), data)
    quick = sample_probes(probes, quick=True)
    replies = [p for p in quick if p.kind == "reply"]
    attacks = [p for p in quick if p.kind == "adversarial"]
    assert (len(replies), len({p.cluster for p in replies})) == (24, 12)
    assert len(attacks) == 16
    assert len({p.attack for p in attacks}) == len({p.attack for p in probes if p.kind == "adversarial"})
    assert sum(p.kind == "reply" for p in sample_probes(probes, quick=False)) == 80
    assert quick == sample_probes(probes, quick=True)


def test_spread_takes_one_from_each_group_first() -> None:
    chosen = spread(list("aaabbc"), list("aaabbc"), 3)
    assert sorted(chosen) == ["a", "b", "c"]
    assert sorted(spread(list("aab"), list("aab"), 10)) == ["a", "a", "b"]
