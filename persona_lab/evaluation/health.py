"""Looks at a variant's weights before anything is scored: gone, cut short, changed since training, or not numbers."""

from __future__ import annotations

from pathlib import Path

from persona_lab.errors import BadModel
from persona_lab.models.weights import fingerprint, read_header, safetensors_files
from persona_lab.types import Variant

_AGAIN = "Delete the variant, or train it again."


def check_weights(variant: Variant) -> None:
    """Refuse weights that cannot give honest numbers.

    Raises:
        BadModel: files missing or cut short, another fingerprint than the variant's, or values that are no numbers.
    """
    if variant.kind in ("base", "prompt"):
        return
    files = safetensors_files(Path(variant.path)) if variant.path and Path(variant.path).is_dir() else []
    if not files:
        raise BadModel(
            f"The weights of {variant.name} are gone: there is no safetensors file in {variant.path or 'no folder'}.",
            _AGAIN,
        )
    for file in files:
        read_header(file)
    found = fingerprint(Path(variant.path))
    if variant.fingerprint and not found.startswith(variant.fingerprint[:12]):
        raise BadModel(
            f"The weights of {variant.name} have changed since it was made: their fingerprint is {found}, "
            f"not {variant.fingerprint}.",
            _AGAIN,
        )
    for file in files:
        _check_numbers(file, variant.name)


def _check_numbers(file: Path, name: str) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  (not a dict)
            tensor = tensors.get_tensor(key)
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                bad = int((~tensor.isfinite()).sum())
                raise BadModel(
                    f"The weights of {name} are damaged: {bad} values of {key!r} are not numbers (NaN or infinite).",
                    "Training diverged, or the file is broken: train it again with a lower learning rate.",
                )
