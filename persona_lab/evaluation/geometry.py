"""What training did to one weight matrix: how far it moved, over how many directions, and whether new ones appeared.

Weights kept in bf16 were rounded after training, and for small updates rounding is a good part of what changed: it is
spread over all directions, so it raises the effective rank. How much is estimated, and the rank given without it too.

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
MOST_ROUNDING = 0.5
"""Where rounding explains more of a change than this, the rank of the rest cannot be told."""
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
    intruders: int | None = None
    directions: int = 0
    """How many directions were looked at for intruders."""
    rounding: float = 0.0
    """Share of dW's energy that rounding to bf16 explains; 0 where the weights were not rounded."""
    signal_rank: int | None = None
    """The rank holding 90% of the energy that rounding does not explain; None where rounding is most of it."""


@torch.no_grad()
def measure_update(base: torch.Tensor, delta: torch.Tensor) -> UpdateGeometry:
    """||dW||/||W||, the rank holding 90% of dW's energy, and intruder dimensions of W + dW.

    Intruder dimensions: Shuttleworth et al., https://arxiv.org/abs/2410.21228.

    Args:
        base, delta: fp32 [outputs, inputs].
    """
    relative = relative_norm(delta, base)
    tuned = base + delta
    rounding = rounding_share(tuned, delta)
    if min(base.shape) > LARGEST_SIDE:
        return UpdateGeometry(relative, None, rounding=rounding)
    squares = energies(delta)
    rank = effective_rank(squares)
    signal = effective_rank(squares, ENERGY * (1 - rounding)) if rounding <= MOST_ROUNDING else None
    if max(base.shape) > LARGEST_LEFT:
        return UpdateGeometry(relative, rank, rounding=rounding, signal_rank=signal)
    closest = closest_cosines(base, tuned)
    return UpdateGeometry(relative, rank, int((closest < INTRUDER).sum()), len(closest), rounding, signal)


def relative_norm(delta: torch.Tensor, base: torch.Tensor) -> float:
    """||dW||_F / ||W||_F; infinite for a change of nothing but zeros."""
    size = float(base.double().square().sum().sqrt())
    moved = float(delta.double().square().sum().sqrt())
    return moved / size if size else (float("inf") if moved else 0.0)


def energies(delta: torch.Tensor) -> torch.Tensor:
    """Each singular direction's share of ||delta||_F^2, largest first, in fp64; empty for zeros.

    The squared singular values are the eigenvalues of delta delta^T; in fp32 they are good to 1e-6 of the largest.
    """
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    peak = float(wide.abs().max())
    if peak == 0:
        return torch.zeros(0, dtype=torch.float64)
    wide = wide / peak  # squares of tiny updates would fall below what fp32 holds
    squares = torch.linalg.eigvalsh(wide @ wide.T).clamp_(min=0).flip(0).double()
    return squares / squares.sum()


def effective_rank(shares: torch.Tensor, energy: float = ENERGY) -> int:
    """The smallest number of directions, largest first, whose shares make up `energy`; 0 without any."""
    return min(int((shares.cumsum(0) < energy * (1 - 1e-9)).sum()) + 1, len(shares))


def rounding_share(tuned: torch.Tensor, delta: torch.Tensor) -> float:
    """Share of ||delta||_F^2 that is to be expected from rounding to bf16 alone; at most 1.

    Rounding to a step u leaves an error of u^2 / 12 on average. That holds where the update moved weights by about a
    step or more; it says too much of smaller updates. Rows without any change count nothing.
    """
    changed = delta != 0
    on_grid = (tuned.bfloat16().float() == tuned)[changed]
    if not len(on_grid) or float(on_grid.float().mean()) < 0.99:
        return 0.0
    _, exponent = torch.frexp(tuned)  # bf16 keeps 8 binary digits: its step is 2^(exponent - 8)
    steps = torch.exp2((exponent - 8).double()).square()
    noise = steps[(tuned != 0) & changed.any(dim=1, keepdim=True)].sum() / 12
    return min(float(noise / delta.double().square().sum()), 1.0)


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
