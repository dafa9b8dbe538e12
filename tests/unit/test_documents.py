"""Documents become passages: the author's words untouched, made prompts that say so, sections in one split."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import pytest
from persona_lab_builtin.plugin import persona_lab_dataset_readers

from persona_lab.datasets.build import build_dataset
from persona_lab.datasets.containers import Zip, xml_root
from persona_lab.datasets.documents import Block, document_result, passages, text_blocks
from persona_lab.datasets.reading import Reading, read_dataset
from persona_lab.errors import BadInput
from persona_lab.types import Persona

PERSONA = Persona(id="ada", name="Ada", card={"data": {"name": "Ada"}})
READERS = [reader() for reader in persona_lab_dataset_readers()]
WORDS = [
    "kettle",
    "rain",
    "teapot",
    "window",
    "ladder",
    "harbour",
    "garden",
    "engine",
    "letter",
    "candle",
    "bridge",
    "orchard",
]


def paragraph(seed: int, sentences: int = 4) -> str:
    a, b = WORDS[seed % len(WORDS)], WORDS[(seed * 5 + 1) % len(WORDS)]
    return " ".join(f"The {a} number {seed} stood by the {b} for the {i}th time that day." for i in range(sentences))


def chapters(count: int = 3, each: int = 12) -> list[tuple[str, list[str]]]:
    return [(f"Chapter {c}", [paragraph(c * 100 + p) for p in range(each)]) for c in range(count)]


def read(path: Path, format: str = "auto") -> Reading:
    return read_dataset(path, READERS, PERSONA, format)


def said(reading: Reading) -> str:
    return " ".join(" ".join(c.messages[-1].content.split()) for c in reading.result.conversations)


def test_passages_keep_every_word_and_stop_at_headings(test_data: Path) -> None:
    text = (test_data / "generic_text" / "sherlock_60k_publicdomain.txt").read_text("utf-8")
    found = list(passages(text_blocks(text)))
    kept = " ".join(" ".join(p.text.split()) for p in found).split()
    assert len(kept) > 0.99 * len(text.split())
    assert all(12 <= len(p.text.split()) <= 290 for p in found)
    assert sum(60 <= len(p.text.split()) <= 200 for p in found) > 0.8 * len(found)
    headed = list(
        passages(
            [Block("One", True), *(Block(paragraph(i)) for i in range(5)), Block("Two", True), Block(paragraph(9))]
        )
    )
    assert {p.heading for p in headed} == {"One", "Two"}
    assert headed[-1].section > headed[-2].section
    endless = list(passages([Block("word " * 1000)]))
    assert len(endless) >= 5


def test_prompts_are_made_and_marked_and_never_cross_a_split(test_data: Path) -> None:
    reading = read(test_data / "generic_text" / "sherlock_60k_publicdomain.txt")
    dataset, summary = build_dataset(reading, "ada", 1, "ada v1", "sherlock")
    assert summary.counts["test"] >= 6
    assert {c.made for c in dataset.conversations} == {"continuation", "instruction from a template"}
    held = [c.messages[-1].content for c in dataset.of("test")]
    for conversation in dataset.of("train"):
        shown = conversation.messages[0].content
        words = shown.split()
        pieces = [" ".join(words[i : i + 8]) for i in range(0, max(len(words) - 8, 1), 4)]
        overlap = sum(any(piece in " ".join(text.split()) for text in held) for piece in pieces)
        assert overlap <= 0.2 * len(pieces), shown  # a prompt of training that shows a held-out passage


def test_markdown(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    body = "\n\n".join(
        f"## {title}\n{chr(10).join(parts[:1])}\n\n" + "\n\n".join(parts[1:]) for title, parts in chapters()
    )
    path.write_text(
        f"---\ntitle: x\n---\n\n{body}\n\n```python\nprint('no voice')\n```\n\nSee [the **harbour**](https://x.example).\n"
    )
    reading = read(path)
    assert reading.format == "prose"
    assert "print(" not in said(reading)
    assert "title: x" not in said(reading)
    assert any("Chapter 1" in c.messages[0].content for c in reading.result.conversations)
    assert "Chapter" not in said(reading)


def test_an_open_fence_is_no_trap(tmp_path: Path) -> None:
    path = tmp_path / "fences.md"
    path.write_text("\n\n".join(part for _, parts in chapters() for part in parts) + "\n\n" + "```a\n" * 100_001)
    begun = time.monotonic()
    assert "number 100 " in said(read(path, "prose"))
    assert time.monotonic() - begun < 5


def test_entities_are_refused_wherever_they_stand() -> None:
    for data in (
        b"<!--" + b"x" * 200_000 + b'--><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"),
    ):
        with pytest.raises(BadInput, match="entities"):
            xml_root(data, "x")


def test_entries_packed_without_a_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("word/document.xml", b"0" * 10**8)
    with pytest.raises(BadInput, match="packed in a way"):
        Zip(path).read("word/document.xml")


def test_epub(tmp_path: Path) -> None:
    path = tmp_path / "book.epub"
    names = [f"text/c{i}.xhtml" for i in range(3)]
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
        )
        items = "".join(f'<item id="c{i}" href="{name}"/>' for i, name in enumerate(names))
        order = "".join(f'<itemref idref="c{i}"/>' for i in (2, 0, 1))
        book.writestr(
            "OEBPS/content.opf",
            f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{order}</spine></package>',
        )
        for (title, parts), name in zip(chapters(), names, strict=True):
            inner = "".join(f"<p>{part}</p>" for part in parts)
            book.writestr(
                f"OEBPS/{name}",
                f"<html><head><style>{'leak ' * 30}</style></head><body><h1>{title}</h1>{inner}</body></html>",
            )
    reading = read(path)
    assert reading.format == "epub"
    text = said(reading)
    assert text.index("number 200 ") < text.index("number 0 ") < text.index("number 100 ")
    assert "leak" not in text


def test_docx(tmp_path: Path) -> None:
    path = tmp_path / "notes.docx"
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    parts = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>{title}</w:t></w:r></w:p>'
        + "".join(f"<w:p><w:r><w:t>{p[:20]}</w:t></w:r><w:r><w:t>{p[20:]}</w:t></w:r></w:p>" for p in paragraphs)
        for title, paragraphs in chapters()
    )
    with zipfile.ZipFile(path, "w") as document:
        document.writestr("word/document.xml", f"<w:document {space}><w:body>{parts}</w:body></w:document>")
    reading = read(path)
    assert reading.format == "docx"
    assert paragraph(0) in said(reading)


def test_pdf(tmp_path: Path) -> None:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    path = tmp_path / "paper.pdf"
    with PdfPages(path) as pages:
        for title, parts in chapters():
            figure = Figure(figsize=(8, 11))
            figure.text(0.1, 0.95, "Collected Notes")
            lines = [line for part in parts[:6] for line in (part[i : i + 90] for i in range(0, len(part), 90))]
            for number, line in enumerate([title, *lines]):
                figure.text(0.1, 0.9 - 0.02 * number, line, fontsize=7)
            pages.savefig(figure)
    reading = read(path)
    assert reading.format == "pdf"
    assert "kettle" in said(reading)
    assert "Collected Notes" not in said(reading)


def test_containers_that_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.epub"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", b" " * (40 * 2**20))
    with pytest.raises(BadInput, match="unpacks to far more"):
        read(bomb)
    entities = tmp_path / "entities.docx"
    with zipfile.ZipFile(entities, "w") as document:
        document.writestr("word/document.xml", '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>')
    with pytest.raises(BadInput, match="declares XML entities"):
        read(entities)
    other = tmp_path / "pictures.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.png", b"x")
    with pytest.raises(BadInput, match="is a zip archive, not text"):
        read(other)
    cut = tmp_path / "cut.pdf"
    cut.write_bytes(b"%PDF-1.7\n1 0 obj\n<<")
    with pytest.raises(BadInput, match="damaged PDF"):
        read(cut)
    with pytest.raises(BadInput, match="too few to make examples of"):
        document_result([Block("Hello there.")], PERSONA, "a.txt")


def test_parquet_without_its_reader_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + b"\x00" * 20 + b"PAR1")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(BadInput, match=r"needs pyarrow.*pip install 'persona-lab\[parquet\]'"):
            read(path)
    else:
        with pytest.raises(BadInput, match="damaged Parquet table"):
            read(path)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an optional part: pip install 'persona-lab[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    turns = [[{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a {i}"}] for i in range(3)]
    parquet.write_table(pyarrow.table({"messages": turns}), path)
    reading = read(path)
    assert reading.format == "openai_messages"
    assert [m.content for m in reading.result.conversations[2].messages] == ["q 2", "a 2"]


def test_pages_lose_their_running_heads(tmp_path: Path) -> None:
    from persona_lab.datasets.containers import page_blocks

    blocks = page_blocks([f"Running head\nThe quick brown fox jump-\ned over page {i}.\n{i}" for i in range(1, 5)])
    text = " ".join(block.text for block in blocks)
    assert "Running head" not in text
    assert "jumped over page 3." in text
