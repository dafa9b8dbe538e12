"""Which conversations to show a model as examples: short, typical of the character, and unlike each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_lab.types import Conversation, Dataset, Message

if TYPE_CHECKING:
    from persona_lab.datasets.rendering import ChatRenderer

_MOST_CANDIDATES = 2_000
_SHORTEST_REPLY = 40
_SHORTEST_QUESTION = 10
_DIVERSITY = 0.5


def best_examples(dataset: Dataset, count: int, renderer: ChatRenderer, token_budget: int) -> tuple[Conversation, ...]:
    """At most `count` single exchanges of the train split that together fit into `token_budget` tokens.

    Chosen one by one by maximal marginal relevance over TF-IDF vectors of the whole exchange: close to the centre of
    all candidates, far from those already chosen (Carbonell and Goldstein, 1998, https://doi.org/10.1145/290941.291025).
    The same dataset gives the same examples, the most typical last: nearest to the question it is read best.

    Args:
        token_budget: tokens for all examples together, in the chat template.
    """
    candidates = example_candidates(dataset)
    if count <= 0 or not candidates:
        return ()
    sizes = exchange_sizes(candidates, renderer)
    fair = token_budget / count * 1.5  # one long example must not take the place of all others
    keep = [i for i in range(len(candidates)) if sizes[i] <= fair] or [
        min(range(len(candidates)), key=sizes.__getitem__)
    ]
    candidates, sizes = [candidates[i] for i in keep], [sizes[i] for i in keep]
    typical, alike = _similarities([_text(candidate) for candidate in candidates])
    chosen: list[int] = []
    left = token_budget
    while len(chosen) < count:
        options = [i for i in range(len(candidates)) if i not in chosen and sizes[i] <= left]
        if not options:
            break
        best = max(options, key=lambda i: typical[i] - _DIVERSITY * max((alike[i][j] for j in chosen), default=0.0))
        chosen.append(best)
        left -= sizes[best]
    return tuple(candidates[i] for i in reversed(chosen))


def example_candidates(dataset: Dataset) -> list[Conversation]:
    """The first exchange of each training conversation, without system message: those that say something, if any do."""
    found: list[Conversation] = []
    for conversation in dataset.of("train"):
        turns = [message for message in conversation.messages if message.role != "system"]
        pair = tuple(turns[:2])
        if [message.role for message in pair] == ["user", "assistant"]:
            found.append(conversation.model_copy(update={"messages": pair}))
    telling = [c for c in found if len(c.messages[0].content) >= _SHORTEST_QUESTION]
    kept = [c for c in telling if len(c.messages[1].content) >= _SHORTEST_REPLY] or found
    return sorted(kept, key=lambda c: c.id)[:_MOST_CANDIDATES]


def exchange_sizes(candidates: Sequence[Conversation], renderer: ChatRenderer) -> list[int]:
    """Tokens of each exchange after a system message, as it stands in a prompt."""
    system = Message(role="system", content="-")
    return [
        len(rendered.ids) - rendered.prefix
        for rendered in (renderer.render([system, *candidate.messages]) for candidate in candidates)
    ]


def _similarities(texts: Sequence[str]) -> tuple[list[float], list[list[float]]]:
    """Cosine of each text to the centre [texts], and to each other [texts][texts], over TF-IDF vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # every non-empty text has a token, so that the vocabulary cannot be empty
    vectors = TfidfVectorizer(token_pattern=r"\w+|\S", sublinear_tf=True).fit_transform(texts)
    centre = vectors.mean(axis=0).A1
    length = float((centre**2).sum()) ** 0.5 or 1.0
    return (vectors @ centre / length).tolist(), (vectors @ vectors.T).toarray().tolist()


def _text(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.messages)
