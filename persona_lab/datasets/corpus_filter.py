"""Keeps held-out lines out of a corpus: a play's text contains what its characters are later asked about.

Of lines whose text is known, a unit is dropped that holds one, is part of one, or nearly repeats it (70% of the word
3-grams of the shorter). Of lines of which only a fingerprint is kept (`held_out.jsonl`), runs of whole sentences are
looked up, with speakers' names and stage directions taken out. Not
found are copies that share no whole sentence, of a line whose text is gone, and pieces of under seven words of a longer
line.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from persona_lab.datasets.corpus import Unit, sentences
from persona_lab.datasets.held_out import MIN_WORDS, normalised, reply_key
from persona_lab.datasets.similarity import shingles

SHARE = 0.7
"""Of the 3-grams of the shorter text: more in common is a repetition (as near-duplicates of replies are told)."""
FEW_SHINGLES = 5
"""With fewer, a share says nothing: the whole line must be there word by word."""
SENTENCES = 12
"""The longest run of sentences that is looked up by its fingerprint."""

_LABEL = re.compile(r"^\s*[\[(]?[A-Z][\w.'’ -]{0,40}?[\])]?\s*(?::|\.(?=\s)|—)\s*")
_DIRECTION = re.compile(r"\[[^\]]{0,300}\]|\([^)]{0,300}\)|_|\*")


@dataclass(frozen=True)
class Kept:
    """What may be trained on. `dropped`: units left out; a unit after one of them `begins` anew."""

    units: tuple[Unit, ...]
    dropped: int


class HeldText:
    """Lines that must not be in a corpus.

    Args:
        lines: their text, where it is known. Lines of fewer than four words are everybody's, and are passed over.
        keys: fingerprints (`reply_key`) of lines whose text may be gone.
    """

    def __init__(self, lines: Iterable[str], keys: Collection[str] = ()) -> None:
        texts = dict.fromkeys(normalised(part) for line in lines for part in (line, *line.split("\n")))
        self._lines = [text for text in texts if len(text.split()) >= MIN_WORDS]
        self._keys = frozenset(keys) - {reply_key(text) for text in self._lines}
        sets = [shingles(text) for text in self._lines]
        self._sizes = [len(each) for each in sets]
        self._index: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, each in enumerate(sets):
            for item in each:
                self._index[item].append(number)

    def __len__(self) -> int:
        return len(self._lines) + len(self._keys)

    def held(self, text: str) -> bool:
        """Whether the text holds, is part of, or nearly repeats one of the lines."""
        plain = _DIRECTION.sub(" ", text)
        bare = _LABEL.sub("", plain)
        return self._repeats(normalised(plain)) or self._repeats(normalised(bare)) or self._has_key(plain, bare)

    def _repeats(self, text: str) -> bool:
        own = shingles(text)
        hits = Counter(number for item in own for number in self._index.get(item, ()))
        for number, count in hits.items():
            shorter = min(len(own), self._sizes[number])
            if shorter >= FEW_SHINGLES and count >= SHARE * shorter:
                return True
            if f" {self._lines[number]} " in f" {text} ":
                return True
        return False

    def _has_key(self, *texts: str) -> bool:
        if not self._keys:
            return False
        for text in texts:
            said = [normalised(sentence) for sentence in sentences(text)]
            for start in range(len(said)):
                for end in range(start + 1, min(start + SENTENCES, len(said)) + 1):
                    if reply_key(" ".join(said[start:end])) in self._keys:
                        return True
        return False


def without_held(units: Sequence[Unit], held: HeldText) -> Kept:
    """The units that hold no held-out line; also not across the cut where a long paragraph was cut in two."""
    bad = {i for i, unit in enumerate(units) if held.held(unit.text)}
    for i in range(1, len(units)):
        if units[i].goes_on and not {i - 1, i} & bad and held.held(f"{units[i - 1].text} {units[i].text}"):
            bad |= {i - 1, i}
    kept = []
    for i, unit in enumerate(units):
        if i not in bad:
            hole = i - 1 in bad
            kept.append(Unit(unit.text, unit.begins or hole, unit.goes_on and not hole))
    return Kept(tuple(kept), len(bad))
