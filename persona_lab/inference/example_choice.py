"""In-context examples chosen for each question: a pool of candidates with their vectors, and the nearest of them.

    <folder>/pool.json             candidates, their sizes in tokens, how many may be shown and in how much room
    <folder>/vectors.safetensors   `questions` [candidates, 384]; absent where the embedding model could not be had

Showing the training examples whose questions are nearest to the one asked: Liu et al. 2022,
https://arxiv.org/abs/2101.06804. Without the embedding model, nearness is that of TF-IDF vectors. Workers only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.home import Home
from persona_lab.models import cache, embedding
from persona_lab.types import Conversation, Message, Variant

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Embed = Callable[[Sequence[str]], NDArray[numpy.float32]]

POOL, VECTORS = "pool.json", "vectors.safetensors"
_REMEMBERED = 4_096


class ExamplePool:
    """The candidates in one folder. Calling it with messages gives the examples for the last question, nearest last.

    Args:
        folder: `<home>/variants/<id>/weights`, or `<home>/runs/<id>/artifact` while it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / POOL).read_text(encoding="utf-8"))
        self.conversations = tuple(Conversation.model_validate(row) for row in content["conversations"])
        self.sizes: list[int] = content["sizes"]
        self.count, self.token_budget = int(content["count"]), int(content["token_budget"])
        self.method = "embedding" if (folder / VECTORS).is_file() else "tf-idf"
        self._chosen = lru_cache(_REMEMBERED)(self._choose)

    def __call__(self, messages: Sequence[Message]) -> tuple[Conversation, ...]:
        return self._chosen(next((m.content for m in reversed(messages) if m.role == "user"), ""))

    def _choose(self, question: str) -> tuple[Conversation, ...]:
        left = self.token_budget
        chosen: list[int] = []
        for index in self._nearest(question):
            if len(chosen) == self.count:
                break
            if self.sizes[index] <= left:
                chosen.append(index)
                left -= self.sizes[index]
        return tuple(self.conversations[index] for index in reversed(chosen))

    def _nearest(self, question: str) -> list[int]:
        """Candidates by their questions' cosine to this one, nearest first; to their centre where nothing is asked."""
        if not self.conversations:
            return []
        vectors, embed = self._space
        asked = embed([question])[0] if question.strip() else vectors.mean(axis=0)
        return [int(index) for index in (-(vectors @ asked)).argsort(kind="stable")]

    @cached_property
    def _space(self) -> tuple[Any, Any]:
        """(vectors of the candidates' questions [candidates, size], what makes a vector of a text)."""
        model = Home(self.folder.parents[2]).model(embedding.KEY)
        if self.method == "embedding" and cache.cached(Home(self.folder.parents[2]), embedding.KEY) is not None:
            from safetensors.numpy import load_file

            return load_file(self.folder / VECTORS)["questions"], _embedder(model)
        if self.method == "embedding":
            self.method = "tf-idf"
            logging.getLogger(__name__).warning(
                "The embedding model is gone from %s: examples are chosen by the words they share.", model
            )
        return _tf_idf([_question(conversation) for conversation in self.conversations])


def examples_for(variant: Variant, messages: Sequence[Message]) -> Sequence[Conversation]:
    """The examples that a variant shows before `messages`: its fixed ones, or those its pool has for the question."""
    if variant.kind != "prompt" or not variant.path:
        return variant.examples
    return _pool(variant.path)(messages)


def write_pool(
    folder: Path,
    candidates: Sequence[Conversation],
    sizes: Sequence[int],
    count: int,
    token_budget: int,
    model: Path | None,
) -> None:
    """Write a pool into an empty folder.

    Args:
        candidates: single exchanges of the train split.
        sizes: tokens of each candidate in the chat template.
        model: folder of the embedding model; None: by TF-IDF.
    """
    rows = [conversation.model_dump(mode="json") for conversation in candidates]
    content = {"count": count, "token_budget": token_budget, "sizes": list(sizes), "conversations": rows}
    (folder / POOL).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if model is not None and candidates:
        from safetensors.numpy import save_file

        save_file({"questions": _embedder(model)([_question(c) for c in candidates])}, folder / VECTORS)


@lru_cache(8)
def _pool(folder: str) -> ExamplePool:
    return ExamplePool(Path(folder))


@lru_cache(1)
def _embedder(folder: Path) -> embedding.Embedder:
    return embedding.Embedder(folder)


def _question(conversation: Conversation) -> str:
    return conversation.messages[0].content


def _tf_idf(texts: Sequence[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # every non-empty text has a token, so that the vocabulary cannot be empty
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|\S", sublinear_tf=True)
    vectors = vectorizer.fit_transform(texts).toarray()
    return vectors, lambda asked: vectorizer.transform(asked).toarray()
