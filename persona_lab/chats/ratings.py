"""Ratings of variants from votes: Bradley-Terry strengths with intervals.

Of several replies side by side one is chosen: the chance is exp(s) over the sum of exp(s) of all that stood there
(Luce's choice rule; for two it is Bradley-Terry, https://doi.org/10.2307/2334029). A tie, and "all bad", shares the
choice equally. So a vote over six panes is one observation, not five.

With few votes the likelihood alone has no maximum (who never lost would be infinitely strong), so strengths have a
normal prior of mean 0: ratings of few votes are drawn towards 1000, and the intervals (95%, normal approximation at
the maximum) stay wide. Votes of one person are counted as independent, which they are not quite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from persona_lab.chats.records import Vote

PRIOR = 1.5
"""Standard deviation of a strength before any vote, in nats: odds of 4.5 to 1."""
SCALE = 400 / math.log(10)
"""A difference of 400 points is odds of 10 to 1, as in chess."""
CENTRE = 1000.0
FEW = 10


@dataclass(frozen=True)
class Ballot:
    """Who stood side by side, and who was chosen (None: nobody)."""

    variants: tuple[str, ...]
    winner: str | None


@dataclass(frozen=True)
class Rating:
    """One variant's rating. `votes`: how many it stood in; `note`: what to be careful of."""

    variant: str
    rating: float
    low: float
    high: float
    votes: int
    wins: int
    ties: int
    losses: int
    note: str = ""

    def as_row(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


def ballots(votes: Iterable[Vote]) -> list[Ballot]:
    """Votes as ballots. Where a variant stood in two panes it counts once."""
    found = []
    for vote in votes:
        variants = tuple(dict.fromkeys(candidate.variant for candidate in vote.candidates))
        if len(variants) >= 2:
            winner = vote.candidates[vote.winner].variant if vote.winner is not None else None
            found.append(Ballot(variants, winner))
    return found


def rate(cast: Sequence[Ballot]) -> list[Rating]:
    """Ratings, the strongest first; empty without votes."""
    import numpy as np

    names = sorted({name for ballot in cast for name in ballot.variants})
    if not names:
        return []
    strengths, covariance = _fit(names, cast)
    centring = np.eye(len(names)) - 1 / len(names)
    middle = CENTRE + SCALE * (centring @ strengths)
    half = 1.96 * SCALE * np.sqrt(np.diag(centring @ covariance @ centring.T))
    circles = _circles(cast)
    rated = []
    for i, name in enumerate(names):
        stood = [ballot for ballot in cast if name in ballot.variants]
        wins = sum(ballot.winner == name for ballot in stood)
        ties = sum(ballot.winner is None for ballot in stood)
        losses = len(stood) - wins - ties
        note = _note(len(stood), wins, ties, losses, len(circles) > 1)
        low, high = float(middle[i] - half[i]), float(middle[i] + half[i])
        rated.append(Rating(name, float(middle[i]), low, high, len(stood), wins, ties, losses, note))
    return sorted(rated, key=lambda rating: -rating.rating)


def _fit(names: Sequence[str], cast: Sequence[Ballot]) -> tuple[Any, Any]:
    """The most likely strengths under the prior, and their covariance."""
    import numpy as np
    from scipy.optimize import minimize  # here, so that the page starts without it

    at = {name: i for i, name in enumerate(names)}
    stood = np.zeros((len(cast), len(names)), bool)
    chosen = np.zeros((len(cast), len(names)))
    for row, ballot in enumerate(cast):
        places = [at[name] for name in ballot.variants]
        stood[row, places] = True
        chosen[row, [at[ballot.winner]] if ballot.winner else places] = 1 if ballot.winner else 1 / len(places)

    def chances(strengths: Any) -> tuple[Any, Any]:
        masked = np.where(stood, strengths, -np.inf)
        top = masked.max(axis=1, keepdims=True)
        weights = np.exp(masked - top)
        total = weights.sum(axis=1, keepdims=True)
        return weights / total, (top + np.log(total))[:, 0]

    def loss(strengths: Any) -> tuple[float, Any]:
        share, total = chances(strengths)
        value = total.sum() - (chosen @ strengths).sum() + (strengths**2).sum() / (2 * PRIOR**2)
        return float(value), (share - chosen).sum(axis=0) + strengths / PRIOR**2

    found = minimize(loss, np.zeros(len(names)), jac=True, method="BFGS", options={"gtol": 1e-6})
    share, _ = chances(found.x)
    information = np.diag(share.sum(axis=0)) - share.T @ share + np.eye(len(names)) / PRIOR**2
    return found.x, np.linalg.inv(information)


def _note(votes: int, wins: int, ties: int, losses: int, apart: bool) -> str:
    notes = []
    if apart:
        notes.append("Not all variants have met, directly or through others, so not all can be compared.")
    if not losses and not ties:
        notes.append("It never lost: how strong it is cannot be told yet.")
    elif not wins and not ties:
        notes.append("It never won: how weak it is cannot be told yet.")
    if votes < FEW:
        notes.append(f"Few votes: the rating is drawn towards {CENTRE:.0f}.")
    return " ".join(notes)


def _circles(cast: Sequence[Ballot]) -> list[set[str]]:
    """Groups of variants that are joined by votes."""
    circles: list[set[str]] = []
    for ballot in cast:
        met = set(ballot.variants)
        apart = [circle for circle in circles if circle.isdisjoint(met)]
        joined = [circle for circle in circles if not circle.isdisjoint(met)]
        circles = [*apart, met.union(*joined)]
    return circles
