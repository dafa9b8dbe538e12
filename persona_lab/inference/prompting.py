"""What a variant reads before it speaks: the ONE place where system prompt, examples and messages are put together."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.inference.example_choice import examples_for
from persona_lab.types import ChatRequest, Inserted, Message, Role, Variant


def messages_for(variant: Variant, messages: Sequence[Message]) -> list[Message]:
    """System prompt (where the variant was made with one) + in-context examples (chosen for the last question, where
    the variant does so) + `messages`.

    A system message in `messages` is dropped: the variant has its own.
    """
    has_system = variant.prompt_mode == "card" and variant.system
    system = [Message(role="system", content=variant.system)] if has_system else []
    examples = [
        turn for example in examples_for(variant, messages) for turn in example.messages if turn.role != "system"
    ]
    return [*system, *examples, *(message for message in messages if message.role != "system")]


def prompt_of(request: ChatRequest, system_between: bool) -> list[Message]:
    """`messages_for` of a request, with what is inserted into its conversation (lorebook entries at a depth).

    Args:
        system_between: whether the base's chat template takes system messages between turns
            (`ChatRenderer.takes_system_between`); where it does not, their words go into the user's turn.
    """
    messages = messages_for(request.variant, request.messages)
    count = sum(message.role != "system" for message in request.messages)
    if not request.inserted or not count:
        return messages
    head, turns = messages[:-count], messages[-count:]
    return _placed(head, turns, request.inserted, system_between)


def _placed(
    head: list[Message], turns: list[Message], inserted: Sequence[Inserted], system_between: bool
) -> list[Message]:
    """User and character must go on taking turns, as templates ask: words of theirs join the turn beside the place. A
    reply that was begun does not count as a message: it is still being written."""
    end = len(turns) - (turns[-1].role == "assistant")
    for place in sorted({max(end - entry.depth, 0) for entry in inserted}, reverse=True):
        here = [entry for entry in inserted if max(end - entry.depth, 0) == place]
        for role in ("assistant", "user", "system"):
            text = "\n".join(entry.content for entry in here if entry.role == role)
            if text:
                head, turns = _put(head, turns, place, end, role, text, system_between)
    return [*head, *turns]


def _put(
    head: list[Message], turns: list[Message], place: int, end: int, role: Role, text: str, system_between: bool
) -> tuple[list[Message], list[Message]]:
    if role == "assistant":
        spoke = [i for i in range(end) if turns[i].role == "assistant" and i <= place]
        if spoke:
            return head, _joined(turns, spoke[-1], text, first=spoke[-1] == place)
        role = "system"  # it has said nothing yet that these words could be part of
    if role == "system" and place == 0 and head and head[-1].role == "system":
        return _joined(head, len(head) - 1, text, first=False), turns
    if role == "system" and system_between:
        return head, [*turns[:place], Message(role="system", content=text), *turns[place:]]
    for index, first in ((place, True), (place - 1, False)):
        if 0 <= index < end and turns[index].role == "user":
            return head, _joined(turns, index, text, first)
    return head, [*turns[:place], Message(role="user", content=text), *turns[place:]]


def _joined(messages: list[Message], index: int, text: str, first: bool) -> list[Message]:
    known = messages[index]
    parts = (text, known.content) if first else (known.content, text)
    joined = known.model_copy(update={"content": "\n\n".join(parts)})
    return [*messages[:index], joined, *messages[index + 1 :]]
