"""Characters out of a home: cards that name their weights, and bundles to pass on. Never overwrites a file."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import persona_lab
from persona_lab.catalog import Catalog
from persona_lab.datasets.held_out import LEDGER
from persona_lab.datasets.store import save_dataset
from persona_lab.errors import BadInput, UnknownName
from persona_lab.home import refuse_existing, write_atomic
from persona_lab.models.weights import safetensors_files, sha256
from persona_lab.personas.bounded import unzip
from persona_lab.personas.bundle import ASSETS, MAX_LICENCE, UNSTATED, read_bundle, write_bundle
from persona_lab.personas.cards import card_to_json, card_to_png
from persona_lab.personas.charx import write_charx
from persona_lab.personas.store import PROBES, example_folders, load_assets
from persona_lab.sharing import PROVENANCE
from persona_lab.types import Dataset, DatasetSummary, Persona, Variant, now

FORMATS = ("png", "json", "charx", "bundle")
SUFFIXES = {"png": "png", "json": "json", "charx": "charx", "bundle": "persona.zip"}
WEIGHTS = "persona_lab/weights"
"""Key of a card's `extensions` that names the weights trained for it."""
MAX_HISTORY = 20


def export_persona(
    catalog: Catalog,
    persona: Persona,
    format: str,
    out: Path,
    variants: Sequence[Variant] = (),
    data: tuple[Dataset, DatasetSummary] | None = None,
    licence: str = "",
) -> Path:
    """Write a persona as `png`, `json`, `charx` or `bundle`; refuses to overwrite. Gives the file.

    Args:
        variants: named in the exported card's `extensions`, so that whoever has the weights can match them.
        data, licence: of a bundle.

    Raises:
        UnknownName, BadInput
    """
    if format not in FORMATS:
        raise UnknownName("card format", format, FORMATS)
    if out.is_dir():
        out = out / f"{persona.id}.{SUFFIXES[format]}"
    refuse_existing(out)
    card = with_weights(persona.card, variants)
    avatar = Path(persona.avatar).read_bytes() if persona.avatar else None
    text = card_to_json(card)
    if format == "json":
        write_atomic(out, text)
    elif format == "png":
        write_atomic(out, card_to_png(card, avatar))
    elif format == "charx":
        write_atomic(out, write_charx(text, card, load_assets(_folder(catalog, persona)), avatar))
    else:
        write_atomic(out, _bundle(catalog, persona.model_copy(update={"card": card}), avatar, data, variants, licence))
    return out


def with_weights(card: Mapping[str, Any], variants: Sequence[Variant]) -> dict[str, Any]:
    """The card, with the weights trained for it named in `extensions["persona_lab/weights"]`."""
    if not variants:
        return dict(card)
    named = copy.deepcopy(dict(card))
    named["data"].setdefault("extensions", {})[WEIGHTS] = [
        {
            "variant": variant.id,
            "name": variant.name,
            "base": variant.base,
            "strategy": variant.strategy,
            "fingerprint": variant.fingerprint,
            "sha256": _sha256s(Path(variant.path)) if variant.path else {},
        }
        for variant in variants
    ]
    return named


def _sha256s(folder: Path) -> dict[str, str]:
    """sha256 of each safetensors file by its name."""
    return {path.name: sha256(path) for path in safetensors_files(folder)}


def _bundle(
    catalog: Catalog,
    persona: Persona,
    avatar: bytes | None,
    data: tuple[Dataset, DatasetSummary] | None,
    variants: Sequence[Variant],
    licence: str,
) -> bytes:
    folder = _folder(catalog, persona)
    earlier = _earlier(folder)
    stated = (licence.strip() or str(earlier.get("licence") or "") or UNSTATED)[:MAX_LICENCE]
    files: dict[str, bytes | str] = {"card.json": card_to_json(persona.card)}
    if avatar is not None:
        files["avatar.png"] = avatar
    files |= {ASSETS + path: content for path, content in load_assets(folder).items()}
    if data is not None:
        with tempfile.TemporaryDirectory(prefix="persona-lab-") as made:
            save_dataset(Path(made) / "dataset.jsonl", data[0])
            files["dataset.jsonl"] = (Path(made) / "dataset.jsonl").read_bytes()
        files["dataset.summary.json"] = data[1].model_dump_json(indent=1)
    for name in (PROBES, LEDGER):
        if (folder / name).is_file() and (folder / name).stat().st_size:
            files[name] = (folder / name).read_bytes()
    files[PROVENANCE] = card_to_json(_provenance(persona, data, variants, earlier))
    files["LICENSE.txt"] = stated + "\n"
    files["README.txt"] = _readme(persona, data, stated)
    manifest = {
        "created": now(),
        "made_with": f"Persona Lab {persona_lab.__version__}",
        "persona": {"id": persona.id, "name": persona.name},
        "licence": stated.splitlines()[0][:200],
    }
    packed = write_bundle(files, manifest)
    read_bundle(unzip(packed, "The new bundle"), "The new bundle")  # what cannot be read back must not be passed on
    return packed


def _folder(catalog: Catalog, persona: Persona) -> Path:
    """The persona's files: in the home, or of a shipped example that is not installed."""
    own = catalog.home.persona(persona.id)
    return own if own.is_dir() else example_folders().get(persona.id, own)


def _earlier(folder: Path) -> dict[str, Any]:
    """Where the persona came from, if it came in a bundle."""
    path = folder / PROVENANCE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(
            f"{path} is damaged: {error}.", "Repair or remove it; it says where the persona is from."
        ) from error
    return found if isinstance(found, dict) else {}


def _provenance(
    persona: Persona,
    data: tuple[Dataset, DatasetSummary] | None,
    variants: Sequence[Variant],
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    known = {key: persona.data[key] for key in ("creator", "character_version", "source") if persona.data.get(key)}
    document: dict[str, Any] = {"card": known, "exported": now(), "exported_from": persona.id}
    if data is not None:
        summary = data[1]
        kept = ("source", "format", "why", "version", "counts", "fingerprint", "created", "warnings")
        document["dataset"] = summary.model_dump(mode="json", include=set(kept))
        document["rows_from"] = sorted({_origin(c.source) for c in data[0].conversations if c.source})[:200]
    if variants:
        document["weights"] = [v.model_dump(mode="json", include={"id", "base", "strategy", "seed"}) for v in variants]
    if earlier:
        history = earlier.get("before")
        history = history if isinstance(history, list) else []
        last = {key: value for key, value in earlier.items() if key != "before"}
        document["before"] = [*history, last][-MAX_HISTORY:]
    return document


def _origin(source: str) -> str:
    """The file a row came from, without its number and without the folders of this machine."""
    return Path(re.sub(r":\d+$", "", source).replace("\\", "/")).name[:200]


def _readme(persona: Persona, data: tuple[Dataset, DatasetSummary] | None, licence: str) -> str:
    rows = len(data[0].conversations) if data else 0
    return (
        f"{persona.name}, a character for Persona Lab\n\n"
        "Take it in with: persona-lab personas import THIS_FILE\n"
        f"or under “Import” in the Personas tab. It holds the card, {rows} conversations and its probes.\n"
        "card.json alone works in any program that reads character cards.\n\n"
        f"Licence: {licence.splitlines()[0][:200]}\n"
    )
