"""Checkpoints of one stage of training: tensors as safetensors, the rest as JSON, never a pickle.

    checkpoints/<stage>/step-000120/   state.safetensors · best.safetensors · state.json · valid.json
    checkpoints/<stage>/finished/      best.safetensors · state.json · valid.json

A checkpoint is written into a temporary folder, flushed to disk and renamed; `valid.json` holds the sha256 of each
file, so that a damaged one is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from persona_lab.home import disk_errors, write_atomic

KEPT = 2
MARKER = "valid.json"
FINISHED = "finished"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds. `tensors` is empty for a finished stage; `best` are the best weights so far."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]


class CheckpointStore:
    """The checkpoints of one stage; `signature` says what they are for, and others are passed over.

    Args:
        folder: `<run>/checkpoints/<stage>`; made when first written to.
        signature: anything JSON that must be equal to go on from a checkpoint (settings, seed, weights' shapes).
    """

    def __init__(self, folder: Path, signature: Mapping[str, Any]) -> None:
        self.folder = folder
        self.signature = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()

    def write(
        self, step: int, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], best: Mapping[str, torch.Tensor]
    ) -> Path:
        """Write the checkpoint after `step` steps and drop all but the newest two.

        Raises:
            DiskFull: earlier checkpoints are untouched.
        """
        target = self._write(f"step-{step:06d}", state, {"state": tensors, "best": best})
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(old)
        return target

    def finish(self, state: Mapping[str, Any], best: Mapping[str, torch.Tensor]) -> Path:
        """Keep the stage's outcome and drop its steps, which are of no more use."""
        target = self._write(FINISHED, state, {"best": best})
        for old in self._steps():
            shutil.rmtree(old)
        return target

    def finished(self) -> Saved | None:
        """The outcome of this stage, if it was finished."""
        return self._read(self.folder / FINISHED)

    def newest(self) -> Saved | None:
        """The newest whole checkpoint, or None."""
        for path in reversed(self._steps()):
            saved = self._read(path)
            if saved is not None:
                return saved
        return None

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _write(self, name: str, state: Mapping[str, Any], files: Mapping[str, Mapping[str, torch.Tensor]]) -> Path:
        target, temporary = self.folder / name, self.folder / f".{name}.tmp"
        with disk_errors(self.folder):
            for leftover in (temporary, target):
                if leftover.exists():
                    shutil.rmtree(leftover)
            temporary.mkdir(parents=True)
            try:
                for file, tensors in files.items():
                    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / f"{file}.safetensors")
                write_atomic(temporary / "state.json", json.dumps(dict(state)))
                sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
                write_atomic(temporary / MARKER, json.dumps({"signature": self.signature, "files": sums}))
                os.replace(temporary, target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        flush_folder(self.folder)
        return target

    def _read(self, path: Path) -> Saved | None:
        try:
            marker = json.loads((path / MARKER).read_text())
            if marker["signature"] != self.signature:
                return None
            if any(_sha256(path / name) != expected for name, expected in marker["files"].items()):
                return None
            state = json.loads((path / "state.json").read_text())
        except (OSError, ValueError, KeyError, TypeError):
            return None  # half-written or damaged: an older one, or the beginning, will do
        tensors = load_file(path / "state.safetensors") if "state.safetensors" in marker["files"] else {}
        return Saved(path, state, tensors, load_file(path / "best.safetensors"))


def _sha256(path: Path) -> str:
    """The hash of a file, which is flushed to disk on the way."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_files(folder: Path) -> None:
    """Flush every file below `folder`, and the folders, to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        else:
            flush_folder(path)
    flush_folder(folder)
