"""Turns `--set key=value` and form values into a plugin's validated Config, with every problem named at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from persona_lab.errors import BadSetting


def parse_assignments(pairs: Iterable[str]) -> dict[str, str]:
    """`["epochs=1", "batch_size=8"]` as a dict of strings.

    Raises:
        BadSetting: a pair has no `=`.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise BadSetting(f"{pair!r} is not a setting.", "Write --set key=value, such as --set epochs=1.")
        found[key.strip()] = value.strip()
    return found


def validate_settings(config: type[BaseModel], values: Mapping[str, Any], owner: str) -> BaseModel:
    """The Config made of these values; strings are converted to the field's type.

    Args:
        config: the plugin's Config class.
        values: settings by name; what is absent keeps its default.
        owner: whose settings they are, for the message ("strategy 'lora'").

    Raises:
        BadSetting: unknown keys (with the nearest known one) and values out of bounds, all at once.
    """
    try:
        return config.model_validate({key: _literal(value) for key, value in values.items()})
    except ValidationError as error:
        problems = [_problem(config, entry) for entry in error.errors()]
        listed = "; ".join(f"{field}: {message}" if field else message for field, message in problems)
        unknown = any(entry["type"] == "extra_forbidden" for entry in error.errors())
        known = f"Known settings: {', '.join(config.model_fields) or 'none'}."
        hint = known if unknown else "Choose a value within its bounds."
        raise BadSetting(f"Some settings of {owner} cannot be used: {listed}.", hint, problems) from error


def _literal(value: Any) -> Any:
    """Lists, objects and null arrive as JSON text; everything else pydantic converts by itself."""
    if isinstance(value, str) and (value[:1] in "[{" or value == "null") and value:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _problem(config: type[BaseModel], entry: Any) -> tuple[str, str]:
    field = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, config.model_fields, n=1)
        return field, "there is no such setting" + (f" (did you mean {near[0]!r}?)" if near else "")
    if entry["type"] == "value_error":  # a plugin's own words, which name the value where that helps
        return field, str(entry["ctx"]["error"]).rstrip(".")
    message = entry["msg"][:1].lower() + entry["msg"][1:]
    return field, f"{message}, not {entry['input']!r}"
