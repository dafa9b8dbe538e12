"""CHARX: a zip with `card.json` at its root and the card's assets beside it; every file is kept.

Source: character card specification V3 (kwaroran/character-card-spec-v3). Its asset addresses are spelled `embeded://`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from persona_lab.datasets.toolkit import decode
from persona_lab.errors import BadInput
from persona_lab.personas.bounded import bounded_json, pack
from persona_lab.personas.pictures import as_png

CARD = "card.json"
EMBEDDED = "embeded://"
_EMBEDDED = (EMBEDDED, "embedded://")
ICON = "assets/icon/image/main.png"


def read_charx(unpacked: Mapping[str, bytes], name: str) -> tuple[Any, dict[str, bytes]]:
    """The card object, as written, and every other file of the archive by its path.

    Args:
        unpacked: the archive's files (`bounded.unzip`).

    Raises:
        BadInput: there is no card in it, or it is no JSON.
    """
    files = dict(unpacked)
    if CARD not in files:
        listed = ", ".join(sorted(files)[:5]) or "nothing"
        raise BadInput(f"{name} is a zip without a {CARD} at its top (it holds {listed}).", "It is no CHARX character.")
    raw = bounded_json(decode(files.pop(CARD), f"{name}: {CARD}"), f"{name}: {CARD}")
    return raw, files


def icon_of(card: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes | None:
    """The character's picture among the assets, as it is in the archive; None where there is none."""
    icons = [asset for asset in _assets(card) if asset.get("type") == "icon"]
    icons.sort(key=lambda asset: asset.get("name") != "main")
    for asset in icons:
        path = _path(asset)
        if path in files:
            return files[path]
    return None


def write_charx(card_json: str, card: Mapping[str, Any], files: Mapping[str, bytes], avatar_png: bytes | None) -> bytes:
    """A CHARX of the card, its assets, and the avatar where no asset is one yet.

    Args:
        card_json: the card as text; used where nothing has to be added to it.
    """
    from persona_lab.personas.cards import card_to_json

    kept = {path: content for path, content in files.items() if path != CARD}
    if avatar_png is not None:
        kept, card, card_json = _with_avatar(kept, card, card_json, avatar_png, card_to_json)
    return pack({CARD: card_json, **kept})


def _with_avatar(
    files: dict[str, bytes], card: Mapping[str, Any], text: str, avatar: bytes, as_json: Any
) -> tuple[dict[str, bytes], Mapping[str, Any], str]:
    """The avatar in the place of the icon that it came from, else as an asset of its own."""
    present = icon_of(card, files)
    if present is not None and (present == avatar or _made_of(present, avatar)):
        return files, card, text
    mains = [a for a in _assets(card) if a.get("type") == "icon" and a.get("name") == "main"]
    path = next((_path(a) for a in mains if _path(a).lower().endswith(".png")), "") or ICON
    files = {**files, path: avatar}
    if any(_path(a) == path for a in mains):
        return files, card, text
    card = copy.deepcopy(dict(card))
    own = {"type": "icon", "uri": EMBEDDED + path, "name": "main", "ext": "png"}
    rest = [a for a in _assets(card) if not (a.get("type") == "icon" and a.get("name") == "main")]
    card["data"]["assets"] = [own, *rest]
    return files, card, as_json(card)


def _made_of(icon: bytes, avatar: bytes) -> bool:
    """Whether the avatar is what an import makes of this icon."""
    try:
        return as_png(icon, "The icon") == avatar
    except BadInput:
        return False  # a damaged icon never became an avatar


def _assets(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = card.get("data")
    assets = data.get("assets") if isinstance(data, dict) else None
    return [asset for asset in assets if isinstance(asset, dict)] if isinstance(assets, list) else []


def _path(asset: Mapping[str, Any]) -> str:
    """The path in the archive that an asset's address names; empty for other addresses."""
    uri = asset.get("uri")
    if not isinstance(uri, str):
        return ""
    return next((uri[len(prefix) :] for prefix in _EMBEDDED if uri.lower().startswith(prefix)), "")
