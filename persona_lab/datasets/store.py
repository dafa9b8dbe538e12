"""Datasets on disk: one JSONL file, a header line, then one line for each conversation and other speaker's line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persona_lab.datasets.toolkit import read_text
from persona_lab.errors import BadInput
from persona_lab.formats import upgrade, versioned
from persona_lab.home import write_atomic
from persona_lab.types import Conversation, Dataset

_HEADER = ("id", "persona", "version", "name")


def save_dataset(path: Path, dataset: Dataset) -> None:
    """Write the dataset, whole or not at all.

    Raises:
        DiskFull: nothing was changed.
    """
    write_atomic(path, "".join(line + "\n" for line in _lines(dataset)))


def _lines(dataset: Dataset) -> Iterator[str]:
    header = {**versioned("dataset"), "kind": "dataset", **{name: getattr(dataset, name) for name in _HEADER}}
    counts = {"conversations": len(dataset.conversations), "others": len(dataset.others)}
    yield json.dumps(header | counts, ensure_ascii=False)
    for conversation in dataset.conversations:
        yield json.dumps({"kind": "conversation", **conversation.model_dump(mode="json")}, ensure_ascii=False)
    for text in dataset.others:
        yield json.dumps({"kind": "other", "text": text}, ensure_ascii=False)


def load_dataset(path: Path) -> Dataset:
    """Read a file that `save_dataset` wrote.

    Raises:
        BadInput: it is missing, damaged or cut off.
    """
    header: dict[str, Any] = {}
    conversations: list[Conversation] = []
    others: list[str] = []
    number = 0
    try:
        for line in filter(None, read_text(path).split("\n")):
            number += 1
            row = json.loads(line)
            kind = row.pop("kind")
            if kind == "dataset":
                header = upgrade("dataset", row)
            elif kind == "conversation":
                conversations.append(Conversation.model_validate(row))
            elif kind == "other":
                others.append(row["text"])
        if (len(conversations), len(others)) != (header["conversations"], header["others"]):
            raise ValueError(f"it announces {header['conversations']} conversations and holds {len(conversations)}")
        identity = {name: header[name] for name in _HEADER}
        return Dataset(**identity, conversations=tuple(conversations), others=tuple(others))
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        what = str(error).split("\n")[0]
        raise BadInput(
            f"The dataset file {path} is damaged (line {number}: {type(error).__name__}: {what}).",
            "Import the data again.",
        ) from error
