"""Characters of programs that know no character cards: text-generation-webui, Pygmalion, and what looks like them.

Each becomes a V3 card; keys that have no place in one are kept in `extensions["text-generation-webui"]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# field of a card -> what it is called elsewhere, the likelier name first
_NAMES = {
    "name": ("char_name", "name", "bot"),
    "description": ("context", "char_persona", "persona", "description"),
    "personality": ("personality",),
    "scenario": ("world_scenario", "scenario"),
    "first_mes": ("char_greeting", "greeting", "first_mes"),
    "mes_example": ("example_dialogue", "mes_example"),
}
_TELLING = ("char_name", "char_persona", "char_greeting", "context", "greeting", "world_scenario", "example_dialogue")
KEPT_IN = "text-generation-webui"
_START = re.compile(r"^[ \t]*<START>", re.IGNORECASE | re.MULTILINE)


def is_other_character(raw: Any) -> bool:
    """Whether a document is such a character: no `spec`, no V1 greeting, but names that only they use."""
    return (
        isinstance(raw, Mapping)
        and not raw.get("spec")
        and "data" not in raw
        and "first_mes" not in raw
        and any(isinstance(raw.get(key), str) for key in _TELLING)
        and any(isinstance(raw.get(key), str) and raw[key].strip() for key in _NAMES["name"])
    )


def as_card(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The character as a card object, and what the file was, for people."""
    data: dict[str, Any] = {}
    used: set[str] = set()
    for field, names in _NAMES.items():
        for name in names:
            if isinstance(raw.get(name), str) and raw[name].strip():
                data[field] = raw[name]
                used.add(name)
                break
    data["description"], data["mes_example"] = _without_examples(
        data.get("description", ""), data.get("mes_example", "")
    )
    rest = {key: value for key, value in raw.items() if key not in used}
    data["extensions"] = {KEPT_IN: rest} if rest else {}
    kind = "a Pygmalion character" if "char_name" in raw else "a text-generation-webui character"
    return {"spec": "chara_card_v3", "spec_version": "3.0", "data": data}, kind


def _without_examples(context: str, examples: str) -> tuple[str, str]:
    """Example dialogues after `<START>` at the end of a context are the card's examples, if it has none of its own."""
    start = _START.search(context)
    if start is None or examples:
        return context, examples
    return context[: start.start()].rstrip(), context[start.start() :].strip()
