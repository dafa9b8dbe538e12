"""A persona to pass on, as one zip: card, picture, data, probes, where it came from, licence, and checksums.

    bundle.json          {"format": "persona-lab-bundle", "version": 1, "created", "made_with", "persona", "licence"}
    card.json  avatar.png  assets/...                the character
    dataset.jsonl  dataset.summary.json              the newest version of its data, with its split
    probes.jsonl  held_out.jsonl                     what it is asked, and fingerprints of what was never trained on
    provenance.json  LICENSE.txt  README.txt         for people
    SHA256SUMS                                       of every other file, as `sha256sum -c` reads it

Weights are not in it: exporters write those. This module knows no library; sharing.py does.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persona_lab.datasets.store import load_dataset
from persona_lab.datasets.toolkit import decode
from persona_lab.errors import BadInput
from persona_lab.personas.bounded import MAX_ENTRY, bounded_json, pack
from persona_lab.personas.cards import CardFile, normalise
from persona_lab.personas.pictures import check_avatar
from persona_lab.types import Dataset, DatasetSummary

FORMAT, VERSION = "persona-lab-bundle", 1
MANIFEST, SUMS = "bundle.json", "SHA256SUMS"
ASSETS = "assets/"
MAX_DATASET = 16 * 2**20
MAX_FILE = 64 * 2**20
MAX_LICENCE = 20_000
UNSTATED = "No licence was stated by whoever made this bundle: ask before you pass it on."
_SUM_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_MADE_ANEW = "Ask for the bundle again, or export it again."


@dataclass(frozen=True)
class Bundle:
    """A bundle as read, every checksum verified. `probes` and `held_out` are the files' texts."""

    card: CardFile
    dataset: Dataset | None = None
    summary: DatasetSummary | None = None
    probes: str = ""
    held_out: str = ""
    licence: str = UNSTATED
    provenance: dict[str, Any] = field(default_factory=dict)


def is_bundle(files: Mapping[str, bytes]) -> bool:
    """Whether an unpacked zip is a bundle rather than a CHARX."""
    return MANIFEST in files and SUMS in files


def write_bundle(files: Mapping[str, bytes | str], manifest: Mapping[str, Any]) -> bytes:
    """A bundle of these files, with its manifest and checksums.

    Raises:
        BadInput: a file is too large to be read back.
    """
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    head = {"format": FORMAT, "version": VERSION, **manifest}
    contents = {MANIFEST: (json.dumps(head, ensure_ascii=False, indent=2) + "\n").encode(), **contents}
    for path, content in contents.items():
        most = MAX_DATASET if path == "dataset.jsonl" else MAX_ENTRY
        if len(content) > most:
            raise BadInput(
                f"{path} has {len(content) / 2**20:,.0f} MiB, too much for a bundle (at most {most / 2**20:,.0f} MiB).",
                "Make it smaller, or pass the file on by itself.",
            )
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in contents.items())
    packed = pack({**contents, SUMS: sums})
    if len(packed) > MAX_FILE:
        raise BadInput(f"The bundle would have {len(packed) / 2**20:,.0f} MiB; 64 are read.", "Use fewer assets.")
    return packed


def read_bundle(files: Mapping[str, bytes], name: str) -> Bundle:
    """A bundle of its unpacked files (`bounded.unzip`).

    Raises:
        BadInput: of another version, incomplete, changed since it was made, or a part that cannot be used.
    """
    _check_sums(files, name)
    manifest = _object(files, MANIFEST, name)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        found = f"{str(manifest.get('format'))[:40]} {str(manifest.get('version'))[:10]}"
        raise BadInput(f"{name} is a bundle of the format {found!r}, which this version cannot read.", "Update it.")
    if "card.json" not in files:
        raise BadInput(f"{name} is a bundle without a card.json.", _MADE_ANEW)
    card, spec, notes = normalise(_json(files, "card.json", name), f"{name}: card.json")
    avatar = files.get("avatar.png")
    if avatar is not None:
        check_avatar(avatar, f"{name}: avatar.png")
    assets = {path[len(ASSETS) :]: content for path, content in files.items() if path.startswith(ASSETS)}
    dataset, summary = _data(files, name)
    licence = _text(files, "LICENSE.txt", name)[:MAX_LICENCE].strip() or UNSTATED
    return Bundle(
        card=CardFile(card, avatar, f"bundle, {spec}", notes, assets),
        dataset=dataset,
        summary=summary,
        probes=_text(files, "probes.jsonl", name),
        held_out=_text(files, "held_out.jsonl", name),
        licence=licence,
        provenance=_object(files, "provenance.json", name) if "provenance.json" in files else {},
    )


def _check_sums(files: Mapping[str, bytes], name: str) -> None:
    stated: dict[str, str] = {}
    for line in _text(files, SUMS, name).split("\n"):
        match = _SUM_LINE.fullmatch(line)
        if match:
            stated[match[2]] = match[1]
        elif line.strip():
            raise BadInput(f"{name}: {SUMS} has a line that is no checksum: {line[:60]!r}.", _MADE_ANEW)
    inside = set(files) - {SUMS}
    if missing := sorted(set(stated) - inside):
        raise BadInput(f"{name} is incomplete: {missing[0][:100]!r} is missing.", _MADE_ANEW)
    if extra := sorted(inside - set(stated)):
        raise BadInput(f"{name} holds {extra[0][:100]!r}, which its checksums do not name.", _MADE_ANEW)
    for path, digest in stated.items():
        if hashlib.sha256(files[path]).hexdigest() != digest:
            raise BadInput(f"{name}: {path[:100]!r} was changed since the bundle was made.", _MADE_ANEW)


def _data(files: Mapping[str, bytes], name: str) -> tuple[Dataset | None, DatasetSummary | None]:
    if "dataset.jsonl" not in files:
        return None, None
    content = files["dataset.jsonl"]
    if len(content) > MAX_DATASET:
        raise BadInput(f"{name}: its dataset has {len(content) / 2**20:,.0f} MiB; at most 16 are read.", _MADE_ANEW)
    with tempfile.TemporaryDirectory(prefix="persona-lab-") as folder:
        path = Path(folder) / "dataset.jsonl"
        path.write_bytes(content)
        try:
            dataset = load_dataset(path)
        except BadInput as error:
            told = error.message.replace(str(path), f"{name}: dataset.jsonl")
            raise BadInput(told, _MADE_ANEW) from error
    try:
        summary = DatasetSummary.model_validate(_object(files, "dataset.summary.json", name))
    except ValidationError as error:
        raise BadInput(f"{name}: dataset.summary.json cannot be used: {_first(error)}.", _MADE_ANEW) from error
    return dataset, summary


def _first(error: ValidationError) -> str:
    one = error.errors()[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}"


def _text(files: Mapping[str, bytes], path: str, name: str) -> str:
    content = files.get(path, b"")
    return decode(content, f"{name}: {path}") if content.strip() else ""


def _json(files: Mapping[str, bytes], path: str, name: str) -> Any:
    if path not in files:
        raise BadInput(f"{name} is incomplete: {path!r} is missing.", _MADE_ANEW)
    return bounded_json(_text(files, path, name), f"{name}: {path}")


def _object(files: Mapping[str, bytes], path: str, name: str) -> dict[str, Any]:
    value = _json(files, path, name)
    if not isinstance(value, dict):
        raise BadInput(f"{name}: {path} is not a JSON object.", _MADE_ANEW)
    return value
