"""What a variant has read before, for going on from it: the rows of its data that may still be trained on."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lab.datasets.held_out import HeldOut, line_keys
from persona_lab.datasets.splits import content_key, without_duplicates
from persona_lab.types import Conversation, Dataset


def learned_rows(earlier: Sequence[Dataset], ledger: HeldOut, newest: Dataset) -> tuple[Conversation, ...]:
    """The training rows of `earlier`, each once, that are held out nowhere by now: not in the ledger, and neither test
    nor validation of `newest`."""
    held = ledger.with_test_of(newest)
    validation = {key for c in newest.of("validation") for key in (content_key(c), *line_keys(c))}
    return tuple(
        conversation
        for conversation in without_duplicates([row for dataset in earlier for row in dataset.of("train")])
        if held.find_line(conversation) is None
        and validation.isdisjoint((content_key(conversation), *line_keys(conversation)))
    )
