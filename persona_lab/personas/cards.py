"""Character cards in and out: V1, V2 and V3, from JSON, PNG, CHARX and YAML, in the V3 shape with every key kept.

It does not interpret the card (prompt.py does) nor the lorebook. Sources: the character card specifications V2
(malfoyslastname/character-card-spec-v2) and V3 (kwaroran/character-card-spec-v3).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona_lab.datasets.toolkit import clean, decode, json_type, read_bytes
from persona_lab.errors import BadInput
from persona_lab.personas.bounded import bounded_json, bounded_yaml, is_zip, unzip
from persona_lab.personas.charx import icon_of, read_charx
from persona_lab.personas.other_characters import as_card, is_other_character
from persona_lab.personas.pictures import as_png, check_avatar, plain_picture
from persona_lab.personas.png import SIGNATURE, Chunk, read_chunks, text_of, write_chunks
from persona_lab.personas.world_info import is_world_info

__all__ = ["CardFile", "card_name", "card_to_json", "card_to_png", "check_avatar", "normalise", "read_card"]

MAX_CARD_BYTES = 64 * 2**20
MAX_NAME = 200
V1_FIELDS = ("name", "description", "personality", "scenario", "first_mes", "mes_example")
_V3_LISTS = ("alternate_greetings", "tags", "group_only_greetings")
_V3_TEXTS = (*V1_FIELDS, "creator_notes", "system_prompt", "post_history_instructions", "creator", "character_version")
_EXPECTED = (
    'A card is {"spec": "chara_card_v3", "data": {"name": ..., "description": ...}}, or just {"name": ..., ...}.'
)
_PICTURES = {b"\xff\xd8\xff": "a JPEG", b"RIFF": "a WebP", b"GIF8": "a GIF"}
_YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class CardFile:
    """A card as read. `card` is a whole V3 object; `spec` what the file was: V1, V2, V3 or another program's name.

    `files`: what else a CHARX held, by path.
    """

    card: dict[str, Any]
    avatar_png: bytes | None
    spec: str
    warnings: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def read_card(path: Path) -> CardFile:
    """Read a card from a PNG (its `ccv3` chunk, else `chara`), a CHARX, a JSON or a YAML file, whatever it is called.

    Raises:
        BadInput: missing, empty, too large, cut off, damaged, no card inside, or a document of another shape.
    """
    data = read_bytes(path, MAX_CARD_BYTES)
    return card_of(data, str(path), path.suffix.lower() in _YAML_SUFFIXES)


def card_of(data: bytes, name: str, yaml: bool = False) -> CardFile:
    """As `read_card`, of a file's content.

    Args:
        yaml: it is called so; else a document that is no JSON is refused.
    """
    if data.startswith(SIGNATURE[:4]):
        return _read_png(data, name)
    if is_zip(data):
        return charx_of(unzip(data, name), name)
    kind = next((what for magic, what in _PICTURES.items() if data.startswith(magic)), "")
    if kind:
        raise BadInput(
            f"{name} is {kind} picture; character cards are PNG, CHARX, JSON or YAML files.",
            "Download the card in its original form: other pictures lose what is in it.",
        )
    return of_document(document(data, name, yaml), name)


def document(data: bytes, name: str, yaml: bool = False) -> Any:
    """A JSON or YAML file's value."""
    text = decode(data, name)
    if not yaml and text.lstrip()[:1] not in ("{", "[", '"'):
        raise BadInput(
            f"{name} is a text file that begins with {text.strip()[:30]!r}, not a character card.",
            "Character cards are PNG, CHARX or JSON files; YAML is read where the name ends in .yaml or .yml.",
        )
    return bounded_yaml(text, name) if yaml else bounded_json(text, name)


def of_document(raw: Any, name: str) -> CardFile:
    """A card that came as JSON or YAML.

    Raises:
        BadInput: it is a lorebook, or of another shape.
    """
    if is_world_info(raw):
        raise BadInput(
            f"{name} is a world-info file ({len(raw.get('entries') or raw.get('data') or ())} lorebook entries), "
            "not a character.",
            "Add it to a character's lorebook: persona-lab personas import FILE --into ID, or “Lorebook” in the page.",
        )
    if is_other_character(raw):
        raw, kind = as_card(raw)
        card, _, notes = normalise(raw, name)
        return CardFile(card, None, kind, notes)
    card, spec, notes = normalise(raw, name)
    return CardFile(card, None, spec, notes)


def charx_of(unpacked: Mapping[str, bytes], name: str) -> CardFile:
    """The card of a CHARX's files, with its icon as the avatar.

    Raises:
        BadInput
    """
    raw, files = read_charx(unpacked, name)
    card, spec, notes = normalise(raw, name)
    icon = icon_of(card, files)
    if icon is None:
        return CardFile(card, None, f"CHARX, {spec}", notes, files)
    try:
        avatar = as_png(icon, f"{name}: its picture")
    except BadInput as error:  # the picture is one of many assets, and the character can do without
        return CardFile(card, None, f"CHARX, {spec}", (*notes, error.message), files)
    return CardFile(card, avatar, f"CHARX, {spec}", notes, files)


def _read_png(data: bytes, name: str) -> CardFile:
    chunks = read_chunks(data, name)
    found = {chunk.keyword: chunk for chunk in chunks if chunk.keyword in ("ccv3", "chara")}
    if not found:
        raise BadInput(
            f"{name} is a PNG image without a character card in it.",
            "Choose the original file: pictures that were edited, or saved from some sites, lose the card.",
        )
    avatar = write_chunks(chunks, {"ccv3": b"", "chara": b""})
    check_avatar(avatar, name)
    notes: list[str] = []
    failure: BadInput | None = None
    for keyword in ("ccv3", "chara"):
        if keyword not in found:
            continue
        try:
            card, spec, more = normalise(_embedded(found[keyword], name), name)
            return CardFile(card, avatar, spec, (*notes, *more))
        except BadInput as error:  # the other chunk may still be whole
            failure = failure or error
            notes.append(f"The {keyword!r} chunk could not be used: {error.message}")
    assert failure is not None
    raise failure


def _embedded(chunk: Chunk, name: str) -> Any:
    try:
        raw = base64.b64decode(b"".join(text_of(chunk, name).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(
            f"{name}: its {chunk.keyword!r} chunk is not base64 ({error}).", "Export the card again."
        ) from error
    inside = f"The card in {name}"
    if not raw:
        raise BadInput(f"{inside} is empty.", "Export the card again.")
    return bounded_json(decode(raw, inside), inside)


def normalise(raw: Any, name: str) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Any card object as a V3 one.

    Root-level V1 fields fill what `data` lacks; unknown keys of the root and of `data` are kept where they are.

    Args:
        name: what errors call the file.

    Returns:
        the V3 object, what it was (V1, V2 or V3), and warnings for people.

    Raises:
        BadInput: not a card; says what was found and what is expected.
    """
    if not isinstance(raw, dict):
        raise BadInput(f"{name} holds a JSON {json_type(raw)}, not a character card.", _EXPECTED)
    spec = _spec_of(raw)
    inner = raw.get("data")
    if inner is not None and not isinstance(inner, dict):
        raise BadInput(f"{name}: `data` is a JSON {json_type(inner)}, but an object is expected.", _EXPECTED)
    data = dict(inner or {})
    root = {key: value for key, value in raw.items() if key not in ("spec", "spec_version", "data")}
    if inner is None:
        data, root = root, {}
    else:
        for key in V1_FIELDS:  # V1 fields beside V2 data: kept, and used where data has none
            if root.get(key) and not data.get(key):
                data[key] = root[key]
    notes = _repair(data, name)
    if spec == "V1":
        data["name"] = card_name(data)
    version = raw.get("spec_version") if spec == "V3" else None
    version = version if isinstance(version, str) and version else "3.0"
    return {**root, "spec": "chara_card_v3", "spec_version": version, "data": data}, spec, tuple(notes)


def card_name(data: Mapping[str, Any]) -> str:
    """The character's name, as a tokenizer takes it; the card keeps it as it was written."""
    return clean(data["name"])


def _spec_of(raw: Mapping[str, Any]) -> str:
    spec = str(raw.get("spec", ""))
    if spec == "chara_card_v3":
        return "V3"
    return "V2" if spec or isinstance(raw.get("data"), dict) else "V1"


def _repair(data: dict[str, Any], name: str) -> list[str]:
    """Check types and fill in the fields V3 requires; changes `data`."""
    notes: list[str] = []
    if not isinstance(data.get("name"), str) or not clean(data["name"]):
        found = ", ".join(sorted(map(str, data))[:12]) or "no fields"
        what = (
            "has no name"
            if "name" not in data or not data["name"]
            else f"has a name that is a {json_type(data['name'])}"
        )
        raise BadInput(f"{name} {what}, so it is no usable character card (found: {found}).", _EXPECTED)
    if len(data["name"]) > MAX_NAME:
        raise BadInput(
            f"{name}: the name has {len(data['name'])} characters; at most {MAX_NAME} are allowed.", "Shorten it."
        )
    for key in _V3_TEXTS:
        value = data.setdefault(key, "")
        if value is None:
            data[key] = ""
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            data[key] = str(value)
        elif not isinstance(value, str):
            raise BadInput(f"{name}: `{key}` is a JSON {json_type(value)}, but text is expected.", _EXPECTED)
    for key in _V3_LISTS:
        value = data.setdefault(key, [])
        if not isinstance(value, list):
            data[key] = [part.strip() for part in value.split(",")] if isinstance(value, str) and value.strip() else []
            notes.append(f"`{key}` was not a list and was made one.")
    if not isinstance(data.setdefault("extensions", {}), dict):
        raise BadInput(f"{name}: `extensions` is a JSON {json_type(data['extensions'])}, not an object.", _EXPECTED)
    return notes


def card_to_json(card: Mapping[str, Any]) -> str:
    """The card as a JSON document, readable, ending in a line end."""
    return json.dumps(card, ensure_ascii=False, indent=2) + "\n"


def as_v2(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card for programs that know V2 only: what V3 has beyond it stays, as keys unknown to them."""
    data = dict(card.get("data", {}))
    if data.get("group_only_greetings") == []:
        del data["group_only_greetings"]  # V3 requires it, so it was put in when this card came as V2
    return {**card, "spec": "chara_card_v2", "spec_version": "2.0", "data": data}


def card_to_png(card: Mapping[str, Any], avatar_png: bytes | None) -> bytes:
    """A PNG with the card as V3 (`ccv3`) and V2 (`chara`, for other programs); stale ones are removed.

    Args:
        avatar_png: the picture; without one, a plain 400 x 600 one is made.
    """
    picture = avatar_png if avatar_png is not None else plain_picture()
    texts = {
        keyword: base64.b64encode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        for keyword, value in (("ccv3", card), ("chara", as_v2(card)))
    }
    return write_chunks(read_chunks(picture, "The avatar"), texts)
