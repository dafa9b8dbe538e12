"""What can be said of a folder of safetensors without torch: parameters, bytes, fingerprint, and whether it is usable.

Does not load weights. Headers are bounded, because a model folder may come from anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from persona_lab.errors import BadModel, DiskFull
from persona_lab.home import Home, disk_errors, write_atomic
from persona_lab.types import Variant

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
MAX_JSON_BYTES = 200_000_000
SETTINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files of a folder that decide what its weights say, besides the weights."""

_fingerprints: dict[Path, tuple[tuple[tuple[str, int, int], ...], str]] = {}


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by name."""
    return sorted(folder.glob("*.safetensors"))


def fingerprint(folder: Path) -> str:
    """sha256 (first 12 hex digits) over the folder's safetensors, in order of name; "" where there are none.

    For one file it is the start of that file's sha256. Kept in memory for as long as sizes and times stay the same.
    """
    state = _state(folder)
    if (remembered := _remembered(folder, state)) is not None:
        return remembered
    digest = hashlib.sha256()
    for path in safetensors_files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    _fingerprints[folder] = (state, digest.hexdigest()[:12])
    return _fingerprints[folder][1]


def kept_fingerprint(folder: Path, home: Home) -> str:
    """The same as a process found it before, for as long as sizes and times stay the same; else found, and kept.

    For the page, which must not read gigabytes to draw a slider. What is said of a reply, and what is checked, asks
    `fingerprint`. Losing the file, `<home>/cache/fingerprints.json`, costs time only.
    """
    state = _state(folder)
    if (remembered := _remembered(folder, state)) is not None:
        return remembered
    found = _kept(home).get(str(folder))
    if isinstance(found, dict) and found.get("files") == [list(part) for part in state]:
        name = found.get("fingerprint")
        if isinstance(name, str) and name:
            return name
    return keep_fingerprint(folder, home)


def keep_fingerprint(folder: Path, home: Home) -> str:
    """`fingerprint`, kept for those who ask `kept_fingerprint`; where it cannot be written, they find it themselves."""
    name = fingerprint(folder)
    entry = {"files": [list(part) for part in _state(folder)], "fingerprint": name}
    known = _kept(home)
    if name and known.get(str(folder)) != entry:
        left = {path: other for path, other in known.items() if path != str(folder) and Path(path).is_dir()}
        try:
            write_atomic(home.fingerprints, json.dumps({**left, str(folder): entry}, indent=1) + "\n")
        except (OSError, DiskFull):
            return name
    return name


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each safetensors file."""
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in safetensors_files(folder))


def _remembered(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str | None:
    """The fingerprint that this process found in this state; "" of no weights; None: not found yet."""
    known = _fingerprints.get(folder)
    if known and known[0] == state:
        return known[1]
    return None if state else ""


def _kept(home: Home) -> dict[str, Any]:
    """What was kept; {} where nothing was, or nothing that can be read."""
    try:
        found = json.loads(home.fingerprints.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def weights_name(variant: Variant, home: Home | None = None) -> str:
    """A name for a variant's own weights, by their fingerprint, under which what was computed on them is kept.

    Args:
        home: `kept_fingerprint` is asked instead of the files.
    """
    folder = Path(variant.path)
    found = fingerprint(folder) if home is None else kept_fingerprint(folder, home)
    return f"{variant.quantization or ''}{variant.kind}_{found}"


def settings_digest(folder: Path) -> str:
    """sha256, hex, over the SETTINGS that a folder has: configuration, tokenizer and chat template."""
    found = [(name, sha256(folder / name)) for name in SETTINGS if (folder / name).is_file()]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """sha256, hex, of every file below a folder, by its path in it (with /)."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def sha256(path: Path) -> str:
    """Of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of weights; large files are linked where the disk allows it, since they are never changed in place.

    Raises:
        BadModel: it is gone.
    """
    if not source.is_dir():
        raise BadModel(f"The weights in {source} are gone.", "Delete the variant, or train it again.")
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copyfile(path, copy)


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def weight_disk_errors(folder: Path) -> Iterator[None]:
    """`disk_errors`, and the same for safetensors, whose errors are not OSErrors.

    Raises:
        DiskFull
    """
    from safetensors import SafetensorError

    try:
        with disk_errors(folder):
            yield
    except SafetensorError as error:
        if not any(text in str(error) for text in ("os error 28", "No space left", "os error 112", "os error 122")):
            raise
        with disk_errors(folder):
            raise OSError(errno.ENOSPC, "No space left on device") from error


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        BadModel: it is no safetensors file, or it is cut short.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        if 8 + length + end > size:
            raise ValueError(f"{8 + length + end} bytes expected, {size} found")
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise BadModel(
            f"{path} is not a whole safetensors file: {error}.", "Fetch the model again, or copy the file again."
        ) from error
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def count_parameters(folder: Path) -> int:
    """Numbers in all tensors of the folder (tied weights are stored, and counted, once).

    Raises:
        BadModel: a damaged file.
    """
    return sum(math.prod(t["shape"]) for file in safetensors_files(folder) for t in read_header(file).values())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        BadModel: missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("larger than any file of its kind should be")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BadModel(f"{path} cannot be used: {error}.", "Fetch the model again, or choose another.") from error
    return value


def check_config(config: dict[str, Any], where: str) -> None:
    """Refuse what is not a decoder-only language model of plain transformers.

    Raises:
        BadModel: it wants its own code, is quantised already, or is another kind of model.
    """
    if "auto_map" in config:
        raise BadModel(
            f"{where} wants to run code that comes with it (auto_map in config.json); Persona Lab never does that.",
            "Choose a model that plain transformers knows.",
        )
    if config.get("quantization_config"):
        raise BadModel(
            f"{where} is stored already quantised, so it cannot be fine-tuned or merged exactly.",
            "Choose its unquantised original; `qlora` quantises it while loading.",
        )
    names = config.get("architectures") or [""]
    architecture = names[0] if isinstance(names, list) and isinstance(names[0], str) else ""
    if config.get("is_encoder_decoder") or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise BadModel(
            f"{where} is a {architecture or 'model without a named architecture'}, not a decoder-only language model.",
            "Choose a chat model whose config.json names a ...ForCausalLM architecture.",
        )


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of a usable model folder.

    Raises:
        BadModel: a file is missing or damaged, only pickle weights are there, or the model is of the wrong kind.
    """
    config = read_json(folder / "config.json")
    check_config(config, str(folder))
    if not safetensors_files(folder):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise BadModel(
                f"{folder} has its weights only as pickle ({pickles[0]}), which can run code when opened.",
                "Convert it to safetensors where you trust it, or choose a model that has *.safetensors.",
            )
        raise BadModel(f"{folder} has no *.safetensors files.", "Choose a folder saved with save_pretrained.")
    if not (folder / "tokenizer.json").is_file():
        raise BadModel(
            f"{folder} has no tokenizer.json.", "Save its fast tokenizer there (save_pretrained writes tokenizer.json)."
        )
    if not has_chat_template(folder):
        raise BadModel(
            f"{folder} has no chat template, so it is not known how turns are written for it.",
            "Choose an instruct or chat model, or add its chat_template.jinja to the folder.",
        )
    return config


def has_chat_template(folder: Path) -> bool:
    """Whether the folder says how turns are written (chat_template.jinja, or inside tokenizer_config.json)."""
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))
