"""Base models through one door: `starter`, a kept foundation, a hub id, a local folder, a GGUF file.

`describe` and `list_models` are light (JSON only, nothing is fetched); `ensure` fetches and converts, in a worker.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import BadInput, BadModel, UnknownName
from persona_lab.home import Home
from persona_lab.models import cache, embedding, hub, kept, starter
from persona_lab.models.gguf import convert_gguf, read_gguf
from persona_lab.models.weights import check_folder, count_parameters
from persona_lab.types import BaseModelInfo, slug

if TYPE_CHECKING:
    from persona_lab.api import Reporter

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")
ACCEPTED = "A base model is `starter`, a hub id (owner/name), a folder with safetensors, or a .gguf file."


def describe(model_id: str, home: Home) -> BaseModelInfo:
    """What is known of a base model; never fetches, converts or imports torch.

    Raises:
        UnknownName, BadInput: no such model or path. BadModel: a folder or file that cannot be used.
    """
    if model_id == starter.ID:
        return starter.describe(home)
    known = kept.find(home, model_id)
    if known is not None:
        return known
    path = _as_path(model_id, home)
    if path is None:
        return _describe_hub(model_id, home)
    if path.is_dir():
        return _describe_folder(path, home)
    return _describe_gguf(path, home)


def ensure(model_id: str, home: Home, reporter: Reporter) -> BaseModelInfo:
    """The base model, ready to load: fetched, checked and converted if need be. One process at a time; atomic.

    Raises:
        As `describe`; ModelUnavailable: it cannot be fetched. DiskFull, OutOfMemory, Cancelled
    """
    info = describe(model_id, home)
    if info.ready:
        return info
    if model_id == starter.ID:
        return starter.ensure(home, reporter)
    path = _as_path(model_id, home)
    if path is None:
        return hub.ensure(info, home, reporter)
    return _ensure_gguf(path, info, home, reporter)


def list_models(home: Home) -> list[BaseModelInfo]:
    """The starter, ready or not, then every model cached in this home, by name."""
    found = [starter.describe(home)]
    for marker in sorted((home.root / "models").glob(f"*/{cache.MARKER}")):
        key = marker.parent.name
        if key in (starter.ID, embedding.KEY) or key.startswith("."):  # no base model, the latter
            continue
        try:
            info = cache.cached(home, key)
        except BadModel:
            continue  # a damaged folder is reported when it is asked for by name
        if info is not None:
            found.append(info)
    return found


def _as_path(model_id: str, home: Home) -> Path | None:
    """The absolute path that `model_id` names, or None for a hub id.

    Raises:
        BadInput: it looks like a path, and nothing is there. UnknownName: it is no kind of model.
    """
    if not model_id.strip() or "\x00" in model_id or len(model_id) > 4096:
        raise BadInput(f"{model_id[:80]!r} is not the name of a base model.", ACCEPTED)
    path = Path(model_id).expanduser()
    if path.exists() and not (path.is_dir() and not (path / "config.json").exists() and HUB_ID.match(model_id)):
        return path.resolve()
    if model_id.lower().endswith(".gguf") or path.is_absolute() or model_id.startswith((".", "~")):
        raise BadInput(f"There is no model at {path}.", ACCEPTED)
    if HUB_ID.match(model_id) and ".." not in model_id:
        return None
    error = UnknownName("base model", model_id, [starter.ID, *kept.ids(home)])
    error.fix = f"{error.fix} {ACCEPTED}"
    raise error


def _key(name: str, identity: str) -> str:
    return f"{slug(name, 'model')}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _describe_hub(model_id: str, home: Home) -> BaseModelInfo:
    key = _key(model_id.replace("/", "_"), model_id)
    return cache.cached(home, key) or BaseModelInfo(
        id=model_id, key=key, name=model_id, path=str(home.model(key)), ready=False
    )


def _describe_folder(path: Path, home: Home) -> BaseModelInfo:
    if path.parent == home.root / "models" and (path / cache.MARKER).is_file():
        known = cache.cached(home, path.name)
        if known is not None:
            return known
    config = check_folder(path)
    return BaseModelInfo(
        id=str(path),
        key=_key(path.name, str(path)),
        name=path.name,
        path=str(path),
        ready=True,
        parameters=count_parameters(path),
        architecture=config["architectures"][0],
        config=config,
    )


def _describe_gguf(path: Path, home: Home) -> BaseModelInfo:
    header = read_gguf(path)
    state = path.stat()
    # size and time are in the key, so that a replaced file is converted anew
    key = _key(path.stem, f"{path}:{state.st_size}:{state.st_mtime_ns}")
    return cache.cached(home, key) or BaseModelInfo(
        id=str(path),
        key=key,
        name=str(header.metadata.get("general.name") or path.stem),
        path=str(home.model(key)),
        ready=False,
        license=str(header.metadata.get("general.license") or "unknown"),
        parameters=header.parameters,
        architecture=str(header.metadata["general.architecture"]),
        config=header.config(),
    )


def _ensure_gguf(path: Path, info: BaseModelInfo, home: Home, reporter: Reporter) -> BaseModelInfo:
    def make(folder: Path) -> dict[str, Any]:
        convert_gguf(path, folder, reporter)
        config = check_folder(folder)
        return {
            "id": info.id,
            "name": info.name,
            "source": str(path),
            "license": info.license,
            "parameters": count_parameters(folder),
            "architecture": config["architectures"][0],
        }

    return cache.build(home, info.key, reporter, 2 * info.parameters + 50_000_000, make)
