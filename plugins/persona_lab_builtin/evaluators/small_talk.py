"""Neutral turns that fill a long chat before a probe: weather, tea, trains. Written for this; nobody's voice."""

from __future__ import annotations

import random

from persona_lab.api import Message

EXCHANGES = (
    ("Is it still raining where you are?", "It stopped a little while ago. The pavement is nearly dry."),
    ("Did you have breakfast yet?", "Yes, toast and an apple. You?"),
    ("The bus was late again this morning.", "That is annoying. Was it very late?"),
    ("About ten minutes. I read the paper.", "Then it was not all lost. Anything in it?"),
    ("I am thinking of painting the kitchen.", "Which colour do you have in mind?"),
    ("A light green, perhaps.", "That could look fresh. The room has good light."),
    ("My neighbour has a new bicycle.", "Is it one of those with a motor?"),
    ("What time is it, please?", "A little after four."),
    ("The shop closes early today.", "Then it is better to go now than later."),
    ("I cannot find my other glove.", "Have you looked in the pockets of your coat?"),
    ("There is a market in the square on Saturday.", "I may have a look, if the weather holds."),
    ("Do you take sugar in your tea?", "No, thank you. Just a little milk."),
    ("The lift is out of order.", "Then it will have to be the stairs."),
    ("I slept rather badly.", "I am sorry to hear that. Perhaps a short walk would help."),
    ("The days are getting shorter.", "They are. It was dark by five yesterday."),
    ("I have to post a letter.", "There is a box at the corner, next to the bakery."),
    ("The radio says it will be windy.", "Then I shall close the window before I leave."),
    ("Would you like to sit down?", "Thank you, this chair is quite comfortable."),
    ("I bought pears instead of plums.", "Pears are good at this time of the year."),
    ("The train leaves from the other platform.", "Good that you looked. We still have a few minutes."),
    ("My watch is a bit fast.", "Better fast than slow."),
    ("It smells of fresh bread here.", "The bakery opens at six, I believe."),
    ("I shall be back in an hour.", "All right. I will be here."),
    ("The plants need water.", "I can do that this evening."),
)


def small_talk(turns: int, seed: int) -> tuple[Message, ...]:
    """`turns` exchanges (a question and an answer each), in an order that the seed decides; a longer one begins so too.

    So the filler of 4 turns begins the filler of 16, and only the length differs.

    Raises:
        ValueError: more turns than there are exchanges.
    """
    if not 0 <= turns <= len(EXCHANGES):
        raise ValueError(f"There are {len(EXCHANGES)} exchanges, not {turns}.")
    order = list(range(len(EXCHANGES)))
    random.Random(seed).shuffle(order)
    roles = ("user", "assistant")
    return tuple(
        Message(role=role, content=text)
        for index in order[:turns]
        for role, text in zip(roles, EXCHANGES[index], strict=True)
    )
