"""What training did to one weight matrix: how far it moved, over how many directions, and whether new ones appeared.

Works through eigenvalues of W W^T, several times faster than a singular value decomposition. Does not read files
(updates.py does) and does not say what is good: geometry is a diagnostic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ENERGY = 0.90
"""Share of the delta's sum of squares that the effective rank holds."""
TOP = 10
"""Leading directions of the tuned matrix that are looked at."""
INTRUDER = 0.5
"""A direction that meets no base direction with at least this cosine is an intruder."""
DOUBT = 0.1
"""A cosine this near to INTRUDER in fp32 is worked out again in fp64."""
LARGEST_SIDE = 2048
"""A matrix whose smaller side is longer is not decomposed: it would take minutes."""
LARGEST_LEFT = 16_384
"""Longer left singular vectors (those of embeddings) are not compared."""


@dataclass(frozen=True)
class UpdateGeometry:
    """Of one matrix. `rank` and `intruders` are None where the matrix is too large to decompose."""

    relative: float
    rank: int | None
    intruders: int | None
    directions: int
    """How many directions were looked at for intruders."""


@torch.no_grad()
def measure_update(base: torch.Tensor, delta: torch.Tensor) -> UpdateGeometry:
    """||dW||/||W||, the rank holding 90% of dW's energy, and intruder dimensions of W + dW.

    Intruder dimensions: Shuttleworth et al., https://arxiv.org/abs/2410.21228.

    Args:
        base, delta: fp32 [outputs, inputs].
    """
    relative = relative_norm(delta, base)
    if min(base.shape) > LARGEST_SIDE:
        return UpdateGeometry(relative, None, None, 0)
    rank = effective_rank(delta)
    if max(base.shape) > LARGEST_LEFT:
        return UpdateGeometry(relative, rank, None, 0)
    closest = closest_cosines(base, base + delta)
    return UpdateGeometry(relative, rank, int((closest < INTRUDER).sum()), len(closest))


def relative_norm(delta: torch.Tensor, base: torch.Tensor) -> float:
    """||dW||_F / ||W||_F; infinite for a change of nothing but zeros."""
    size = float(base.double().square().sum().sqrt())
    moved = float(delta.double().square().sum().sqrt())
    return moved / size if size else (float("inf") if moved else 0.0)


def effective_rank(delta: torch.Tensor, energy: float = ENERGY) -> int:
    """The smallest number of singular values whose squares make up `energy` of ||delta||_F^2; 0 for zeros.

    The squares are the eigenvalues of delta delta^T; in fp32 they are good to 1e-6 of the largest.
    """
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    peak = float(wide.abs().max())
    if peak == 0:
        return 0
    wide = wide / peak  # squares of tiny updates would fall below what fp32 holds
    squares = torch.linalg.eigvalsh(wide @ wide.T).clamp_(min=0).flip(0).double()
    share = squares.cumsum(0) / squares.sum()
    return int((share < energy).sum()) + 1


def closest_cosines(base: torch.Tensor, tuned: torch.Tensor, top: int = TOP) -> torch.Tensor:
    """Of each of `tuned`'s first left singular vectors: max_i |u_tuned . u_base,i| over all of `base`'s: [top].

    Left singular vectors are eigenvectors of W W^T. fp32 tells neighbouring directions of small singular values badly
    apart, so a matrix with a cosine that is small or near the limit is worked out again in fp64.
    """
    cosines = _closest(base, tuned, top)
    if float(cosines.min()) < INTRUDER + DOUBT:
        cosines = _closest(base.double(), tuned.double(), top)
    return cosines


def _closest(base: torch.Tensor, tuned: torch.Tensor, top: int) -> torch.Tensor:
    before, after = _left_vectors(base), _left_vectors(tuned, top)
    return (after.T @ before).abs().max(dim=1).values


def _left_vectors(weight: torch.Tensor, top: int | None = None) -> torch.Tensor:
    """The left singular vectors [outputs, min(outputs, inputs)], largest singular value first; or the first `top`."""
    rows, columns = weight.shape
    if rows <= columns:
        return torch.linalg.eigh(weight @ weight.T).eigenvectors.flip(1)[:, :top]
    values, right = torch.linalg.eigh(weight.T @ weight)
    values, right = values.flip(0)[:top], right.flip(1)[:, :top]
    left = weight @ right
    # a direction that the matrix maps to nothing has no left vector
    kept = values > values[0] * torch.finfo(weight.dtype).eps * rows
    return left[:, kept] / left[:, kept].norm(dim=0)
