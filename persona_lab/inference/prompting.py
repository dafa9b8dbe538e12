"""What a variant reads before it speaks: the ONE place where system prompt, examples and messages are put together."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.inference.example_choice import examples_for
from persona_lab.types import Message, Variant


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
