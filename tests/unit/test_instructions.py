"""What a model wrote becomes a prompt only where it can be one; what stands in the user's file is never replaced."""

from __future__ import annotations

import pytest

from persona_lab.datasets.documents import CONTINUATION, INSTRUCTION
from persona_lab.datasets.instructions import BY_MODEL, askable, asks_for, usable_prompt, with_prompts
from persona_lab.types import Conversation, Message

PASSAGE = (
    "My grandmother kept the lighthouse for thirty years. She painted the railing green every spring, and she never "
    "once let the lamp go out, not even in the winter when the boat could not bring the oil."
)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("How long did your grandmother keep the light?", "How long did your grandmother keep the light?"),
        ('"Who painted the railing?"', "Who painted the railing?"),
        ("Question: Why was the railing green?\nAnswer: She liked it.", "Why was the railing green?"),
        ("1. What about winter without oil?", "What about winter without oil?"),
        ("Tell me about the lighthouse.", "Tell me about the lighthouse."),
        ("Did the lamp go out in winter? She never let it.", "Did the lamp go out in winter?"),
        ("She painted the railing green.", ""),  # no question
        ("Why?", ""),
        ("What do you like best of all?", ""),  # of nothing in it
        ("What does the author say about the lighthouse?", ""),
        ("What is the lighthouse in this passage?", ""),
        ("She kept the lighthouse for years. Why did she do that?", ""),  # tells before it asks
        ("Did Mrs. Gray keep the lighthouse?", "Did Mrs. Gray keep the lighthouse?"),
        ("Did she keep the lighthouse in October?", ""),  # of the examples that the model is shown
        ("As an AI, what should I say of a lighthouse?", ""),
        ("Is it so that she never once let the lamp go out, not even in the winter?", ""),  # says the reply itself
        ("What about the lighthouse " + "and so " * 30 + "on?", ""),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_only_a_question_about_the_passage_is_taken(written: str, kept: str) -> None:
    assert usable_prompt(written, PASSAGE) == kept


def row(number: int, made: str) -> Conversation:
    messages = (Message(role="user", content=f"Asked {number}"), Message(role="assistant", content=f"Said {number}"))
    return Conversation(id=f"r{number}", messages=messages, made=made, split="train", group="g", source="f:1")


def test_only_prompts_of_ours_are_replaced_and_marked() -> None:
    rows = [row(0, ""), row(1, INSTRUCTION), row(2, CONTINUATION), row(3, f"{BY_MODEL} (other)"), row(4, INSTRUCTION)]
    assert [c.id for c in askable(rows)] == ["r1", "r3", "r4"]
    changed = with_prompts(rows, {"r0": "No", "r1": "Who?", "r2": "No", "r3": "Where?"}, "small")
    assert [c.messages[0].content for c in changed] == ["Asked 0", "Who?", "Asked 2", "Where?", "Asked 4"]
    assert [c.made for c in changed] == [
        "", f"{BY_MODEL} (small)", CONTINUATION, f"{BY_MODEL} (small)", INSTRUCTION,
    ]  # fmt: skip
    same = {"messages", "made"}
    assert [c.model_dump(exclude=same) for c in changed] == [c.model_dump(exclude=same) for c in rows]
    assert [c.messages[1] for c in changed] == [c.messages[1] for c in rows]


def test_a_model_is_asked_with_examples_and_the_passage_last() -> None:
    turns = asks_for(PASSAGE)
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[-1].content.endswith(PASSAGE)
    for asked, answer in zip(turns[:-1:2], turns[1:-1:2], strict=True):
        assert usable_prompt(answer.content, asked.content.split("\n\n", 1)[1]) == answer.content
