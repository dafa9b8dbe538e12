"""Was a variant trained on what it is to be scored on? Compares held-out lines with training data, line by line.

Case, punctuation and spacing do not hide a copy. Replies under four words, and stock phrases (given to three or more
different questions), are no leak: anybody says them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from persona_lab.datasets.held_out import line_keys, normalised, probe_keys, row_name, stock_phrases
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Dataset, Message, Probe

NAMED_ROWS = 5


def check_leaks(held_out: Dataset, trained: Dataset) -> None:
    """Refuse to probe with conversations that were trained on.

    Args:
        held_out: its test split is what will be probed.
        trained: its train split is what a variant saw (another version of the data, or the same one).

    Raises:
        BadInput: naming the rows.
    """
    stock = stock_phrases((*held_out.conversations, *trained.of("train")))
    _refuse(_leaks(held_out.of("test"), trained, stock), f"test conversations of {held_out.name!r}")


def check_probes(probes: Sequence[Probe], trained: Dataset) -> None:
    """Refuse reply probes whose line a variant was trained on, wherever the probes come from.

    Raises:
        BadInput: naming the rows.
    """
    _refuse(_leaks(probe_conversations(probes), trained, stock_phrases(trained.of("train"))), "reply probes")


def probe_conversations(probes: Iterable[Probe]) -> list[Conversation]:
    """Reply probes as conversations that end in the held-out line."""
    return [
        Conversation(id=p.id, messages=(*p.messages, Message(role="assistant", content=p.reply)))
        for p in probes
        if p.kind == "reply"
    ]


def seen_stock_phrases(dataset: Dataset) -> frozenset[str]:
    """Stock phrases (normalised) of the data that its training rows hold: as probes they would only flatter."""
    stock = stock_phrases(dataset.conversations)
    trained = {
        normalised(message.content)
        for split in ("train", "validation")
        for conversation in dataset.of(split)
        for message in conversation.messages
        if message.role == "assistant"
    }
    return stock & trained


def _leaks(
    held: Iterable[Conversation], trained: Dataset, stock: frozenset[str]
) -> list[tuple[Conversation, Conversation]]:
    """(held out, trained on) for each held-out conversation with a line that a training row repeats."""
    seen = {key: conversation for conversation in trained.of("train") for key in line_keys(conversation)}
    found = ((c, next((seen[key] for key in probe_keys(c, stock) if key in seen), None)) for c in held)
    return [(conversation, copy) for conversation, copy in found if copy is not None]


def _refuse(leaks: Sequence[tuple[Conversation, Conversation]], what: str) -> None:
    if not leaks:
        return
    rows = "; ".join(f"test {row_name(a)} = train {row_name(b)}" for a, b in leaks[:NAMED_ROWS])
    more = f" and {len(leaks) - NAMED_ROWS} more" if len(leaks) > NAMED_ROWS else ""
    raise BadInput(
        f"{len(leaks)} {what} were trained on ({rows}{more}).",
        "A score on them would flatter the variant: import the data again, so that copies fall into one split, and "
        "train anew.",
    )
