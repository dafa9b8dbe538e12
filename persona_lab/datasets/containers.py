"""Documents in containers, read with bounds: zip entries, HTML, the XML of word processors, PDF pages.

Nothing is unpacked to disk, no entity is expanded and nothing is fetched; a zip bomb is refused by its sizes.
"""

from __future__ import annotations

import html.parser
import io
import logging
import re
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import Detection
from persona_lab.datasets.documents import Block
from persona_lab.datasets.toolkit import head_bytes, read_bytes
from persona_lab.errors import BadInput

MAX_ENTRIES = 10_000
MAX_ENTRY_BYTES = 32 * 2**20
MAX_TOTAL_BYTES = 128 * 2**20
MAX_PAGES = 3_000
MAX_PDF_SECONDS = 120.0
MAX_CONTAINER_BYTES = 128 * 2**20
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Other ways unpack a few bytes to gigabytes before a limit is looked at."""
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
"""What a damaged or foreign archive raises."""
_BLOCKS = ("p", "div", "li", "blockquote", "pre", "br", "tr", "section", "article", "dd", "dt", "figcaption")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_SILENT = ("script", "style", "head", "nav", "template")


class Zip:
    """A zip archive whose entries are read one by one, each and all together bounded.

    Raises:
        BadInput: it is damaged, encrypted where read, or too large unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(read_bytes(path, MAX_CONTAINER_BYTES)))
            self.names = self._zip.namelist()
        except DAMAGE as error:
            raise BadInput(f"{path} is a damaged archive ({error}).", "Download or export the file again.") from error
        if len(self.names) > MAX_ENTRIES:
            raise BadInput(
                f"{path} holds {len(self.names):,} files; at most {MAX_ENTRIES:,} are looked at.", "Use a part."
            )

    def read(self, name: str) -> bytes:
        """One entry's bytes.

        Raises:
            BadInput: there is none of that name, or it cannot be read within bounds.
        """
        try:
            info = self._zip.getinfo(name)
            if info.compress_type not in PACKINGS:
                raise NotImplementedError("it is packed in a way that documents are not")
            with self._zip.open(info) as entry:
                data = entry.read(MAX_ENTRY_BYTES + 1)
        except KeyError as error:
            raise BadInput(f"{self.path} has no {name} in it.", "Export the file again.") from error
        except DAMAGE as error:
            raise BadInput(f"{name} in {self.path} cannot be read: {error}.", "Export the file again.") from error
        self._read += len(data)
        if len(data) > MAX_ENTRY_BYTES or self._read > MAX_TOTAL_BYTES:
            raise BadInput(f"{self.path} unpacks to far more than a document holds.", "Use a smaller part of it.")
        return data


def zip_member(path: Path, name: str, why: str) -> Detection:
    """How sure a reader may be that a file is its own: a zip archive with `name` in it. Reads the directory only, and
    never raises."""
    try:
        found = head_bytes(path, 2) == b"PK" and path.stat().st_size <= MAX_CONTAINER_BYTES
        if found:
            with zipfile.ZipFile(path) as archive:
                found = name in archive.namelist()
    except DAMAGE:
        found = False
    return Detection(score=0.97, why=why) if found else Detection(score=0)


class _Blocks(html.parser.HTMLParser):
    """HTML to headings and paragraphs."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._text: list[str] = []
        self._heading = False
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in _SILENT:
            self._silent += 1
        elif tag in _BLOCKS or tag in _HEADINGS:
            self.flush()
            self._heading = tag in _HEADINGS

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(self._silent - 1, 0)
        elif tag in _BLOCKS or tag in _HEADINGS:
            self.flush()
            self._heading = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._text.append(data)

    def flush(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if text:
            self.blocks.append(Block(text, self._heading))


def html_blocks(data: bytes) -> list[Block]:
    """HTML or XHTML (UTF-8; what is not is replaced) as headings and paragraphs."""
    parser = _Blocks()
    try:
        parser.feed(data.decode("utf-8", "replace"))
        parser.close()
    except (AssertionError, ValueError) as error:  # html.parser's own trouble with malformed declarations
        raise BadInput(f"A page of the book is no HTML ({error}).", "Export the file again.") from error
    parser.flush()
    return parser.blocks


def xml_root(data: bytes, name: str) -> Any:
    """The root element of an XML document.

    Raises:
        BadInput: it is not XML, or declares entities (no document needs to, and they can be bombs).
    """
    import xml.etree.ElementTree as ElementTree

    if b"<!ENTITY" in data.replace(b"\0", b""):  # also in UTF-16
        raise BadInput(f"{name} declares XML entities, which no document needs.", "Save it again with another program.")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadInput(f"{name} is not valid XML ({error}).", "Export the file again.") from error


def pdf_blocks(path: Path) -> list[Block]:
    """The text of a PDF, paragraph by paragraph.

    Raises:
        BadInput: it is damaged, locked with a password, too long, or holds pictures of text only.
    """
    import pypdf
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    data = read_bytes(path, MAX_CONTAINER_BYTES)
    started, pages = time.monotonic(), []
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadInput(f"{path} is locked with a password.", "Save a copy without the password.")
        if len(reader.pages) > MAX_PAGES:
            raise BadInput(
                f"{path} has {len(reader.pages):,} pages; at most {MAX_PAGES:,} are read.", "Use a part of it."
            )
        for page in reader.pages:
            pages.append(page.extract_text() or "")
            if time.monotonic() - started > MAX_PDF_SECONDS:
                raise BadInput(f"{path} takes longer than {MAX_PDF_SECONDS:.0f} s to read.", "Use a part of it.")
    except BadInput:
        raise
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError) as error:
        raise BadInput(
            f"{path} is a damaged PDF ({type(error).__name__}: {error}).", "Export it again, or save it as text."
        ) from error
    except (ImportError, NotImplementedError) as error:
        raise BadInput(f"{path} is a PDF of a kind that cannot be read ({error}).", "Save it as text.") from error
    if sum(map(len, pages)) < 20 * max(len(pages), 1):
        raise BadInput(
            f"{path} has {len(pages)} pages but hardly any text: they are pictures of text.",
            "Run it through a text recognition program first, and save the result as text.",
        )
    return page_blocks(pages)


def page_blocks(pages: Sequence[str]) -> list[Block]:
    """Pages of lines as paragraphs: page numbers and running heads out, words broken at line ends joined."""
    lines = [[line.strip() for line in page.split("\n")] for page in pages]
    edges: dict[str, int] = {}
    for page in lines:
        for line in {*page[:1], *page[-1:]}:
            edges[re.sub(r"\d+", "#", line)] = edges.get(re.sub(r"\d+", "#", line), 0) + 1
    running = {line for line, count in edges.items() if count >= max(3, len(pages) // 3)} | {"#"}
    kept = [[line for line in page if re.sub(r"\d+", "#", line) not in running] for page in lines]
    widths = sorted(len(line) for page in kept for line in page if line)
    usual = widths[int(0.8 * len(widths))] if widths else 0
    text: list[str] = []
    for line in (line for page in kept for line in page):
        text.append(line)
        if line and len(line) < 0.75 * usual and line[-1:] in ".!?\"'”’":
            text.append("")  # a short last line ends a paragraph
    return [
        Block(" ".join(part.split())) for part in re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", "\n".join(text)).split("\n\n")
    ]
