"""Base models from the Hugging Face hub: safetensors, JSON and templates only; never code, never pickle.

Needs the network; says so within seconds where there is none.
"""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import BadModel, ModelUnavailable, PersonaLabError
from persona_lab.home import Home
from persona_lab.models import cache
from persona_lab.models.weights import check_config, check_folder, count_parameters, read_json
from persona_lab.types import BaseModelInfo

if TYPE_CHECKING:
    from persona_lab.api import Reporter

PATTERNS = [
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja", "LICENSE*"),
]
LOOKUP_SECONDS = 10.0


def ensure(info: BaseModelInfo, home: Home, reporter: Reporter) -> BaseModelInfo:
    """Fetch the hub model `info.id` into the home.

    Raises:
        ModelUnavailable: no network, no such model, or no access to it. BadModel: nothing usable in it. DiskFull
    """
    reporter.phase(f"Looking up {info.id} on the hub")
    files, revision, license_name = _look_up(info.id)
    total = sum(files.values())

    def make(folder: Path) -> dict[str, Any]:
        _download(info.id, revision, files, folder, reporter)
        config = check_folder(_with_fast_tokenizer(folder))
        return {
            "id": info.id,
            "name": info.name,
            "source": f"hub:{info.id}@{revision}",
            "license": license_name,
            "parameters": count_parameters(folder),
            "architecture": config["architectures"][0],
        }

    return cache.build(home, info.key, reporter, total + 50_000_000, make)


def _look_up(model_id: str) -> tuple[dict[str, int], str, str]:
    """Files to fetch with their bytes, the exact revision, and the licence."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    try:
        found = HfApi().model_info(model_id, files_metadata=True, timeout=LOOKUP_SECONDS)
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        raise _unavailable(model_id, error) from error
    sizes = {s.rfilename: s.size or 0 for s in found.siblings or () if "/" not in s.rfilename}
    files = {name: sizes[name] for name in filter_repo_objects(sizes, allow_patterns=PATTERNS)}
    if not any(name.endswith(".safetensors") for name in files):
        raise BadModel(
            f"{model_id} has no safetensors on the hub; other weight formats can run code when opened.",
            "Choose a model that has *.safetensors.",
        )
    license_name = getattr(found.card_data, "license", None) if found.card_data else None
    return files, str(found.sha), str(license_name or "unknown")


def _download(model_id: str, revision: str, files: dict[str, int], folder: Path, reporter: Reporter) -> None:
    """Fetch config.json and refuse early, then the rest in a thread while progress is reported."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(model_id, "config.json", revision=revision, local_dir=folder)
    except Exception as error:  # as above
        raise _unavailable(model_id, error) from error
    check_config(read_json(folder / "config.json"), model_id)
    total = max(sum(files.values()), 1)
    reporter.phase(f"Downloading {model_id} ({total / 1e6:.0f} MB)", total)
    failures: list[Exception] = []
    thread = threading.Thread(
        target=_fetch_all, args=(model_id, revision, sorted(files), folder, failures), daemon=True
    )
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        done = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        reporter.step(min(done, total), total)
    if failures:
        raise _unavailable(model_id, failures[0], folder) from failures[0]


def _fetch_all(model_id: str, revision: str, names: list[str], folder: Path, failures: list[Exception]) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        snapshot_download(model_id, revision=revision, local_dir=folder, allow_patterns=names)
    except Exception as error:  # noqa: BLE001 - handed to the waiting thread, which raises it with a reason
        failures.append(error)


def _unavailable(model_id: str, error: Exception, folder: Path | None = None) -> PersonaLabError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if folder is not None and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return cache.disk_full(folder.parent)
    if isinstance(error, GatedRepoError):
        return ModelUnavailable(
            f"{model_id} is gated: its owner wants you to accept terms first.",
            "Accept them on its page, then log in with `hf auth login`.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelUnavailable(f"The hub has no model {model_id} (or it is private).", "Check the spelling.")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return ModelUnavailable(
        f"{model_id} could not be fetched from the hub: {reason}.",
        "Check the network, or use `starter`, a local folder or a .gguf file.",
    )


def _with_fast_tokenizer(folder: Path) -> Path:
    """Writes tokenizer.json where a model has only the older files of its tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            tokenizer.save_pretrained(folder)
        except (ValueError, OSError, ImportError, KeyError) as error:
            raise BadModel(
                f"{folder.name} has no tokenizer.json and it cannot be made: {str(error).splitlines()[0]}",
                "Choose a model with tokenizer.json.",
            ) from error
    return folder
