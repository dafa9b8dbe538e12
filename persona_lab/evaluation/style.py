"""A stylometric model of one character: how much does a line sound like them, and not like the people around them?

Two members, added after each is put on one scale:

- words: the sum of naive-Bayes log-count ratios of word 1-2-grams (punctuation marks are words), over the square root
  of their number;
- letters: a logistic regression on character 1-5-grams weighted with the same ratios, as NB-SVM (Wang and Manning 2012,
  https://aclanthology.org/P12-2018/).

Names, and whatever else is capitalised inside a sentence, are masked: who is spoken to is no voice. Negatives are ALL
other speakers of the same data, weighted by class: against generic text such a model would learn the genre. What length
alone explains is taken out with the slope within the classes (as in an analysis of covariance), so that a character who
speaks at length is not "recognised" by long lines. It judges form only: a line may score high and be nonsense.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from persona_lab.evaluation.probes import MIN_WORDS, normalised, spread
from persona_lab.types import Dataset

MIN_AUC = 0.65
"""Below this the model does not know the voice, and what it says is withheld."""
MIN_LINES = 30
MIN_REAL = 20
MAX_LINES = 2000
"""Lines of each side that are learnt from: more are slow and change little."""
_FOLDS = 5
_REPEATS = 2
_RARE = 2
"""An n-gram in fewer lines than this says nothing."""
_MASK = "Xx"
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\.\.\.|\d+|[.,;:!?\"()…—–-]")
_NAME = re.compile(r"\b(?:Mrs?|Ms|Dr|St)\. [A-Z]\w*(?:'s)?|(?<=[\w,;'] )(?!I\b)[A-Z]\w*(?:'s)?")
"""After a title, or a capital after a word or a comma: inside a sentence."""
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"'})


class StyleModel:
    """Log-odds that a line is the character's. Build it with `StyleModel.fit`.

    Attributes:
        auc: the chance that it puts a line of the character above one of another speaker, cross-validated and with
            length taken out.
        auc_error: its standard error.
        unseen_own, unseen_others: cross-validated scores of the lines it was fitted on, [lines of each].
    """

    def __init__(self, members: _Members, own: np.ndarray, others: np.ndarray) -> None:
        self._members = members
        self.unseen_own, self.unseen_others = own, others
        self.lines = len(own) + len(others)
        self.auc, self.auc_error = area_under_curve(own, others)

    @staticmethod
    def fit(own: Sequence[str], others: Sequence[str]) -> StyleModel | None:
        """Train on lines of the character and of other speakers; their numbers and lengths may differ.

        Returns:
            None where there are fewer than 30 lines of either: too few to learn a voice from.
        """
        return _fit(tuple(own), tuple(others))

    @property
    def trustworthy(self) -> bool:
        """Whether it tells the character from the others well enough to be quoted."""
        return self.auc >= MIN_AUC

    def log_odds(self, lines: Sequence[str]) -> np.ndarray:
        """How much each line sounds like the character, [lines]; the unit has no meaning, the order has."""
        return self._members.score(lines)

    def percentiles(self, lines: Sequence[str], real: Sequence[str]) -> np.ndarray:
        """Share of the `real` held-out lines that sound less like the character than each line does, 0..1, [lines].

        Ties count half, so that the real lines themselves average exactly 0.5.
        """
        return ranks(self.log_odds(lines), self.log_odds(real))


@dataclass(frozen=True)
class Voice:
    """What is known of a character's voice from its dataset. Build it with `voice_of`."""

    model: StyleModel | None
    """Fitted on the train split; may be there and not be good enough: see `withheld`."""
    real: tuple[str, ...]
    """The character's held-out lines (test split)."""
    real_groups: tuple[str, ...]
    """The conversation or scene of each."""
    others: tuple[str, ...]
    """Other speakers' lines that the model was fitted against."""
    withheld: str
    """Why its percentiles must not be quoted, for people; empty if they may."""

    def percentiles(self, lines: Sequence[str]) -> np.ndarray:
        """Of each line within the real held-out lines, 0..1, [lines]. Only where nothing is `withheld`."""
        if self.model is None or self.withheld:
            raise ValueError(f"The voice is withheld: {self.withheld}.")
        return self.model.percentiles(lines, self.real) if lines else np.empty(0)

    def other_percentiles(self) -> np.ndarray:
        """Of `others`, each judged by a model that did not see it (cross-validation), [lines]."""
        if self.model is None or self.withheld:
            raise ValueError(f"The voice is withheld: {self.withheld}.")
        return ranks(self.model.unseen_others, self.model.log_odds(self.real))

    @property
    def note(self) -> str:
        """How good the model is, for people; empty where there is none."""
        if self.model is None:
            return ""
        return (
            "The voice model tells the character's lines from other people's with a cross-validated AUC of "
            f"{self.model.auc:.2f} ± {self.model.auc_error:.2f} (standard error), length taken out."
        )


def voice_of(dataset: Dataset | None, seed: int = 0) -> Voice:
    """Learn a character's voice: its train and validation lines against all other speakers of the data.

    Held-out turns stay out of the fit on both sides: neither the character's test lines nor the lines they answer.
    """
    if dataset is None:
        return Voice(None, (), (), (), "there is no dataset to learn the voice from")
    held_out = held_out_lines(dataset)
    seen = {**dict(_lines(dataset, "train", "assistant")), **dict(_lines(dataset, "validation", "assistant"))}
    own = _some([line for line in seen if line not in held_out], seed)
    others = _some(_other_people(dataset), seed)
    model = StyleModel.fit(own, others)
    withheld = ""
    if len(held_out) < MIN_REAL:
        withheld = f"there are only {len(held_out)} held-out lines to compare with (at least {MIN_REAL} are needed)"
    elif model is None:
        withheld = (
            f"there are too few lines to learn the voice from ({len(own)} of the character and {len(others)} of other "
            f"people; at least {MIN_LINES} of each are needed)"
        )
    elif not model.trustworthy:
        withheld = f"the voice model's AUC is only {model.auc:.2f} (at least {MIN_AUC} is needed)"
    return Voice(model, tuple(held_out), tuple(held_out.values()), tuple(others), withheld)


def held_out_lines(dataset: Dataset) -> dict[str, str]:
    """The character's lines of the test split, as long as a probe's must be, each once, with its group."""
    return dict(_lines(dataset, "test", "assistant"))


def ranks(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Share of `reference` below each score, ties counted half: [scores], 0..1."""
    ordered = np.sort(reference)
    below, up_to = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (below + up_to) / 2 / max(len(ordered), 1)


def area_under_curve(own: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The chance that a score of `own` is above one of `others`, ties counted half, and its standard error.

    The error is Hanley and McNeil's (1982, https://doi.org/10.1148/radiology.143.1.7063747).
    """
    area = float(np.mean(ranks(own, others)))
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (len(own) - 1) * (first - area**2) + (len(others) - 1) * (second - area**2)) / (
        len(own) * len(others)
    )
    return area, math.sqrt(max(variance, 0.0))


def word_grams(line: str) -> list[str]:
    """Word 1-2-grams of a line, names masked; the line's start and end count as words of the pairs."""
    words = [word if word == _MASK else word.lower() for word in _TOKEN.findall(_masked(line))]
    framed = ["<s>", *words, "</s>"]
    return words + [f"{a} {b}" for a, b in itertools.pairwise(framed)]


def letter_grams(line: str) -> list[str]:
    """Character 1-5-grams of a line, lower case, names masked."""
    text = f" {_masked(line).lower()} "
    return [text[i : i + size] for size in range(1, 6) for i in range(len(text) - size + 1)]


def _masked(line: str) -> str:
    return _NAME.sub(_MASK, " ".join(line.translate(_PLAIN).split()))


def _some(lines: list[str], seed: int) -> list[str]:
    return spread(lines, lines, MAX_LINES, seed)


def _lines(dataset: Dataset, split: Literal["train", "validation", "test"], role: str) -> Iterator[tuple[str, str]]:
    """(line, its group) of a role in a split, where the line is long enough to say something."""
    for conversation in dataset.of(split):
        for message in conversation.messages:
            if message.role == role and len(message.content.split()) >= MIN_WORDS:
                yield message.content.strip(), conversation.group or conversation.id


def _other_people(dataset: Dataset) -> list[str]:
    """Every line of other speakers, the user among them, each once; not what held-out lines answer."""
    taken = {normalised(m.content) for c in dataset.conversations for m in c.messages if m.role == "assistant"}
    taken |= {normalised(line) for line, _ in _lines(dataset, "test", "user")}
    users = [line for split in ("train", "validation") for line, _ in _lines(dataset, split, "user")]
    found: dict[str, str] = {}
    for line in (*dataset.others, *users):
        key = normalised(line)
        if key not in taken and len(line.split()) >= MIN_WORDS:
            found.setdefault(key, line.strip())
    return list(found.values())


# --- the fit --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _fit(own: tuple[str, ...], others: tuple[str, ...]) -> StyleModel | None:
    """Several variants and evaluators of one persona share one model."""
    if min(len(own), len(others)) < MIN_LINES:
        return None
    lines, labels = [*own, *others], np.array([1] * len(own) + [0] * len(others))
    members = _Members(lines)
    unseen = members.fit(labels)
    return StyleModel(members, unseen[labels == 1], unseen[labels == 0])


class _Members:
    """Both members and what puts them on one scale. The n-grams of the lines are counted once."""

    def __init__(self, lines: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._counters = [CountVectorizer(analyzer=a, binary=True, min_df=_RARE) for a in (word_grams, letter_grams)]
        self._counted = [counter.fit_transform(lines).astype(np.float64) for counter in self._counters]
        self._sizes = _sizes(lines)
        self._range = np.quantile(self._sizes, [0.01, 0.99])
        self._slope = 0.0
        self._scales: list[tuple[float, float]] = []
        self._fitted: list[_Words | _Letters] = []

    def fit(self, labels: np.ndarray) -> np.ndarray:
        """Fit on all lines; gives the cross-validated score of each, [lines]."""
        unseen = np.zeros(len(labels))
        kinds: tuple[type[_Words | _Letters], ...] = (_Words, _Letters)
        for kind, counts in zip(kinds, self._counted, strict=True):
            scores = _cross_validated(kind, counts, labels)
            self._scales.append((float(scores.mean()), float(scores.std()) or 1.0))
            self._fitted.append(kind(counts, labels))
            unseen += (scores - self._scales[-1][0]) / self._scales[-1][1]
        self._slope = _slope_within(unseen, self._length(self._sizes), labels)
        self._counted = []
        return unseen - self._slope * self._length(self._sizes)

    def score(self, lines: Sequence[str]) -> np.ndarray:
        """[lines]"""
        total = -self._slope * self._length(_sizes(lines))
        for counter, member, (mean, deviation) in zip(self._counters, self._fitted, self._scales, strict=True):
            total = total + (member.score(counter.transform(lines).astype(np.float64)) - mean) / deviation
        return np.asarray(total, dtype=np.float64)

    def _length(self, sizes: np.ndarray) -> np.ndarray:
        """Log length within what was seen: the slope is not extrapolated."""
        return np.clip(sizes, *self._range)


class _Words:
    """Naive Bayes: the log-count ratios of a line's n-grams, over the square root of how many it has."""

    def __init__(self, counts: Any, labels: np.ndarray) -> None:
        self._ratios = _log_ratios(counts, labels)

    def score(self, counts: Any) -> np.ndarray:
        return (counts @ self._ratios) / np.sqrt(np.maximum(counts @ (self._ratios != 0), 1))


class _Letters:
    """NB-SVM's features (log-count ratios, unit length) in a class-weighted logistic regression."""

    def __init__(self, counts: Any, labels: np.ndarray) -> None:
        from sklearn.linear_model import LogisticRegression

        self._ratios = _log_ratios(counts, labels)
        self._model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
        self._model.fit(self._features(counts), labels)

    def score(self, counts: Any) -> np.ndarray:
        return np.asarray(self._model.decision_function(self._features(counts)))

    def _features(self, counts: Any) -> Any:
        from sklearn.preprocessing import normalize

        return normalize(counts.multiply(self._ratios).tocsr())


def _log_ratios(counts: Any, labels: np.ndarray) -> np.ndarray:
    """log (share of an n-gram among the character's) - log (among the others'), one added; 0 where it is rare."""
    own = np.asarray(counts[labels == 1].sum(axis=0)).ravel()
    others = np.asarray(counts[labels == 0].sum(axis=0)).ravel()
    known = own + others >= _RARE
    p, q = (own + 1) * known, (others + 1) * known
    ratios = np.log((own + 1) / max(p.sum(), 1)) - np.log((others + 1) / max(q.sum(), 1))
    return np.where(known, ratios, 0.0)


def _cross_validated(kind: type[_Words | _Letters], counts: Any, labels: np.ndarray) -> np.ndarray:
    """Scores of lines by models that did not see them, averaged over repeats, [lines]."""
    from sklearn.model_selection import StratifiedKFold

    scores = np.zeros(len(labels))
    for repeat in range(_REPEATS):
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=repeat)
        for seen, unseen in folds.split(np.zeros(len(labels)), labels):
            scores[unseen] += kind(counts[seen], labels[seen]).score(counts[unseen]) / _REPEATS
    return scores


def _slope_within(scores: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> float:
    """Least-squares slope of scores on log length, the classes centred apart: what length says within a voice."""
    x, y = sizes.copy(), scores.copy()
    for label in (0, 1):
        x[labels == label] -= x[labels == label].mean()
        y[labels == label] -= y[labels == label].mean()
    spread_of_x = float(x @ x)
    return float(x @ y) / spread_of_x if spread_of_x > 0 else 0.0


def _sizes(lines: Sequence[str]) -> np.ndarray:
    """Natural log of the characters of each line, [lines]."""
    return np.log([max(len(line), 1) for line in lines])
