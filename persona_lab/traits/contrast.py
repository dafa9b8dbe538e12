"""The vector of a trait: how the hidden states of replies towards it differ from those of replies away from it.

Replies are the trait's example lines, as answers to everyday questions. A trait without lines has the model write
replies under either description, and reads them *without* it, so that the vector says how such a reply is, not that an
instruction was given. A small model follows descriptions poorly, so written replies are only used where there are no
lines. Per layer: mean over the tokens of a reply, mean over replies, difference of the sides. Method: persona vectors,
https://arxiv.org/abs/2507.21509.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import WorkFailed
from persona_lab.inference.decoding import generate
from persona_lab.types import Message, Sampling, Trait

QUESTIONS = (
    "How was your morning?",
    "What do you think of the weather today?",
    "Can you recommend something to eat?",
    "What do you do on a free day?",
    "My neighbour plays loud music. What should I do?",
    "Tell me about a place you like.",
    "What is a good way to learn something new?",
    "I have to get up early tomorrow.",
    "What did you dream last night?",
    "How do you feel about visitors?",
    "I bought an old bicycle. What do you say to that?",
    "What makes a good friend?",
)
"""Neutral: they suggest no trait. Not the ones that calibration or the benchmark asks."""
REPLY_TOKENS = 32
FEWEST = 3
"""Replies a side, below which a mean says nothing."""
ROWS_AT_ONCE = 8

Looker = Callable[[], None]


def contrast(model: Any, renderer: ChatRenderer, trait: Trait, seed: int, look: Looker) -> torch.Tensor:
    """Mean difference towards - away after each layer [layers, hidden], fp32, on the CPU; see `read_sides`."""
    towards, away = read_sides(model, renderer, trait, seed, look)
    return towards.mean(dim=0) - away.mean(dim=0)


def read_sides(
    model: Any, renderer: ChatRenderer, trait: Trait, seed: int, look: Looker
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean states of the replies towards the trait and of those away from it, each [replies, layers, hidden].

    Args:
        model: in eval mode, unsteered.
        look: called between the parts of the work; may raise.

    Raises:
        WorkFailed: the model wrote no replies under the descriptions, and there are no example lines.
    """
    replies = [_as_replies(side) for side in (trait.towards_lines, trait.away_lines)]
    if min(len(side) for side in replies) < FEWEST:
        replies = _written(model, renderer, trait, seed)
        look()
    if min(len(side) for side in replies) < FEWEST:
        raise WorkFailed(
            f"The model writes nothing when it is told: {trait.towards!r}, so there is nothing to compare.",
            f"Give the trait at least {FEWEST} example lines a side, or other descriptions.",
        )
    items = [[([question], text) for question, text in side] for side in replies]
    towards, away = (torch.cat(list(mean_states(model, renderer, side))) for side in items)
    look()
    return towards, away


def tells_apart(towards: torch.Tensor, away: torch.Tensor, layers: Sequence[int]) -> float:
    """The chance that a reply of the one side lies further towards than one of the other (AUC; 0.5: no better than
    guessing), each reply by a vector that it was left out of.

    Args:
        towards, away: [replies, layers, hidden], two replies a side or more.
        layers: where the vector is used; a reply's place is the mean over them.
    """
    sides = [states[:, list(layers)].double() for states in (towards, away)]
    places: list[list[float]] = [[], []]
    for side, (own, other) in enumerate((sides, sides[::-1])):
        for number in range(len(own)):
            rest, far = torch.cat([own[:number], own[number + 1 :]]).mean(dim=0), other.mean(dim=0)
            vector = rest - far if side == 0 else far - rest
            along = ((own[number] - (rest + far) / 2) * vector).sum(dim=-1)
            places[side].append(float((along / (vector * vector).sum(dim=-1).clamp(min=1e-12)).mean()))
    wins = [(a > b) + 0.5 * (a == b) for a in places[0] for b in places[1]]
    return sum(wins) / len(wins)


Reply = tuple[Message, str]
"""(question, reply)."""


def _written(model: Any, renderer: ChatRenderer, trait: Trait, seed: int) -> list[list[Reply]]:
    prompts = [
        [Message(role="system", content=description), Message(role="user", content=question)]
        for description in (trait.towards, trait.away)
        for question in QUESTIONS
    ]
    replies = generate(model, renderer, prompts, Sampling(seed=seed, max_new_tokens=REPLY_TOKENS))
    pairs = [(prompt[1], reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
    sides = (pairs[: len(QUESTIONS)], pairs[len(QUESTIONS) :])
    return [[pair for pair in side if pair[1].strip()] for side in sides]


def _as_replies(lines: Sequence[str]) -> list[Reply]:
    return [
        (Message(role="user", content=QUESTIONS[number % len(QUESTIONS)]), line)
        for number, line in enumerate(line for line in lines if line.strip())
    ]


def mean_states(
    model: Any, renderer: ChatRenderer, items: Sequence[tuple[Sequence[Message], str]]
) -> Iterator[torch.Tensor]:
    """Of each (messages, reply) the mean hidden state of the reply's tokens after each layer: in batches, in order,
    [rows, layers, hidden], fp32, on the CPU. What is read before the reply does not count, earlier replies included.

    Args:
        items: with replies that are not blank.
    """
    rendered = [
        renderer.render([*messages, Message(role="assistant", content=text)], max_tokens=renderer.context_length)
        for messages, text in items
    ]
    for start in range(0, len(rendered), ROWS_AT_ONCE):
        batch = rendered[start : start + ROWS_AT_ONCE]
        width = max(len(row.ids) for row in batch)
        # padding stands at the right, where causal attention never looks
        ids = torch.tensor([[*row.ids, *[renderer.pad_id] * (width - len(row.ids))] for row in batch])
        mask = torch.zeros(len(batch), width)
        for place, row in enumerate(batch):
            mask[place, slice(*_last_reply(row.mask))] = 1.0
        mask = (mask / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(model.device)
        with torch.no_grad():
            states = model(input_ids=ids.to(model.device), output_hidden_states=True, logits_to_keep=1).hidden_states
        # the first are the embeddings; [rows, tokens, hidden] -> [rows, hidden]
        yield torch.stack([(layer.float() * mask[:, :, None]).sum(dim=1) for layer in states[1:]], dim=1).cpu()


def _last_reply(mask: Sequence[bool]) -> tuple[int, int]:
    """[start, end) of the last run of tokens that are a reply's."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return start, end
