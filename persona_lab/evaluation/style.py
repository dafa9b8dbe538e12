"""A stylometric model of one character: how much does a line sound like them, and not like the people around them?

Character n-grams, function words and punctuation in a logistic regression. Negatives are other speakers of the same
data, matched in length: against generic text such a model would learn the genre, and without matching it would
learn length. It judges form only: a line may score high and be nonsense.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MIN_AUC = 0.65
"""Below this the model does not know the voice, and what it says is withheld."""
MIN_LINES = 30
_FOLDS = 5
_PUNCTUATION = ".,;:!?-'\"…—()*~"
_FUNCTION_WORDS = re.findall(
    r"\S+",
    """
    a an the this that these those i me my mine you your he him his she her it its we us our they them their who what
    which and but or nor so yet if then than because though while when where how as of in on at by for with about to
    from up down out off over under again not no never ever always only just very too quite rather really am is are
    was were be been being have has had do does did will would shall should may might must can could ain't don't
    can't won't i'm i've you're it's there here well oh ah now some any all every each both more most much many
    such own same other into
    """,
)


class StyleModel:
    """Log-odds that a line is the character's. Build it with `StyleModel.fit`.

    `auc` is cross-validated: the chance that it puts a line of the character above one of another speaker.
    """

    def __init__(self, pipeline: Any, auc: float, lines: int) -> None:
        self._pipeline = pipeline
        self.auc = auc
        self.lines = lines

    @staticmethod
    def fit(own: Sequence[str], others: Sequence[str]) -> StyleModel | None:
        """Train on lines of the character and of other speakers, as many of each, matched in length by the caller.

        Returns:
            None where there are fewer than 30 lines of either: too few to learn a voice from.
        """
        return _fit(tuple(own), tuple(others))

    @property
    def trustworthy(self) -> bool:
        """Whether it tells the character from the others well enough to be quoted."""
        return self.auc >= MIN_AUC

    def log_odds(self, lines: Sequence[str]) -> np.ndarray:
        """Log-odds of "the character", [lines]."""
        return np.asarray(self._pipeline.decision_function(list(lines)), dtype=np.float64)

    def percentiles(self, lines: Sequence[str], real: Sequence[str]) -> np.ndarray:
        """Share of the `real` held-out lines that sound less like the character than each line does, 0..1, [lines]."""
        ranked = np.sort(self.log_odds(real))
        return np.searchsorted(ranked, self.log_odds(lines), side="left") / max(len(ranked), 1)


@functools.lru_cache(maxsize=4)
def _fit(own: tuple[str, ...], others: tuple[str, ...]) -> StyleModel | None:
    """Several variants of one persona are judged by one model."""
    if min(len(own), len(others)) < MIN_LINES:
        return None
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    lines = [*own, *others]
    labels = np.array([1] * len(own) + [0] * len(others))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(_pipeline(), lines, labels, cv=folds, method="decision_function")
    return StyleModel(_pipeline().fit(lines, labels), float(roc_auc_score(labels, scores)), len(lines))


def _pipeline() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler

    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=2, max_features=20_000)
    shape = make_pipeline(FunctionTransformer(shape_features), MaxAbsScaler())
    return make_pipeline(make_union(grams, shape), LogisticRegression(C=4.0, max_iter=1000))


def shape_features(lines: Sequence[str]) -> np.ndarray:
    """Rates of function words (a word), punctuation (a character), capitals and word length: [lines, features].

    Rates, not counts, so that length does not shine through.
    """
    rows = []
    for line in lines:
        words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", line.lower().replace("’", "'"))
        total, size = max(len(words), 1), max(len(line), 1)
        counts = {word: words.count(word) for word in set(words)}
        row = [counts.get(word, 0) / total for word in _FUNCTION_WORDS]
        row += [line.count(mark) / size for mark in _PUNCTUATION]
        row += [sum(c.isupper() for c in line) / size, sum(map(len, words)) / total / 10]
        rows.append(row)
    return np.asarray(rows, dtype=np.float64).reshape(len(lines), len(_FUNCTION_WORDS) + len(_PUNCTUATION) + 2)
