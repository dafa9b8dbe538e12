"""Persona folders on disk: card.json, probes.jsonl, avatar.png; the shipped examples and adversarial prompts.

It knows nothing of the library: which personas there are in a home is the engine's to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

import persona_lab
from persona_lab.datasets.rows import read_rows
from persona_lab.datasets.toolkit import read_bytes
from persona_lab.errors import BadInput
from persona_lab.home import write_atomic
from persona_lab.personas.bounded import safe_path
from persona_lab.personas.cards import card_name, card_to_json, check_avatar, read_card
from persona_lab.personas.versions import keep_version
from persona_lab.types import ID_PATTERN, AdversarialPrompt, Fact, Persona

CARD, PROBES, AVATAR, ASSETS = "card.json", "probes.jsonl", "avatar.png", "assets"
_MOST_FACTS = 10_000
_Model = TypeVar("_Model", Fact, AdversarialPrompt)


def load_persona(folder: Path) -> Persona:
    """The persona in `folder`, whose name is its id.

    Raises:
        BadInput: the folder's name is no id, or card.json or probes.jsonl cannot be used.
    """
    folder = folder.resolve()
    if not re.fullmatch(ID_PATTERN, folder.name):
        raise BadInput(
            f"The persona folder's name {folder.name!r} cannot be an id.",
            "Use lower-case letters, digits, - and _, starting with a letter or digit.",
        )
    card = read_card(folder / CARD).card
    avatar = folder / AVATAR
    return Persona(
        id=folder.name,
        name=card_name(card["data"]),
        card=card,
        facts=read_facts(folder / PROBES),
        avatar=str(avatar) if avatar.is_file() else None,
        example=folder in example_folders().values(),
    )


def read_facts(path: Path) -> tuple[Fact, ...]:
    """The facts of a probes.jsonl; none where the file is missing. Rows of other kinds are passed over.

    Raises:
        BadInput: a row is not a fact (names the row), or two have one id.
    """
    facts: list[Fact] = []
    for number, row in _rows(path):
        if row.get("kind", "fact") == "fact":
            known = {key: row[key] for key in Fact.model_fields if key in row}
            facts.append(_validated(Fact, {"id": f"fact-{number}", **known}, path, number))
    _refuse_twins(path, (fact.id for fact in facts))
    return tuple(facts)


def save_persona(folder: Path, persona: Persona, avatar_png: bytes | None = None) -> None:
    """Write the persona's files, each whole or not at all; other files of the folder stay, and so does the card before.

    Args:
        avatar_png: the avatar; without it `persona.avatar` is copied, if it lies elsewhere.

    Raises:
        BadInput: the avatar is not a usable PNG; nothing was written. DiskFull.
    """
    target = folder / AVATAR
    if avatar_png is None and persona.avatar and Path(persona.avatar).resolve() != target.resolve():
        avatar_png = read_bytes(Path(persona.avatar))
    if avatar_png is not None:
        check_avatar(avatar_png, persona.avatar or "The avatar")
    text = card_to_json(persona.card)
    if _replaced(folder / CARD, text) or (avatar_png is not None and _replaced(target, avatar_png)):
        keep_version(folder)
    if avatar_png is not None:
        write_atomic(target, avatar_png)
    kept = [row for _, row in _rows(folder / PROBES) if row.get("kind", "fact") != "fact"]
    rows = [{"kind": "fact", **fact.model_dump(mode="json")} for fact in persona.facts] + kept
    if rows or (folder / PROBES).exists():
        write_atomic(folder / PROBES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_atomic(folder / CARD, text)


def _replaced(path: Path, content: bytes | str) -> bool:
    return path.is_file() and path.read_bytes() != (content.encode() if isinstance(content, str) else content)


def load_assets(folder: Path) -> dict[str, bytes]:
    """What came with the card in a CHARX, by the path it had there.

    Raises:
        BadInput: a file of it cannot be read, or is too large.
    """
    root = folder / ASSETS
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def save_assets(folder: Path, files: Mapping[str, bytes]) -> None:
    """Keep the other files of a CHARX beside the card. Paths were checked by `bounded.unzip`.

    Raises:
        BadInput: a path leads elsewhere. DiskFull.
    """
    root = folder / ASSETS
    for path, content in files.items():
        if not safe_path(path):
            raise BadInput(f"The asset {path[:100]!r} leads out of its folder.", "Do not trust this file.")
        write_atomic(root / path, content)


def example_folders() -> dict[str, Path]:
    """The shipped personas by id: `personas/` next to the package in a checkout, `_examples` inside it in a wheel."""
    return {path.parent.name: path.parent for path in sorted(_examples_root().glob(f"*/{CARD}"))}


def adversarial_prompts() -> tuple[AdversarialPrompt, ...]:
    """Prompts that try to make any character break, shared by all personas.

    Raises:
        BadInput: the shipped file is damaged.
    """
    path = _examples_root() / "adversarial.jsonl"
    prompts = [
        _validated(AdversarialPrompt, {key: row[key] for key in ("id", "attack", "prompt") if key in row}, path, number)
        for number, row in _rows(path)
    ]
    _refuse_twins(path, (prompt.id for prompt in prompts))
    return tuple(prompts)


def _examples_root() -> Path:
    package = Path(persona_lab.__file__).resolve().parent
    inside = package / "_examples"
    return inside if inside.is_dir() else package.parent / "personas"


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.is_file() or not path.stat().st_size:
        return []
    rows = read_rows(path, _MOST_FACTS)
    problems = [
        *rows.skipped,
        *((number, "is not a JSON object") for number, row in rows.rows if not isinstance(row, dict)),
    ]
    if problems:
        number, reason = min(problems)
        raise BadInput(f"{path}: line {number} {reason}.", "Each line is one JSON object; repair or remove it.")
    return list(rows.rows)


def _validated(model: type[_Model], values: dict[str, Any], path: Path, number: int) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()[:3])
        raise BadInput(
            f"{path}, line {number} cannot be used: {what}.",
            'A fact is {"id", "kind": "fact", "question", "paraphrases": [...], "answer", "wrong": [...]}.',
        ) from error


def _refuse_twins(path: Path, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise BadInput(f"{path} has two rows with the id {name!r}.", "Give each its own.")
        seen.add(name)
