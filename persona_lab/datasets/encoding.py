"""Text to token ids in which only the chat template can write control tokens.

Control tokens spelt in people's text are marked before rendering and encoded as plain text afterwards, as
transformers' `sanitize_control_tokens` does (chat_template_utils.py: `mark_control_tokens`, `encode_marked_chat`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from persona_lab.datasets.templates import MARK_END, MARK_START, control_token_pattern
from persona_lab.errors import BadInput, BadModel


class MarkedTokenizer:
    """A tokenizer.json that knows which of its tokens are control tokens of a template.

    Args:
        folder: where tokenizer.json is.
        template_text: the template's own text; added tokens found in it are control tokens, as all special ones are.

    Raises:
        BadModel: tokenizer.json is missing or damaged.
    """

    def __init__(self, folder: Path, template_text: str) -> None:
        self._tokenizer = load_tokenizer(folder)
        added = self._tokenizer.get_added_tokens_decoder()
        control = [
            token.content
            for token in added.values()
            if token.special or (token.content in template_text and not token.content.isspace())
        ]
        self.control = control_token_pattern(control)
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._newline = tuple(self._tokenizer.encode("\n", add_special_tokens=False).ids)

    def mark(self, text: str) -> str:
        """`text` with markers around what spells a control token."""
        # markers already in the text go first, so that they cannot be used to forge one
        plain = text.replace(MARK_START, "").replace(MARK_END, "")
        return self.control.sub(lambda match: f"{MARK_START}{match[0]}{MARK_END}", plain)

    def id_of(self, token: str) -> int | None:
        """The id of a token, or None."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Ids as text."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def crosses(self, text: str, cut: int, ids: list[int], starts: list[int]) -> bool:
        """Whether the text before `cut`, encoded alone, ends otherwise than within the whole.

        Added tokens break the text for the tokenizer, so encoding from the last one on is enough.
        """
        begin = max((match.start() for match in self.control.finditer(text, 0, cut)), default=0)
        if MARK_START in text[:cut]:
            begin = 0
        return self.encode(text[begin:cut])[0] != ids[count_before(starts, begin) : count_before(starts, cut)]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids and the character each begins at, in the marked text. Marked control tokens become plain text."""
        if MARK_START not in text and MARK_END not in text:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            return encoding.ids, [start for start, _ in encoding.offsets]
        cuts = [i for i, character in enumerate(text) if character in (MARK_START, MARK_END)]
        return self.encode_parts(text, cuts)

    def encode_parts(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
        """As `_encode`, with a break before each character of `cuts`; the markers themselves are left out."""
        marks = [i for i, character in enumerate(text) if character in (MARK_START, MARK_END)]
        edges = sorted({0, len(text), *cuts, *marks})
        ids: list[int] = []
        starts: list[int] = []
        for begin, end in pairwise(edges):
            part = text[begin:end].strip(MARK_START + MARK_END)
            # a template may tear the two markers of a token apart: a lone marker only breaks the text
            marked = text[begin] == MARK_START and text[end : end + 1] == MARK_END and self.control.fullmatch(part)
            part_ids, part_starts = self._encode_part(part, bool(marked), first=not ids)
            shift = begin + (1 if text[begin] in (MARK_START, MARK_END) else 0)
            ids += part_ids
            starts += [shift + start for start in part_starts]
        return ids, starts

    def _encode_part(self, part: str, as_text: bool, first: bool) -> tuple[list[int], list[int]]:
        if not part:
            return [], []
        if as_text:
            ids = self._without_added_tokens(part, first)
            return ids, [0] * len(ids)  # a control token is wholly inside one message: its start is enough
        if not first:
            # after a newline, so that SentencePiece does not put a space first (transformers does the same)
            encoding = self._tokenizer.encode("\n" + part, add_special_tokens=False)
            count = len(self._newline)
            if tuple(encoding.ids[:count]) == self._newline:
                return encoding.ids[count:], [max(start - 1, 0) for start, _ in encoding.offsets[count:]]
        encoding = self._tokenizer.encode(part, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _without_added_tokens(self, part: str, first: bool) -> list[int]:
        """The tokenizer's own steps without its added tokens (transformers: `_encode_without_added_tokens`)."""
        text = part if first else "\n" + part
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        pieces = [text]
        if self._tokenizer.pre_tokenizer is not None:
            pieces = [piece for piece, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        ids = [token.id for piece in pieces for token in self._tokenizer.model.tokenize(piece)]
        count = len(self._newline)
        if not first:
            if tuple(ids[:count]) != self._newline:
                return self._without_added_tokens(part, first=True)
            ids = ids[count:]
        if self._tokenizer.token_to_id(part) in ids:
            raise BadInput(f"The control token {part!r} cannot be written as plain text in a message.", "Remove it.")
        return ids


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer, without truncation and padding."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadModel(f"The model in {folder} has no tokenizer.json.", "Fetch it again, or use another base model.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise BadModel(f"{path} cannot be read: {error}.", "Fetch the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_before(starts: Sequence[int], end: int) -> int:
    """How many tokens begin before character `end`."""
    return bisect_left(starts, end)
