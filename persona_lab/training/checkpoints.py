"""Checkpoints of one stage of training: tensors as safetensors, the rest as JSON, never a pickle.

    checkpoints/<stage>/step-000120/   state.safetensors · best.safetensors · state.json · valid.json
    checkpoints/<stage>/finished/      best.safetensors · state.json · valid.json

A checkpoint is written into a temporary folder, flushed to disk and renamed; `valid.json` holds the sha256 of each
file, so that a damaged one is passed over. An older one goes only when the new one is in place and another whole one
stands behind it; a damaged one counts as none. Where the disk has no room for a third, it goes before, since plans
count two; the newest whole one stays.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from persona_lab.home import flush_folder, free_disk, need_disk, write_atomic
from persona_lab.models.weights import folder_bytes, sha256, weight_disk_errors

KEPT = 2
FORMAT = 1
"""Of `state.json` and the tensors' names; a checkpoint of another one is passed over, never half understood."""
RESERVE_BYTES = 16 * 2**20
"""Stay free beside a checkpoint: for the log of the run and whatever else writes to this disk."""
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
        self.passed_over: list[str] = []
        """What `newest` and `finished` could not use, and why, in words for people."""
        self._whole: set[Path] = set()

    def write(
        self, step: int, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], best: Mapping[str, torch.Tensor]
    ) -> Path:
        """Write the checkpoint after `step` steps and drop those that it makes needless.

        Raises:
            DiskFull: the newest whole one before it is untouched.
        """
        self._make_room(tensors, best)
        target = self._write(f"step-{step:06d}", state, {"state": tensors, "best": best})
        self._rotate(target)
        return target

    def _make_room(self, *parts: Mapping[str, torch.Tensor]) -> None:
        """Drop earlier checkpoints, but for the newest whole one, where only that leaves room for these tensors.

        Raises:
            DiskFull: there is no room even so; nothing was dropped.
        """
        needed = RESERVE_BYTES + sum(tensor.nbytes for part in parts for tensor in part.values())
        lacking = needed - free_disk(self.folder)
        spare = self._spare() if lacking > 0 else []
        if sum(map(folder_bytes, spare)) >= lacking:
            for path in spare:
                if lacking > 0:
                    lacking -= folder_bytes(path)
                    shutil.rmtree(path)
        need_disk(self.folder, needed)

    def _spare(self) -> list[Path]:
        """All steps but the newest whole one, those first that are not known to be whole, then the oldest."""
        whole = next((path for path in reversed(self._steps()) if self._is_whole(path)), None)
        return sorted((path for path in self._steps() if path != whole), key=lambda p: (p in self._whole, p.name))

    def _is_whole(self, path: Path) -> bool:
        return path in self._whole or self._read(path) is not None

    def _rotate(self, newest: Path) -> None:
        """Keep `newest` and the whole ones before it, as many as are wanted; the rest goes."""
        kept = [newest]
        others = [path for path in reversed(self._steps()) if path != newest]
        # later steps than the one just written lie there only if they could not be gone on from
        for path in (path for path in others if path.name < newest.name):
            if len(kept) < KEPT and self._is_whole(path):
                kept.append(path)
        for path in others:
            if path not in kept:
                shutil.rmtree(path)

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
        with weight_disk_errors(self.folder):
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            try:
                for file, tensors in files.items():
                    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / f"{file}.safetensors")
                flush_files(temporary)
                write_atomic(temporary / "state.json", json.dumps(dict(state)))
                sums = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
                marker = {"format": FORMAT, "signature": self.signature, "files": sums}
                write_atomic(temporary / MARKER, json.dumps(marker))
                if target.exists():  # one that could not be used, else training would not be here again
                    shutil.rmtree(target)
                os.replace(temporary, target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        flush_folder(self.folder)
        self._whole.add(target)
        return target

    def _read(self, path: Path) -> Saved | None:
        if not path.exists():
            return None
        try:
            marker = json.loads((path / MARKER).read_text())
            if marker.get("format", 1) != FORMAT or marker["signature"] != self.signature:
                self.passed_over.append(f"{path.name} belongs to other settings, data or another version")
                return None
            changed = [name for name, expected in marker["files"].items() if sha256(path / name) != expected]
            if changed:
                self.passed_over.append(f"{path.name} is damaged ({changed[0]} is not what was written)")
                return None
            state = json.loads((path / "state.json").read_text())
            tensors = load_file(path / "state.safetensors") if "state.safetensors" in marker["files"] else {}
            best = load_file(path / "best.safetensors")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            # an older one, or the beginning, will do
            self.passed_over.append(f"{path.name} is damaged ({type(error).__name__}: {str(error)[:100]})")
            return None
        self._whole.add(path)
        return Saved(path, state, tensors, best)


def flush_files(folder: Path) -> None:
    """Flush every file below `folder`, and the folders, to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        else:
            flush_folder(path)
    flush_folder(folder)
