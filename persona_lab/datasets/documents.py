"""Documents to examples: passages of an author's text as replies, with made prompts in front of them.

The replies are the text's own words, cut at paragraphs (a long paragraph at sentences), so the voice stays. The prompts
are ours: either the words just before the passage ("go on from here"), or a template filled with what the passage is
about (instruction back-translation by templates; the idea, with a model in place of templates, is Li et al.,
"Self-Alignment with Instruction Backtranslation", 2023, https://arxiv.org/abs/2308.06259). Each example says so in
`made`.

Two neighbouring passages form a section, which stays in one split: no prompt shows words that another split holds out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from persona_lab.api import ReadResult
from persona_lab.datasets.progress import ticking
from persona_lab.datasets.toolkit import clean
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Message, Persona

PASSAGE_WORDS = 80
"""Paragraphs are joined until a passage has so many words."""
MOST_WORDS = 140
FEWEST_WORDS = 12
SECTION_PASSAGES = 2
"""The first of a section answers a template, the next goes on from it: neither way of asking becomes the only one that
the character answers to, and what is held out comes from many places of the text."""
CONTEXT_WORDS = 40
FEWEST_IN_A_DOCUMENT = 60
CONTINUATION = "continuation"
INSTRUCTION = "instruction from a template"

_CONTINUE = (
    "Go on from here: {context}",
    "{context}\n\nWhat comes next?",
    "Continue in your own words:\n\n{context}",
)
_ABOUT = (
    "Write about {topics}.",
    "What can you say about {topics}?",
    "Tell me about {topics}.",
    "Say something about {topics}, in your own way.",
)
_HEADED = ('Write a passage of "{heading}" about {topics}.', 'From "{heading}": tell me about {topics}.')
_GUTENBERG = re.compile(
    r"^\*\*\*\s?(?P<edge>START|END) OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.MULTILINE | re.IGNORECASE
)
_HEADING = re.compile(r"^(?:#{1,6}\s+\S.*|(?:CHAPTER|BOOK|PART|ADVENTURE|LETTER|ESSAY)\b.{0,60}|[IVXLC]{1,7}\.?)$")
_RULE = re.compile(r"^\s*(?:[*=#~_-]\s?){3,}\s*$")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9À-Þ])")
_MARKDOWN = re.compile(
    r"!\[[^\]\n]{0,500}\]\([^)\n]{0,2000}\)|(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)|^>\s?", re.M
)
_LINK = re.compile(r"\[([^\]\n]{1,500})\]\([^)\n]{1,2000}\)")
_TERM = re.compile(r"[^\W\d_][\w'’-]{2,}")


@dataclass(frozen=True)
class Block:
    """A paragraph of a document, or a heading."""

    text: str
    heading: bool = False


@dataclass(frozen=True)
class Passage:
    """So much of a text as one reply says. `section`: the run of passages it belongs to, from 0."""

    text: str
    heading: str
    section: int


def document_result(blocks: Sequence[Block], persona: Persona, source: str) -> ReadResult:
    """A document as what a reader gives.

    Args:
        source: the file's name, for ids and groups.

    Raises:
        BadInput: there is too little text to learn a voice from.
    """
    found = list(passages(blocks))
    words = sum(len(passage.text.split()) for passage in found)
    if words < FEWEST_IN_A_DOCUMENT or len(found) < 2:
        raise BadInput(
            f"{source} has {words} words of running text, too few to make examples of.",
            f"Give at least a page of what {persona.name} wrote; or a chat, with `Name: ...` before each line.",
        )
    conversations = tuple(_examples(found, source))
    count = Counter(conversation.made for conversation in conversations)
    note = (
        f"{len(conversations)} examples were made of {words:,} words: each reply is a passage as it stands, each "
        f"prompt is made ({count[CONTINUATION]} times the words before it, {count[INSTRUCTION]} times a template). "
        f"All of the text is taken as {persona.name}'s own."
    )
    return ReadResult(conversations=conversations, warnings=(note,))


def text_blocks(text: str, markdown: bool = False) -> list[Block]:
    """Plain text or Markdown as headings and paragraphs: blank lines part them; wrapped lines are joined."""
    blocks: list[Block] = []
    body = without_licence(text)
    if markdown:
        body = _without_front_matter(body)
    wrapped = "\n\n" in body
    for part in re.split(r"\n\s*\n" if wrapped else r"\n", body):
        stripped = part.strip()
        if not stripped or _RULE.match(stripped):
            continue
        heading = bool(_HEADING.match(stripped)) and "\n" not in stripped
        if markdown:
            lines = stripped.split("\n")
            if len(lines) > 1 and lines[0].startswith("#"):  # a heading right above its paragraph
                blocks.append(Block(lines[0].strip("# "), True))
                stripped = "\n".join(lines[1:])
            stripped = _MARKDOWN.sub("", _LINK.sub(r"\1", stripped))
        blocks.append(Block(" ".join(stripped.strip("# ").split() if heading else stripped.split()), heading))
    return [block for block in blocks if block.text]


def without_licence(text: str) -> str:
    """A Project Gutenberg text without the licence around it."""
    edges = {match["edge"].upper(): match for match in _GUTENBERG.finditer(text)}
    start = edges["START"].end() if "START" in edges else 0
    end = edges["END"].start() if "END" in edges and edges["END"].start() > start else len(text)
    return text[start:end]


def _without_front_matter(text: str) -> str:
    """Markdown without a YAML head and without fenced code: neither is anybody's voice."""
    if text.startswith("---\n") and (end := text.find("\n---", 4, 20_000)) > 0:
        text = text[end + 4 :]
    kept, fenced = [], False
    for line in text.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            kept.append(line)
    return "\n".join(kept)


# --- passages -------------------------------------------------------------------------------------


def passages(blocks: Iterable[Block]) -> Iterator[Passage]:
    """Paragraphs joined to passages of about 80 words, never across a heading; long ones are cut at sentences."""
    heading, section, in_section = "", 0, 0
    pieces: list[str] = []
    size = 0

    def flush() -> Iterator[Passage]:
        nonlocal pieces, size, in_section, section
        text = clean("\n\n".join(pieces))
        pieces, size = [], 0
        if len(text.split()) >= FEWEST_WORDS:
            if in_section >= SECTION_PASSAGES:
                section, in_section = section + 1, 0
            in_section += 1
            yield Passage(text, heading, section)

    for block in blocks:
        if block.heading:
            yield from flush()
            heading = block.text[:80]
            section, in_section = (section + 1, 0) if in_section else (section, 0)
            continue
        for piece in _pieces(block.text):
            words = len(piece.split())
            if size and size + words > MOST_WORDS:
                yield from flush()
            pieces.append(piece)
            size += words
            if size >= PASSAGE_WORDS:
                yield from flush()
    yield from flush()


def _pieces(paragraph: str) -> list[str]:
    """A paragraph, cut at sentences where it is longer than a passage may be."""
    if len(paragraph.split()) <= MOST_WORDS:
        return [paragraph]
    pieces: list[list[str]] = [[]]
    size = 0
    for sentence in _SENTENCE.split(paragraph):
        for part in _by_words(sentence):
            words = len(part.split())
            if size and size + words > PASSAGE_WORDS:
                pieces.append([])
                size = 0
            pieces[-1].append(part)
            size += words
    return [" ".join(piece) for piece in pieces if piece]


def _by_words(sentence: str) -> list[str]:
    """A sentence; one that is longer than a passage (no full stops anywhere) cut by number of words."""
    words = sentence.split()
    return [" ".join(words[i : i + MOST_WORDS]) for i in range(0, len(words), MOST_WORDS)] or [sentence]


# --- examples -------------------------------------------------------------------------------------


def _examples(found: Sequence[Passage], source: str) -> Iterator[Conversation]:
    terms = _Terms([passage.text for passage in found])
    before: Passage | None = None
    for number, passage in enumerate(ticking(found, len(found), "making examples"), 1):
        follows = before is not None and before.section == passage.section
        if follows and before is not None:
            prompt, made = _pick(_CONTINUE, passage).format(context=_ending(before.text)), CONTINUATION
        else:
            prompt, made = _instruction(passage, terms.of(passage.text)), INSTRUCTION
        yield Conversation(
            id=f"{source}:passage-{number}",
            messages=(Message(role="user", content=prompt), Message(role="assistant", content=passage.text)),
            source=f"{source}:passage-{number}",
            group=f"{source}:section-{passage.section}",
            made=made,
        )
        before = passage


def _pick(templates: Sequence[str], passage: Passage) -> str:
    """One of the templates, the same for the same passage wherever it stands."""
    return templates[int(hashlib.sha256(passage.text.encode("utf-8", "replace")).hexdigest(), 16) % len(templates)]


def _ending(text: str) -> str:
    """The last 40 words or so, from the beginning of a sentence if there is one among them."""
    words = text.split()[-CONTEXT_WORDS:]
    tail = " ".join(words)
    starts = [match.end() for match in _SENTENCE.finditer(tail)]
    return tail[starts[0] :] if starts and len(tail) - starts[0] > 60 else tail


def _instruction(passage: Passage, topics: Sequence[str]) -> str:
    told = " and ".join([", ".join(topics[:-1]), topics[-1]] if len(topics) > 1 else topics) or "this"
    if passage.heading:
        return _pick(_HEADED, passage).format(heading=passage.heading, topics=told)
    return _pick(_ABOUT, passage).format(topics=told)


class _Terms:
    """What a passage is about: words that come often in it and seldom in the rest (tf-idf), names before others."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._spread = Counter(word for text in texts for word in {w.casefold() for w in _TERM.findall(text)})
        self._count = len(texts)

    def of(self, text: str, most: int = 3) -> list[str]:
        words = [word.strip("'’-") for word in _TERM.findall(text)]
        inner = Counter(word.casefold() for word in words)
        shown = {word.casefold(): word for word in reversed(words)}
        common = max(2.0, 0.2 * self._count)

        def weight(word: str) -> float:
            name = shown[word][:1].isupper() and sum(w == shown[word] for w in words) > 1
            return inner[word] * (1.5 if name else 1.0) * min(len(word), 8) / (1 + self._spread[word])

        rare = [word for word in inner if len(word) > 3 and self._spread[word] <= common]
        best = sorted(rare, key=lambda word: (-weight(word), word))[:most]
        return [shown[word] if shown[word] not in (shown[word].upper(),) else shown[word].lower() for word in best]
