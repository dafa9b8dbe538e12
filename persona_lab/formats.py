"""The formats of what the home keeps, with their versions, and the steps from every past version to the present one.

A document says its version as `schema`; none means 1, the first. Reading takes the steps in memory; the file itself
is written in the new format when it is next written at all, so an upgrade cannot break off in the middle, and the
version before can be gone back to until then. A version newer than ours is refused by name, never half understood.
A new field needs a new version too, whose step adds nothing: our models forbid fields they do not know, so an older
program would take the file for damaged. The library has its own count (`library.SCHEMA`), and so have checkpoints
(`training.checkpoints.FORMAT`) and bundles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Document = dict[str, Any]
Step = Callable[[Document], Document]
Model = TypeVar("Model", bound=BaseModel)
VERSION = "schema"


class NewerFormat(ValueError):
    """Written by a newer Persona Lab."""


@dataclass(frozen=True)
class Format:
    """One kind of document.

    Args:
        steps: version -> what makes of a document of it one of the next; one for every version before `current`.
    """

    current: int = 1
    steps: Mapping[int, Step] = field(default_factory=dict)


FORMATS: dict[str, Format] = {
    "job": Format(),
    "variant": Format(),
    "dataset": Format(),
    "dataset summary": Format(),
    "chat": Format(),
    "vote": Format(),
    "feedback": Format(),
    "batch": Format(),
    "shelf": Format(),
    "settings": Format(),
}


def upgrade(kind: str, document: Document) -> Document:
    """The document in the present format, without its version.

    Raises:
        NewerFormat
    """
    known = FORMATS[kind]
    document = dict(document)
    version = document.pop(VERSION, 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{version!r} is no version of a format")
    if version > known.current:
        raise NewerFormat(
            f"it is of a newer Persona Lab (format {version} of a {kind}; this one reads up to {known.current}): "
            "update Persona Lab"
        )
    for number in range(version, known.current):
        document = known.steps[number](document)
    return document


def upgraded(kind: str, content: bytes | str, model: type[Model]) -> Model:
    """A JSON document of any version as its model.

    Raises:
        ValueError: no JSON object, a newer format, or not what the model is (pydantic's ValidationError).
    """
    try:
        document = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    present = upgrade(kind, document)
    return model.model_validate_json(content if present == document else json.dumps(present))


def told(error: BaseException) -> str:
    """What is wrong with a document, in a line: of a failed validation its first problem, with the field's name."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{f'{where}: ' if where else ''}{first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def versioned(kind: str) -> Document:
    """What says the version in a document; nothing where it is the first."""
    current = FORMATS[kind].current
    return {VERSION: current} if current > 1 else {}


def written(kind: str, model: BaseModel, indent: int | None = None, exclude_defaults: bool = False) -> str:
    """The model as JSON with its version, which is left out where it is the first."""
    version = versioned(kind)
    if not version:
        return model.model_dump_json(indent=indent, exclude_defaults=exclude_defaults)
    document = {**version, **model.model_dump(mode="json", exclude_defaults=exclude_defaults)}
    return json.dumps(document, ensure_ascii=False, indent=indent)
