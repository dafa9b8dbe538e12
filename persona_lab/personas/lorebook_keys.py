"""Whether a lorebook's key stands in a text, plain or as a regular expression, within a time limit.

Keys come from strangers' cards, and a regular expression can take for ever: each search has a time limit and all of
a conversation's together have one; what exceeds it counts as not found and is reported.
"""

from __future__ import annotations

import time
from functools import lru_cache

import regex

MAX_PATTERN = 500
SEARCH_SECONDS = 0.05
ALL_SECONDS = 0.5
_FLAGS = {"i": regex.IGNORECASE, "s": regex.DOTALL, "m": regex.MULTILINE, "u": regex.UNICODE, "g": 0, "y": 0}
_REPEAT = regex.compile(r"\{\s*(\d*)\s*(?:,\s*\d*\s*)?\}")
_RECURSION = regex.compile(r"\(\?(?:R|[+-]?\d|&|P>)")
MAX_SIZE = 20_000


_lower = lru_cache(8)(str.lower)  # thousands of keys search one text


class Patience:
    """How long regular expressions may still take; what was given up is in `problems`."""

    def __init__(self) -> None:
        self._end = time.monotonic() + ALL_SECONDS
        self.problems: list[str] = []

    def left(self) -> float:
        """Seconds for the next search; 0 or less: none."""
        return min(SEARCH_SECONDS, self._end - time.monotonic())

    def give_up(self, title: str, key: str, why: str) -> None:
        """Remember once that a key cannot be searched for."""
        told = f"The key {key[:60]!r} of the lorebook entry {title!r} {why}."
        if told not in self.problems:
            self.problems.append(told)


class Search:
    """Searches one text for keys: `search(key)`.

    Args:
        pattern: every key is a regular expression; else only those written /so/ or /so/i are.
        title: of the entry, for problems.
    """

    def __init__(
        self, text: str, case_sensitive: bool, whole_words: bool, pattern: bool, patience: Patience, title: str
    ) -> None:
        self.text = text
        self.plain = text if case_sensitive else _lower(text)
        self.case_sensitive, self.whole_words, self.pattern = case_sensitive, whole_words, pattern
        self.patience, self.title = patience, title

    def __call__(self, key: str) -> bool:
        key = key.strip()
        if not key:
            return False
        body, slash, flags = key[1:].rpartition("/")
        written = key.startswith("/") and bool(slash) and bool(body) and set(flags) <= set(_FLAGS)
        if written:
            return self._matches(body, sum(_FLAGS[flag] for flag in set(flags)), key)
        if self.pattern:
            return self._matches(key, 0 if self.case_sensitive else regex.IGNORECASE, key)
        return self._stands(key if self.case_sensitive else key.lower())

    def _stands(self, key: str) -> bool:
        at = self.plain.find(key)
        while at >= 0 and self.whole_words:
            end = at + len(key)
            if not (_is_word(self.plain[at - 1 : at]) and _is_word(key[0])) and not (
                _is_word(self.plain[end : end + 1]) and _is_word(key[-1])
            ):
                return True
            at = self.plain.find(key, at + 1)
        return at >= 0

    def _matches(self, pattern: str, flags: int, key: str) -> bool:
        if not _is_small(pattern):
            self.patience.give_up(self.title, key, "is too long or repeats too often for a regular expression")
            return False
        left = self.patience.left()
        if left <= 0:
            self.patience.give_up(self.title, key, "was not tried: the lorebook's regular expressions take too long")
            return False
        try:
            return regex.search(pattern, self.text, flags, timeout=left) is not None
        except TimeoutError:
            self.patience.give_up(self.title, key, "takes too long as a regular expression and was given up")
        except (regex.error, ValueError, RecursionError, OverflowError, MemoryError) as error:
            self.patience.give_up(self.title, key, f"is no regular expression ({error})")
        return False


def _is_small(pattern: str) -> bool:
    """Whether compiling takes little memory: counted repeats are written out, and nested ones multiply."""
    if len(pattern) > MAX_PATTERN or _RECURSION.search(pattern):
        return False
    size = len(pattern)
    for least in _REPEAT.findall(pattern):
        size *= min(max(int(least[:9] or 1), 1), MAX_SIZE)
        if size > MAX_SIZE:
            return False
    return True


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
